"""Phi-1, Phi-1.5 and Phi-2 (model_type phi): one norm before attention and feed-forward, which run side by side.

Rotary positions on a part of each head, biases everywhere, an own head with a bias; queries and keys may be normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..program.program import ActivationName, NormSlice, Program
from ..program.recorder import Recorder
from ..program.tensors import Buffer, Source
from .blocks import ACTIVATIONS, joined, matrix, norm, table
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

# Frequencies that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", r"(score|classifier|qa_outputs)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's PhiConfig, the fields that shape the network. rope: from rope_parameters and its companions."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    hidden_act: ActivationName
    layer_norm_eps: float
    qk_layernorm: bool
    tie_word_embeddings: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        positions = fields.integer("max_position_embeddings", 2048)
        if fields.integer("head_dim", head_dim, low=0) != head_dim:
            fields.unsupported("head_dim other than hidden_size / num_attention_heads")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=positions,
            hidden_size=width,
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=fields.kv_heads("num_key_value_heads", "num_attention_heads", heads),
            hidden_act=fields.choice("hidden_act", "gelu_new", ACTIVATIONS),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
            qk_layernorm=fields.flag("qk_layernorm", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=rope_from_fields(fields, head_dim, positions, partial=0.5),
        )
        fields.finish()
        return result

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


def canonical(name: str) -> str:
    """PhiForCausalLM puts `model.` before what PhiModel has without."""
    return name.removeprefix("model.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, kv = c.hidden_size, c.intermediate_size, c.num_key_value_heads * c.head_dim
    r = Recorder("phi", vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens = table("embed_tokens", c.vocab_size, width)
    weight = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)
    head = replace(weight, name="lm_head", bias=(Source("lm_head.bias", (c.vocab_size,)),))

    x = r.hidden(r.embed("embed", tokens))
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            p, attn = f"layers.{i}", f"layers.{i}.self_attn"
            qkv = [(f"{attn}.q_proj", width), (f"{attn}.k_proj", kv), (f"{attn}.v_proj", kv)]
            h = r.layer_norm("norm", x, *norm(f"{p}.input_layernorm", width), c.layer_norm_eps)
            a = r.linear("qkv", h, joined(f"{attn}.qkv_proj", qkv, width, bias=True))
            a = _qk_norm(r, a, attn, c) if c.qk_layernorm else a
            a = r.attention(
                "attn",
                a,
                num_heads=c.num_attention_heads,
                num_kv_heads=c.num_key_value_heads,
                head_dim=c.head_dim,
                scale=c.head_dim**-0.5,
                rope=rope,
            )
            x = r.linear("attn_out", a, matrix(f"{attn}.dense", width, width, bias=True), residual=x)
            h = r.linear("ffn_up", h, matrix(f"{p}.mlp.fc1", ffn, width, bias=True), c.hidden_act)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.fc2", width, ffn, bias=True), residual=x)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("final_layernorm", width), c.layer_norm_eps))
    logits = r.linear("logits", x, head)
    tied = (("embed_tokens.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)


def _qk_norm(r: Recorder, qkv: Buffer, attn: str, c: Config) -> Buffer:
    """One norm for all query heads, one for all key heads."""
    q, k = (norm(f"{attn}.{part}_layernorm", c.head_dim) for part in "qk")
    slices = [
        NormSlice(0, c.head_dim, c.num_attention_heads, *q),
        NormSlice(c.hidden_size, c.head_dim, c.num_key_value_heads, *k),
    ]
    return r.head_norm("qk_norm", qkv, "layer", slices, c.layer_norm_eps)
