"""MPT (model_type mpt): ALiBi, no biases anywhere, GELU, a tied head.

attn_config and expansion_ratio are read as the MPT's own code reads them; transformers leaves out alibi_bias_max other
than 8, qk_ln and expansion_ratio other than 4, whatever config.json says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import NormSlice, Program
from ..program.recorder import Recorder
from ..program.tensors import Alibi, Buffer
from .alibi import mpt_slopes
from .blocks import matrix, table, vector
from .fields import MAX_LAYERS, Fields

NAMES = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
# Fields that ask for something else than what is described here: (field, what it is where nothing is asked for).
PLAIN = (
    ("attn_config.attn_type", "multihead_attention"),
    ("attn_config.alibi", True),
    ("attn_config.clip_qkv", None),
    ("attn_config.prefix_lm", False),
    ("attn_config.rope", False),
    ("attn_config.sliding_window_size", -1),
    ("attn_config.attn_uses_sequence_id", False),
    ("logit_scale", None),
    ("no_bias", True),
)
NORMS = {"low_precision_layernorm": "layer", "layernorm": "layer"}


@dataclass(frozen=True)
class Config:
    """Hugging Face's MptConfig and its attn_config, the fields that shape the network."""

    vocab_size: int
    max_seq_len: int
    d_model: int
    expansion_ratio: int
    n_layers: int
    n_heads: int
    layer_norm_epsilon: float
    softmax_scale: float
    alibi_bias_max: float
    qk_ln: bool
    tie_word_embeddings: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        attention = config.get("attn_config")
        flat = {f"attn_config.{key}": value for key, value in attention.items()} if isinstance(attention, dict) else {}
        fields = Fields({**config, **flat}, NAMES)
        if attention is not None and not isinstance(attention, dict):
            fields.invalid(f"attn_config must be an object, got {attention!r:.80}")
        width, heads, head_dim = fields.heads("d_model", "n_heads")
        for name, plain in PLAIN:
            value = fields.raw(name)
            if value is not None and value != plain:
                fields.unsupported(f"{name} {value!r}")
        fields.choice("norm_type", "low_precision_layernorm", NORMS)
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_seq_len=fields.integer("max_seq_len"),
            d_model=width,
            expansion_ratio=fields.integer("expansion_ratio", 4, high=1024),
            n_layers=fields.integer("n_layers", high=MAX_LAYERS),
            n_heads=heads,
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            softmax_scale=fields.number("attn_config.softmax_scale", head_dim**-0.5 if head_dim else 1.0),
            alibi_bias_max=fields.number("attn_config.alibi_bias_max", 8),
            qk_ln=fields.flag("attn_config.qk_ln", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """MptForCausalLM puts `transformer.` before what MptModel has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn = c.d_model, c.expansion_ratio * c.d_model
    r = Recorder("mpt", vocab_size=c.vocab_size, max_positions=c.max_seq_len)
    tokens = table("wte", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)
    alibi = Alibi(tuple(mpt_slopes(c.n_heads, c.alibi_bias_max).tolist()))

    x = r.hidden(r.embed("embed", tokens))
    for i in range(c.n_layers):
        with r.layer(i):
            p = f"blocks.{i}"
            h = _norm(r, "attn_norm", x, f"{p}.norm_1", c)
            h = r.linear("qkv", h, matrix(f"{p}.attn.Wqkv", 3 * width, width))
            h = _qk_norm(r, h, f"{p}.attn", c) if c.qk_ln else h
            h = r.attention(
                "attn",
                h,
                num_heads=c.n_heads,
                num_kv_heads=c.n_heads,
                head_dim=width // c.n_heads,
                scale=c.softmax_scale,
                bias=alibi,
            )
            x = r.linear("attn_out", h, matrix(f"{p}.attn.out_proj", width, width), residual=x)
            h = _norm(r, "ffn_norm", x, f"{p}.norm_2", c)
            h = r.linear("ffn_up", h, matrix(f"{p}.ffn.up_proj", ffn, width), "gelu")
            x = r.linear("ffn_out", h, matrix(f"{p}.ffn.down_proj", width, ffn), residual=x)
            if i < c.n_layers - 1:
                r.hidden(x)
    x = r.hidden(_norm(r, "norm", r.select("last", x), "norm_f", c))
    logits = r.linear("logits", x, head)
    tied = (("wte.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, aliases=tied)


def _norm(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    return r.layer_norm(name, x, vector(f"{weights}.weight", c.d_model), None, c.layer_norm_epsilon)


def _qk_norm(r: Recorder, qkv: Buffer, attn: str, c: Config) -> Buffer:
    """Queries and keys are normalised over all their heads together."""
    q, k = (vector(f"{attn}.{part}_ln.weight", c.d_model) for part in "qk")
    slices = [NormSlice(0, c.d_model, 1, q), NormSlice(c.d_model, c.d_model, 1, k)]
    return r.head_norm("qk_norm", qkv, "layer", slices, c.layer_norm_epsilon)
