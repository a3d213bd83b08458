"""OLMo 2 and 3 (olmo2, olmo3): Llama's blocks with norms after them instead of before, and queries and keys normalised
over all heads at once. olmo3 adds sliding windows, and rotary positions that differ between full and sliding layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import Program
from ..program.recorder import Recorder
from .blocks import matrix, vector
from .decoder import (
    FULL,
    IGNORED,
    SLIDING,
    DecoderConfig,
    decoder_fields,
    full_norms,
    gate_up,
    layer_types,
    layer_windows,
    qkv,
)
from .fields import Fields
from .rope import RopeParameters, rope_from_fields, ropes_by_layer_type

THETAS = {FULL: ("rope_theta", 5e5), SLIDING: ("rope_theta", 5e5)}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's Olmo2Config and Olmo3Config, the fields that shape the network.

    windows: keys each layer's queries see (0: all). layer_ropes: which of the rotary embeddings `ropes` each layer has.
    """

    rms_norm_eps: float
    attention_bias: bool
    windows: tuple[int, ...]
    ropes: dict[str, RopeParameters]
    layer_ropes: tuple[str, ...]

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields, third = Fields(config), config["model_type"] == "olmo3"
        shared = decoder_fields(fields)
        layers, head_dim, positions = (
            shared[name] for name in ("num_hidden_layers", "head_dim", "max_position_embeddings")
        )
        kinds, window = [FULL] * layers, 0
        if third:
            default = [SLIDING if (i + 1) % 4 else FULL for i in range(layers)]
            kinds, window = list(layer_types(fields, layers, default)), fields.integer("sliding_window", 4096)
            ropes = ropes_by_layer_type(fields, head_dim, positions, THETAS)
        else:
            ropes = {FULL: rope_from_fields(fields, head_dim, positions)}
        result = Config(
            **shared,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
            attention_bias=fields.flag("attention_bias", False),
            windows=layer_windows(fields, kinds, window),
            ropes=ropes,
            layer_ropes=tuple(kinds),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """Olmo2ForCausalLM puts `model.` before what Olmo2Model has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.rms_norm_eps
    used = {kind: c.ropes[kind] for kind in dict.fromkeys(c.layer_ropes)}
    positions = min(rope.max_positions for rope in used.values())
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=positions)
    tokens, head = c.tables

    x = r.embed("embed", tokens)
    ropes = {
        kind: r.rotary("rope" if len(used) == 1 else f"rope_{kind}", rope.inv_freq, rope.scaling)
        for kind, rope in used.items()
    }
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            after_attn = vector(f"layers.{i}.post_attention_layernorm.weight", width)
            after_ffn = vector(f"layers.{i}.post_feedforward_layernorm.weight", width)
            r.hidden(x)
            h = r.linear("qkv", x, qkv(attn, c, bias=c.attention_bias))
            h = r.head_norm("qk_norm", h, "rms", full_norms(attn, c), eps)
            rope = ropes[c.layer_ropes[i]]
            h = r.attention("attn", h, **c.heads, scale=c.head_dim**-0.5, rope=rope, window=c.windows[i])
            h = r.linear("attn_out", h, matrix(f"{attn}.o_proj", width, c.query_width, bias=c.attention_bias))
            x = r.rms_norm("attn_norm", h, after_attn, eps, residual=x)
            h = r.linear("ffn_gate_up", x, gate_up(mlp, width, ffn), c.hidden_act)
            h = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn))
            x = r.rms_norm("ffn_norm", h, after_ffn, eps, residual=x)
    x = r.hidden(r.rms_norm("norm", r.select("last", x), vector("norm.weight", width), eps))
    return r.finish(r.linear("logits", x, head), ignored=IGNORED, aliases=c.aliases)
