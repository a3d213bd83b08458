"""GPTBigCode (model_type gpt_bigcode: SantaCoder, StarCoder): GPT-2's wiring with plain linears and, with multi_query,
one key/value head for all queries. Without it qkv is fused head by head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, grouped_qkv, matrix, norm, table
from .fields import GPT2_NAMES, MAX_LAYERS, Fields

# Causal masks that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (r"h\.\d+\.attn\.(bias|masked_bias)", r"(score|classifier|qa_outputs)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's GPTBigCodeConfig, the fields that shape the network."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: ActivationName
    layer_norm_epsilon: float
    scale_attn_weights: bool
    multi_query: bool
    tie_word_embeddings: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, GPT2_NAMES)
        width, heads, _ = fields.heads("n_embd", "n_head")
        if fields.flag("add_cross_attention", False):
            fields.unsupported("add_cross_attention: attention to an encoder")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            n_positions=fields.integer("n_positions"),
            n_embd=width,
            n_layer=fields.integer("n_layer", high=MAX_LAYERS),
            n_head=heads,
            n_inner=fields.integer("n_inner", 4 * width, low=1 if width else 0),
            activation_function=fields.choice("activation_function", "gelu_pytorch_tanh", ACTIVATIONS),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            scale_attn_weights=fields.flag("scale_attn_weights", True),
            multi_query=fields.flag("multi_query", True),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """GPTBigCodeForCausalLM puts `transformer.` before what GPTBigCodeModel has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, head_dim = c.n_embd, c.n_inner, c.n_embd // c.n_head
    kv_heads = 1 if c.multi_query else c.n_head
    r = Recorder("gpt_bigcode", vocab_size=c.vocab_size, max_positions=c.n_positions)
    tokens = table("wte", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)

    x = r.hidden(r.embed("embed", tokens, positions=table("wpe", c.n_positions, width)))
    for i in range(c.n_layer):
        scale = head_dim**-0.5 if c.scale_attn_weights else 1.0
        with r.layer(i):
            p = f"h.{i}"
            h = r.layer_norm("attn_norm", x, *norm(f"{p}.ln_1", width), c.layer_norm_epsilon)
            h = r.linear("qkv", h, grouped_qkv(f"{p}.attn.c_attn", width, c.n_head, kv_heads, head_dim, bias=True))
            h = r.attention("attn", h, num_heads=c.n_head, num_kv_heads=kv_heads, head_dim=head_dim, scale=scale)
            x = r.linear("attn_out", h, matrix(f"{p}.attn.c_proj", width, width, bias=True), residual=x)
            h = r.layer_norm("ffn_norm", x, *norm(f"{p}.ln_2", width), c.layer_norm_epsilon)
            h = r.linear("ffn_up", h, matrix(f"{p}.mlp.c_fc", ffn, width, bias=True), c.activation_function)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.c_proj", width, ffn, bias=True), residual=x)
            if i < c.n_layer - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("ln_f", width), c.layer_norm_epsilon))
    logits = r.linear("logits", x, head)
    tied = (("wte.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)
