"""What the decoders around Llama share: fields of their config.json, windows by layer, weights by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..program.program import ActivationName, NormSlice
from ..program.tensors import Matrix, Source
from .blocks import ACTIVATIONS, joined, table, vector
from .fields import MAX_LAYERS, Fields

# Rotary frequencies, which follow from the configuration, in old checkpoints; heads of classes that do not generate.
IGNORED = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"(score|classifier|qa_outputs)\..*")
MAX_HEAD_DIM = 65536
SLIDING, FULL = "sliding_attention", "full_attention"


class Heads(TypedDict):
    """Arguments of Recorder.attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class DecoderConfig:
    """The fields of Hugging Face's LlamaConfig that every one of these families has."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: ActivationName
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def query_width(self) -> int:
        """All query heads, side by side."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """All key heads, or all value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def heads(self) -> Heads:
        """For Recorder.attention."""
        return Heads(num_heads=self.num_attention_heads, num_kv_heads=self.num_key_value_heads, head_dim=self.head_dim)

    @property
    def tables(self) -> tuple[Matrix, Matrix]:
        """The token embedding and the head [V, D]: one matrix where they are tied."""
        tokens = table("embed_tokens", self.vocab_size, self.hidden_size)
        return tokens, tokens if self.tie_word_embeddings else table("lm_head", self.vocab_size, self.hidden_size)

    @property
    def aliases(self) -> tuple[tuple[str, str], ...]:
        """For Recorder.finish: a tied head may be stored under either name."""
        return (("embed_tokens.weight", "lm_head.weight"),) if self.tie_word_embeddings else ()


def decoder_fields(
    fields: Fields,
    *,
    tied: bool = False,
    activation: str = "hidden_act",
    activations: Mapping[str, ActivationName] = ACTIVATIONS,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments of DecoderConfig; notes what is wrong in `fields`.

    tied: what a missing tie_word_embeddings means. activation: its field's name; activations: by Hugging Face's names.
    defaults: what other missing fields mean, by name; fields without a default must be there.
    """
    known = {"num_key_value_heads": fields.raw("num_attention_heads"), "head_dim": 0, activation: "silu"}
    known |= defaults or {}

    def integer(name: str, *, low: int = 1, **bounds: int) -> int:
        default = {"default": known[name]} if name in known else {}
        return fields.integer(name, low=low, **default, **bounds)

    width, heads = integer("hidden_size"), integer("num_attention_heads")
    kv_heads = integer("num_key_value_heads", low=0 if not heads else 1)
    return {
        "model_type": str(fields.raw("model_type")),
        "vocab_size": integer("vocab_size"),
        "hidden_size": width,
        "intermediate_size": integer("intermediate_size"),
        "num_hidden_layers": integer("num_hidden_layers", high=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _head_dim(fields, width, heads, kv_heads, integer("head_dim", low=0, high=MAX_HEAD_DIM)),
        "hidden_act": fields.choice(activation, known[activation], activations),
        "max_position_embeddings": integer("max_position_embeddings"),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", tied),
    }


def _head_dim(fields: Fields, width: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """head_dim, or else hidden_size / num_attention_heads; notes heads that do not fit together."""
    if heads and kv_heads and heads % kv_heads:
        fields.invalid(f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and {kv_heads}")
    if width and heads and not head_dim:
        if width % heads:
            fields.invalid(f"hidden_size must be a multiple of num_attention_heads, got {width} and {heads}")
        head_dim = width // heads
        if head_dim > MAX_HEAD_DIM:
            fields.invalid(f"heads may be {MAX_HEAD_DIM} wide, hidden_size / num_attention_heads is {head_dim}")
            return 0
    if head_dim % 2:
        fields.invalid(f"rotary positions need an even head_dim, got {head_dim}")
        return 0
    return head_dim


def layer_types(fields: Fields, layers: int, default: Sequence[str]) -> Sequence[str]:
    """ "sliding_attention" or "full_attention" for each layer: the field layer_types, or else `default`."""
    kinds = fields.raw("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != layers or not {SLIDING, FULL}.issuperset(map(str, kinds)):
        fields.invalid(f"layer_types must be {layers} of {FULL} and {SLIDING}, got {kinds!r}")
        return default
    return [str(kind) for kind in kinds]


def layer_windows(fields: Fields, kinds: Sequence[str], window: int, needs: str = "") -> tuple[int, ...]:
    """Keys that each layer's queries see (0: all): `window` where layer_types say "sliding_attention".

    needs: a flag of config.json that must be set when there are such layers.
    """
    if SLIDING in kinds and not window:
        needs = f"{needs} and a " if needs else "a "
        fields.invalid(f"sliding layers need {needs}sliding_window > 0, got {fields.raw('sliding_window')!r}")
    return tuple(window if kind == SLIDING else 0 for kind in kinds)


def qkv(attn: str, c: DecoderConfig, *, bias: bool = False) -> Matrix:
    """Query, key and value projections of the attention stored under `attn`, as one matrix."""
    parts = [("q_proj", c.query_width), ("k_proj", c.kv_width), ("v_proj", c.kv_width)]
    named = [(f"{attn}.{name}", outputs) for name, outputs in parts]
    return joined(f"{attn}.qkv_proj", named, c.hidden_size, bias=bias)


def head_norms(attn: str, c: DecoderConfig, *, offset: float = 0.0) -> list[NormSlice]:
    """q_norm and k_norm [head_dim] of the attention stored under `attn`: each head by itself."""
    q, k = (vector(f"{attn}.{name}.weight", c.head_dim, offset=offset) for name in ("q_norm", "k_norm"))
    return [
        NormSlice(0, c.head_dim, c.num_attention_heads, q),
        NormSlice(c.query_width, c.head_dim, c.num_key_value_heads, k),
    ]


def full_norms(attn: str, c: DecoderConfig) -> list[NormSlice]:
    """q_norm and k_norm over all heads at once: [query_width] and [kv_width]."""
    q, k = vector(f"{attn}.q_norm.weight", c.query_width), vector(f"{attn}.k_norm.weight", c.kv_width)
    return [NormSlice(0, c.query_width, 1, q), NormSlice(c.query_width, c.kv_width, 1, k)]


def gate_up(mlp: str, inputs: int, ffn: int, *, bias: bool = False) -> Matrix:
    """The two input projections of the gated feed-forward block stored under `mlp`, as one matrix."""
    parts = [(f"{mlp}.{name}", ffn) for name in ("gate_proj", "up_proj")]
    return joined(f"{mlp}.gate_up_proj", parts, inputs, bias=bias, gated=True)


def fused_gate_up(name: str, inputs: int, ffn: int) -> Matrix:
    """The same where the checkpoint holds both as one tensor [2 * ffn, inputs], the gate first."""
    shape = (2 * ffn, inputs)
    sources = (Source(f"{name}.weight", shape, end=ffn), Source(f"{name}.weight", shape, begin=ffn))
    return Matrix(name, shape, sources, gated=True)
