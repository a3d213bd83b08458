"""Command R (cohere) and Command R7B (cohere2): attention and feed-forward side by side after one LayerNorm without a
bias, rotary positions in pairs of neighbours, scaled logits.

cohere may normalise each query and key head; cohere2 has sliding windows in three of four layers, and positions only
in those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import NormSlice, Program
from ..program.recorder import Recorder
from ..program.tensors import Source, Vector
from .blocks import matrix, vector
from .decoder import FULL, IGNORED, SLIDING, DecoderConfig, decoder_fields, gate_up, layer_types, layer_windows, qkv
from .fields import Fields
from .rope import DEFAULT_THETA, RopeParameters, rope_from_fields


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's CohereConfig and Cohere2Config, the fields that shape the network.

    windows: keys each layer's queries see (0: all). rotated: whether each layer rotates queries and keys.
    """

    layer_norm_eps: float
    attention_bias: bool
    use_qk_norm: bool
    logit_scale: float
    windows: tuple[int, ...]
    rotated: tuple[bool, ...]
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields, second = Fields(config), config["model_type"] == "cohere2"
        shared = decoder_fields(fields, tied=True)
        layers, positions = shared["num_hidden_layers"], shared["max_position_embeddings"]
        windows = (0,) * layers
        if second:
            pattern = fields.integer("sliding_window_pattern", 4) or 1
            default = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
            window = fields.integer("sliding_window", 4096)
            windows = layer_windows(fields, layer_types(fields, layers, default), window)
        theta = DEFAULT_THETA if second else 5e5
        result = Config(
            **shared,
            layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
            attention_bias=fields.flag("attention_bias", False),
            use_qk_norm=not second and fields.flag("use_qk_norm", False),
            logit_scale=fields.number("logit_scale", 0.0625),
            windows=windows,
            rotated=tuple(window > 0 or not second for window in windows),
            rope=rope_from_fields(fields, shared["head_dim"], positions, theta=theta),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """CohereForCausalLM puts `model.` before what CohereModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.layer_norm_eps
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens, head = c.tables

    x = r.embed("embed", tokens)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling) if any(c.rotated) else None
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            r.hidden(x)
            normed = r.layer_norm("norm", x, vector(f"layers.{i}.input_layernorm.weight", width), None, eps)
            h = r.linear("qkv", normed, qkv(attn, c, bias=c.attention_bias))
            if c.use_qk_norm:
                h = r.head_norm("qk_norm", h, "layer", _head_norms(attn, c), eps)
            h = r.attention(
                "attn",
                h,
                **c.heads,
                scale=c.head_dim**-0.5,
                rope=rope if c.rotated[i] else None,
                rope_interleaved=True,
                window=c.windows[i],
            )
            o_proj = matrix(f"{attn}.o_proj", width, c.query_width, bias=c.attention_bias)
            attended = r.linear("attn_out", h, o_proj, residual=x)
            h = r.linear("ffn_gate_up", normed, gate_up(mlp, width, ffn), c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn), residual=attended)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), vector("norm.weight", width), None, eps))
    return r.finish(r.linear("logits", x, head, scale=c.logit_scale), ignored=IGNORED, aliases=c.aliases)


def _head_norms(attn: str, c: Config) -> list[NormSlice]:
    """q_norm and k_norm, stored [heads, head_dim]: weights of its own for each head."""
    slices, begin = [], 0
    for name, heads in (("q_norm", c.num_attention_heads), ("k_norm", c.num_key_value_heads)):
        source = Source(f"{attn}.{name}.weight", (heads, c.head_dim))
        slices.append(NormSlice(begin, c.head_dim, heads, Vector(source.name, (heads * c.head_dim,), source)))
        begin += c.query_width
    return slices
