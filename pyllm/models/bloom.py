"""BLOOM (model_type bloom): a norm right after the embedding, ALiBi instead of positions, qkv fused head by head.

GELU in its tanh form, a tied head. ALiBi has no last position: seq_length, what the model was trained on, bounds a
sequence here (2048 where the file does not say).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import Program
from ..program.recorder import Recorder
from ..program.tensors import Alibi
from .alibi import bloom_slopes
from .blocks import grouped_qkv, matrix, norm, table
from .fields import MAX_LAYERS, Fields

NAMES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
IGNORED = (r"(score|classifier|qa_outputs)\..*",)


@dataclass(frozen=True)
class Config:
    """Hugging Face's BloomConfig, the fields that shape the network."""

    vocab_size: int
    seq_length: int
    hidden_size: int
    n_layer: int
    n_head: int
    layer_norm_epsilon: float
    apply_residual_connection_post_layernorm: bool
    tie_word_embeddings: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, NAMES)
        width, heads, _ = fields.heads("hidden_size", "n_head")
        inner = fields.integer("n_inner", 4 * width, low=0)
        if width and inner != 4 * width:
            fields.unsupported(f"n_inner other than 4 * hidden_size ({inner})")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            seq_length=fields.integer("seq_length", 2048),
            hidden_size=width,
            n_layer=fields.integer("n_layer", high=MAX_LAYERS),
            n_head=heads,
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            apply_residual_connection_post_layernorm=fields.flag("apply_residual_connection_post_layernorm", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """BloomForCausalLM puts `transformer.` before what BloomModel (and the Hub's bloom) has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, head_dim = c.hidden_size, 4 * c.hidden_size, c.hidden_size // c.n_head
    r = Recorder("bloom", vocab_size=c.vocab_size, max_positions=c.seq_length)
    tokens = table("word_embeddings", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)
    alibi = Alibi(tuple(bloom_slopes(c.n_head).tolist()))
    from_norm = c.apply_residual_connection_post_layernorm

    x = r.embed("embed", tokens)
    x = r.hidden(r.layer_norm("embed_norm", x, *norm("word_embeddings_layernorm", width), c.layer_norm_epsilon))
    for i in range(c.n_layer):
        with r.layer(i):
            p, attn = f"h.{i}", f"h.{i}.self_attention"
            qkv = grouped_qkv(f"{attn}.query_key_value", width, c.n_head, c.n_head, head_dim, bias=True)
            h = r.layer_norm("attn_norm", x, *norm(f"{p}.input_layernorm", width), c.layer_norm_epsilon)
            residual = h if from_norm else x
            h = r.linear("qkv", h, qkv)
            h = r.attention(
                "attn",
                h,
                num_heads=c.n_head,
                num_kv_heads=c.n_head,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                bias=alibi,
            )
            x = r.linear("attn_out", h, matrix(f"{attn}.dense", width, width, bias=True), residual=residual)
            h = r.layer_norm("ffn_norm", x, *norm(f"{p}.post_attention_layernorm", width), c.layer_norm_epsilon)
            residual = h if from_norm else x
            h = r.linear("ffn_up", h, matrix(f"{p}.mlp.dense_h_to_4h", ffn, width, bias=True), "gelu_tanh")
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.dense_4h_to_h", width, ffn, bias=True), residual=residual)
            if i < c.n_layer - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("ln_f", width), c.layer_norm_epsilon))
    logits = r.linear("logits", x, head)
    tied = (("word_embeddings.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)
