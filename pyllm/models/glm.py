"""GLM-4 (glm, glm4): Llama's blocks with biases of q, k and v, one fused gate and up, and rotary positions that turn
the first half of each head in pairs of neighbours. glm4 also has norms after each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import Program
from ..program.recorder import Recorder
from ..program.tensors import Vector
from .blocks import matrix, vector
from .decoder import IGNORED, DecoderConfig, decoder_fields, fused_gate_up, qkv
from .fields import Fields
from .rope import RopeParameters, rope_from_fields


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's GlmConfig and Glm4Config, the fields that shape the network."""

    rms_norm_eps: float
    attention_bias: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        shared = decoder_fields(fields, defaults={"head_dim": 128})
        result = Config(
            **shared,
            rms_norm_eps=fields.number("rms_norm_eps", 1.5625e-7),
            attention_bias=fields.flag("attention_bias", True),
            rope=rope_from_fields(fields, shared["head_dim"], shared["max_position_embeddings"], partial=0.5),
        )
        fields.finish()
        return result

    @property
    def post_norms(self) -> bool:
        """Whether what a block gives is normalised before it is added to the residual stream."""
        return self.model_type == "glm4"


def canonical(name: str) -> str:
    """GlmForCausalLM puts `model.` before what GlmModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.rms_norm_eps
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens, head = c.tables

    def norm(name: str) -> Vector:
        return vector(f"{name}.weight", width)

    x = r.embed("embed", tokens)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            o_proj, down_proj = matrix(f"{attn}.o_proj", width, c.query_width), matrix(f"{mlp}.down_proj", width, ffn)
            r.hidden(x)
            h = r.rms_norm("attn_norm", x, norm(f"layers.{i}.input_layernorm"), eps)
            h = r.linear("qkv", h, qkv(attn, c, bias=c.attention_bias))
            h = r.attention("attn", h, **c.heads, scale=c.head_dim**-0.5, rope=rope, rope_interleaved=True)
            if c.post_norms:
                h = r.linear("attn_out", h, o_proj)
                x = r.rms_norm("attn_post_norm", h, norm(f"layers.{i}.post_self_attn_layernorm"), eps, residual=x)
            else:
                x = r.linear("attn_out", h, o_proj, residual=x)
            h = r.rms_norm("ffn_norm", x, norm(f"layers.{i}.post_attention_layernorm"), eps)
            h = r.linear("ffn_gate_up", h, fused_gate_up(f"{mlp}.gate_up_proj", width, ffn), c.hidden_act)
            if c.post_norms:
                h = r.linear("ffn_out", h, down_proj)
                x = r.rms_norm("ffn_post_norm", h, norm(f"layers.{i}.post_mlp_layernorm"), eps, residual=x)
            else:
                x = r.linear("ffn_out", h, down_proj, residual=x)
    x = r.hidden(r.rms_norm("norm", r.select("last", x), norm("norm"), eps))
    return r.finish(r.linear("logits", x, head), ignored=IGNORED, aliases=c.aliases)
