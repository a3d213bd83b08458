"""Gemma: gemma, gemma2 (soft caps, norms also after each block, every other layer with a sliding window), gemma3_text
(normalised heads, two rotary embeddings), gemma3 (the same network in a checkpoint that also has a vision tower).

Norms multiply by 1 + weight, and embeddings are multiplied by sqrt(hidden_size), a factor that transformers rounds to
the type it computes in: in bfloat16 it has 55.5 for sqrt(3072) = 55.43. Of gemma3, the text model alone is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidConfigError
from ..program.program import Program
from ..program.recorder import Recorder
from ..program.tensors import Vector
from .blocks import ACTIVATIONS, matrix, vector
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
from .rope import RopeParameters, rope_from_fields, ropes_by_layer_type

# The first checkpoints say "gelu" and mean its approximation.
GELU = ACTIVATIONS | {"gelu": "gelu_tanh"}
THETAS = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
# The text_config of the Hub's gemma3 checkpoints leaves out what is as in transformers' Gemma3TextConfig.
GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}
OTHER_PARTS = (r"(vision_tower|multi_modal_projector)\..*",)


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's GemmaConfig, Gemma2Config and Gemma3TextConfig, the fields that shape the network.

    windows: keys each layer's queries see (0: all). layer_ropes: which of the rotary embeddings `ropes` each layer has.
    Soft caps of 0: there is none.
    """

    rms_norm_eps: float
    attention_bias: bool
    query_pre_attn_scalar: float
    attn_logit_softcapping: float
    final_logit_softcapping: float
    windows: tuple[int, ...]
    ropes: dict[str, RopeParameters]
    layer_ropes: tuple[str, ...]

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(_text_config(config))
        first, third = config["model_type"] == "gemma", config["model_type"] in ("gemma3", "gemma3_text")
        activation = "hidden_act" if first else "hidden_activation"
        defaults = {"head_dim": 256, activation: "gelu_pytorch_tanh"} | (GEMMA3_DEFAULTS if third else {})
        shared = decoder_fields(fields, tied=True, activation=activation, activations=GELU, defaults=defaults)
        layers, head_dim, positions = (
            shared[name] for name in ("num_hidden_layers", "head_dim", "max_position_embeddings")
        )
        if fields.raw("use_bidirectional_attention") not in (None, False):
            fields.unsupported("use_bidirectional_attention: tokens that see later ones")
        if third and fields.raw("attn_logit_softcapping") is not None:
            fields.unsupported("attn_logit_softcapping, which transformers leaves out of gemma3's attention")
        kinds = [FULL] * layers if first else layer_types(fields, layers, _default_types(fields, layers, third))
        if third:
            ropes = ropes_by_layer_type(fields, head_dim, positions, THETAS)
        else:
            ropes = {"": rope_from_fields(fields, head_dim, positions)}
        result = Config(
            **shared,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attention_bias=fields.flag("attention_bias", False),
            query_pre_attn_scalar=float(head_dim) if first else fields.number("query_pre_attn_scalar", 256),
            attn_logit_softcapping=0.0 if first or third else _softcap(fields, "attn_logit_softcapping", 50.0),
            final_logit_softcapping=0.0
            if first
            else _softcap(fields, "final_logit_softcapping", None if third else 30.0),
            windows=layer_windows(fields, kinds, 0 if first else fields.integer("sliding_window", 4096)),
            ropes=ropes,
            layer_ropes=tuple(kinds) if third else ("",) * layers,
        )
        fields.finish()
        return result

    @property
    def post_norms(self) -> bool:
        """Gemma 2 and 3 normalise what a block gives before it is added to the residual stream."""
        return self.model_type != "gemma"

    @property
    def qk_norm(self) -> bool:
        """Gemma 3 normalises each query and key head."""
        return self.model_type in ("gemma3", "gemma3_text")


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's fields: gemma3 has them under text_config, and some that matter beside it."""
    if config["model_type"] != "gemma3":
        return config
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise InvalidConfigError(f"[config.json] text_config must be an object, got {text!r:.80}. Correct the file")
    outer = {name: config[name] for name in ("tie_word_embeddings", "quantization_config") if name in config}
    return {**text, **outer, "model_type": "gemma3"}


def _default_types(fields: Fields, layers: int, third: bool) -> list[str]:
    """Every second layer sees all keys in Gemma 2, every sixth in Gemma 3 (sliding_window_pattern)."""
    pattern = (fields.integer("sliding_window_pattern", 6) or 1) if third else 2
    return [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]


def _softcap(fields: Fields, name: str, default: float | None) -> float:
    """A missing field means `default`, null means that there is no cap; 0 stands for the latter."""
    return fields.number(name, None if fields.has(name) else default)


def canonical(name: str) -> str:
    """GemmaForCausalLM puts `model.` before what GemmaModel has without; gemma3 checkpoints have `language_model.`, or
    that and `model.` in either order."""
    for prefix in ("model.language_model.", "language_model.model.", "language_model.", "model."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.rms_norm_eps
    used = {kind: c.ropes[kind] for kind in dict.fromkeys(c.layer_ropes)}
    positions = min(rope.max_positions for rope in used.values())
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=positions)
    tokens, head = c.tables

    def norm(name: str) -> Vector:
        return vector(f"{name}.weight", width, offset=1.0)

    x = r.embed("embed", tokens, scale=width**0.5)
    ropes = {
        kind: r.rotary("rope" if len(used) == 1 else f"rope_{kind}", rope.inv_freq, rope.scaling)
        for kind, rope in used.items()
    }
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            before_ffn = "pre_feedforward_layernorm" if c.post_norms else "post_attention_layernorm"
            r.hidden(x)
            h = r.rms_norm("attn_norm", x, norm(f"layers.{i}.input_layernorm"), eps)
            h = r.linear("qkv", h, qkv(attn, c, bias=c.attention_bias))
            if c.qk_norm:
                h = r.head_norm("qk_norm", h, "rms", head_norms(attn, c, offset=1.0), eps)
            h = r.attention(
                "attn",
                h,
                **c.heads,
                scale=c.query_pre_attn_scalar**-0.5,
                rope=ropes[c.layer_ropes[i]],
                window=c.windows[i],
                softcap=c.attn_logit_softcapping,
            )
            o_proj = matrix(f"{attn}.o_proj", width, c.query_width, bias=c.attention_bias)
            if c.post_norms:
                h = r.linear("attn_out", h, o_proj)
                x = r.rms_norm("attn_post_norm", h, norm(f"layers.{i}.post_attention_layernorm"), eps, residual=x)
            else:
                x = r.linear("attn_out", h, o_proj, residual=x)
            h = r.rms_norm("ffn_norm", x, norm(f"layers.{i}.{before_ffn}"), eps)
            h = r.linear("ffn_gate_up", h, gate_up(mlp, width, ffn), c.hidden_act)
            if c.post_norms:
                h = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn))
                x = r.rms_norm("ffn_post_norm", h, norm(f"layers.{i}.post_feedforward_layernorm"), eps, residual=x)
            else:
                x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn), residual=x)
    x = r.hidden(r.rms_norm("norm", r.select("last", x), norm("norm"), eps))
    logits = r.linear("logits", x, head, softcap=c.final_logit_softcapping)
    return r.finish(logits, ignored=(*IGNORED, *OTHER_PARTS), aliases=c.aliases)
