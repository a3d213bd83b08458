"""GPT-2 (model_type gpt2): learned positions, LayerNorm before each block, one fused qkv, GELU, a tied or own head.

Checkpoints of GPT2LMHeadModel, GPT2Model and, as their head is tied, of the other GPT-2 classes.
`reorder_and_upcast_attn` is accepted: it asks for float32 scores, which every kernel here has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, conv1d, table, vector
from .fields import GPT2_NAMES, MAX_LAYERS, Fields

# Causal masks that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (r"h\.\d+\.attn\.(bias|masked_bias)", r"(score|classifier|qa_outputs|multiple_choice_head\.summary)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's GPT2Config, the fields that shape the network."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: ActivationName
    layer_norm_epsilon: float
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
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
            n_inner=fields.integer("n_inner", 4 * width),
            activation_function=fields.choice("activation_function", "gelu_new", ACTIVATIONS),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            scale_attn_weights=fields.flag("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=fields.flag("scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """GPT2LMHeadModel puts `transformer.` before what GPT2Model (and the Hub's gpt2) has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, head_dim = c.n_embd, c.n_embd // c.n_head
    r = Recorder("gpt2", vocab_size=c.vocab_size, max_positions=c.n_positions)
    tokens = table("wte", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)

    x = r.hidden(r.embed("embed", tokens, positions=table("wpe", c.n_positions, width)))
    for i in range(c.n_layer):
        scale = head_dim**-0.5 if c.scale_attn_weights else 1.0
        scale /= i + 1 if c.scale_attn_by_inverse_layer_idx else 1
        with r.layer(i):
            p = f"h.{i}"
            h = _norm(r, "attn_norm", x, f"{p}.ln_1", c)
            h = r.linear("qkv", h, conv1d(f"{p}.attn.c_attn", 3 * width, width))
            h = r.attention("attn", h, num_heads=c.n_head, num_kv_heads=c.n_head, head_dim=head_dim, scale=scale)
            x = r.linear("attn_out", h, conv1d(f"{p}.attn.c_proj", width, width), residual=x)
            h = _norm(r, "ffn_norm", x, f"{p}.ln_2", c)
            h = r.linear("ffn_up", h, conv1d(f"{p}.mlp.c_fc", c.n_inner, width), c.activation_function)
            x = r.linear("ffn_out", h, conv1d(f"{p}.mlp.c_proj", width, c.n_inner), residual=x)
            if i < c.n_layer - 1:
                r.hidden(x)
    x = r.hidden(_norm(r, "norm", r.select("last", x), "ln_f", c))
    logits = r.linear("logits", x, head)
    tied = (("wte.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)


def _norm(r: Recorder, name: str, x: Any, weights: str, c: Config) -> Any:
    weight, bias = vector(f"{weights}.weight", c.n_embd), vector(f"{weights}.bias", c.n_embd)
    return r.layer_norm(name, x, weight, bias, c.layer_norm_epsilon)
