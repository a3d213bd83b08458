"""Llama and what differs from it by fields only: mistral (sliding window), qwen2 (biases of q, k, v; windows by layer),
qwen3 (normalised heads), granite (multipliers), smollm3 (layers without positions). SmolLM 1 and 2 are llamas.

RMSNorm before each block, rotary positions, grouped key/value heads, gated feed-forward, a tied or own head.
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
    gate_up,
    head_norms,
    layer_types,
    layer_windows,
    qkv,
)
from .fields import Fields
from .rope import DEFAULT_THETA, RopeParameters, rope_from_fields


@dataclass(frozen=True)
class Family:
    """What a model_type has, and what fields that its config.json leaves out mean."""

    biases: tuple[str, ...] = ()  # of attention_bias and mlp_bias: those that are fields of its configuration
    qkv_bias: bool = False  # always biases in q, k and v
    qk_norm: bool = False
    head_dim: int = 0
    theta: float = DEFAULT_THETA
    tied: bool = False
    multipliers: bool = False


FAMILIES = {
    "llama": Family(biases=("attention_bias", "mlp_bias")),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(biases=("attention_bias",), qk_norm=True, head_dim=128),
    "granite": Family(biases=("attention_bias", "mlp_bias"), multipliers=True),
    "smollm3": Family(biases=("attention_bias", "mlp_bias"), theta=2e6, tied=True),
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's LlamaConfig, MistralConfig, Qwen2Config, ...: the fields that shape the network.

    windows: keys each layer's queries see (0: all). rotated: whether each layer rotates queries and keys.
    """

    rms_norm_eps: float
    attention_bias: bool
    qkv_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    rotated: tuple[bool, ...]
    rope: RopeParameters
    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields, family = Fields(config), FAMILIES[config["model_type"]]
        shared = decoder_fields(fields, tied=family.tied, defaults={"head_dim": family.head_dim})
        head_dim, layers = shared["head_dim"], shared["num_hidden_layers"]
        attention_bias, mlp_bias = (
            name in family.biases and fields.flag(name, False) for name in ("attention_bias", "mlp_bias")
        )
        rotated = _rotated(fields, shared["model_type"], layers)

        def multiplier(name: str, default: float = 1.0) -> float:
            return fields.number(name, 1.0) if family.multipliers else default

        result = Config(
            **shared,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attention_bias=attention_bias,
            qkv_bias=attention_bias or family.qkv_bias,
            mlp_bias=mlp_bias,
            qk_norm=family.qk_norm,
            windows=_windows(fields, shared["model_type"], rotated),
            rotated=rotated,
            rope=rope_from_fields(fields, head_dim, shared["max_position_embeddings"], theta=family.theta),
            embedding_multiplier=multiplier("embedding_multiplier"),
            attention_multiplier=multiplier("attention_multiplier", (head_dim or 1) ** -0.5),
            residual_multiplier=multiplier("residual_multiplier"),
            logits_scaling=multiplier("logits_scaling"),
        )
        fields.finish()
        return result


def _rotated(fields: Fields, model_type: str, layers: int) -> tuple[bool, ...]:
    """SmolLM3 leaves out positions in every fourth layer, or as no_rope_layers says (0: without)."""
    if model_type != "smollm3":
        return (True,) * layers
    interval = fields.integer("no_rope_layer_interval", 4) or 1
    listed = fields.raw("no_rope_layers")
    if listed is None:
        return tuple((i + 1) % interval != 0 for i in range(layers))
    if not isinstance(listed, list) or len(listed) < layers or not all(rotates in (0, 1) for rotates in listed):
        fields.invalid(f"no_rope_layers must be {layers} of 0 and 1, got {listed!r}")
        return (True,) * layers
    return tuple(bool(rotates) for rotates in listed[:layers])


def _windows(fields: Fields, model_type: str, rotated: tuple[bool, ...]) -> tuple[int, ...]:
    """The sliding window of each layer; 0 where all keys are seen."""
    layers = len(rotated)
    if model_type in ("llama", "granite"):
        return (0,) * layers
    window = fields.integer("sliding_window", 0, low=0)
    if model_type == "mistral":
        return (window,) * layers
    used = fields.flag("use_sliding_window", False)
    if model_type == "smollm3":
        sliding = [not rotates for rotates in rotated]
    else:
        first = fields.integer("max_window_layers", 28, low=0)
        sliding = [i >= first for i in range(layers)]
    kinds = layer_types(fields, layers, [SLIDING if used and slides else FULL for slides in sliding])
    return layer_windows(fields, kinds, window * used, needs="use_sliding_window")


def canonical(name: str) -> str:
    """LlamaForCausalLM puts `model.` before what LlamaModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.rms_norm_eps
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens, head = c.tables

    x = r.embed("embed", tokens, scale=c.embedding_multiplier)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling) if any(c.rotated) else None
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            r.hidden(x)
            h = r.rms_norm("attn_norm", x, vector(f"layers.{i}.input_layernorm.weight", width), eps)
            h = r.linear("qkv", h, qkv(attn, c, bias=c.qkv_bias))
            if c.qk_norm:
                h = r.head_norm("qk_norm", h, "rms", head_norms(attn, c), eps)
            h = r.attention(
                "attn",
                h,
                **c.heads,
                scale=c.attention_multiplier,
                rope=rope if c.rotated[i] else None,
                window=c.windows[i],
            )
            o_proj = matrix(f"{attn}.o_proj", width, c.query_width, bias=c.attention_bias)
            x = r.linear("attn_out", h, o_proj, residual=x, scale=c.residual_multiplier)
            h = r.rms_norm("ffn_norm", x, vector(f"layers.{i}.post_attention_layernorm.weight", width), eps)
            h = r.linear("ffn_gate_up", h, gate_up(mlp, width, ffn, bias=c.mlp_bias), c.hidden_act)
            down_proj = matrix(f"{mlp}.down_proj", width, ffn, bias=c.mlp_bias)
            x = r.linear("ffn_out", h, down_proj, residual=x, scale=c.residual_multiplier)
    x = r.hidden(r.rms_norm("norm", r.select("last", x), vector("norm.weight", width), eps))
    logits = r.linear("logits", x, head, scale=1 / c.logits_scaling)
    return r.finish(logits, ignored=IGNORED, aliases=c.aliases)
