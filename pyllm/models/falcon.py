"""Falcon (model_type falcon), three wirings in one configuration:

    falcon-7b, falcon-40b, falcon-11b   attention and feed-forward side by side (parallel_attn), rotary positions; one
                                        key/value head (multi_query) or groups (new_decoder_architecture, which may
                                        have a norm for each side)
    falcon-rw                           one after the other, ALiBi, as many key/value heads as heads

ALiBi: as transformers does, slopes are rounded to bfloat16 and scaled like the scores. transformers also rounds each
product of slope and key position to bfloat16, which depends on where a text begins and is not done here: both are the
same up to 256 positions when the number of heads divides 8, and differ by 2^-9 of a bias at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from ..program.reference import round_bf16
from ..program.tensors import Alibi, Buffer
from .alibi import bloom_slopes
from .blocks import ACTIVATIONS, grouped_qkv, matrix, norm, table
from .fields import MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

NAMES = {"n_embed": "hidden_size"}
# Frequencies that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (
    r"(h\.\d+\.self_attention\.)?(maybe_rotary|rotary|rotary_emb)\.inv_freq",
    r"(score|classifier|qa_outputs)\..*",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's FalconConfig, the fields that shape the network.

    num_kv_heads: the field of that name with new_decoder_architecture only, else by multi_query. parallel_norms: 1 or 2
    of attention and feed-forward side by side, 0 where they follow each other. rope: None with alibi.
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    ffn_hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_kv_heads: int
    activation: ActivationName
    layer_norm_epsilon: float
    bias: bool
    parallel_norms: int
    tie_word_embeddings: bool
    rope: RopeParameters | None

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, NAMES)
        width, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        positions = fields.integer("max_position_embeddings", 2048)
        alibi, new = fields.flag("alibi", False), fields.flag("new_decoder_architecture", False)
        multi_query = fields.flag("multi_query", True) and not new
        kv_heads = fields.kv_heads("num_kv_heads", "num_attention_heads", heads) if new else heads
        if not alibi and head_dim % 2:
            fields.invalid(f"rotary positions need an even hidden_size / num_attention_heads, got {head_dim}")
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=positions,
            hidden_size=width,
            ffn_hidden_size=fields.integer("ffn_hidden_size", 4 * width, low=1 if width else 0),
            num_hidden_layers=fields.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_kv_heads=1 if multi_query else kv_heads,
            activation=fields.choice("activation", "gelu", ACTIVATIONS),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            bias=fields.flag("bias", False),
            parallel_norms=_parallel_norms(fields, new),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            rope=None if alibi else rope_from_fields(fields, head_dim, positions),
        )
        fields.finish()
        return result


def _parallel_norms(fields: Fields, new: bool) -> int:
    parallel = fields.flag("parallel_attn", True)
    norms = fields.integer("num_ln_in_parallel_attn", 2 if new else 1, high=2)
    if new and not parallel:
        fields.unsupported("new_decoder_architecture without parallel_attn")
    if not new and parallel and norms == 2:
        fields.unsupported("num_ln_in_parallel_attn 2 without new_decoder_architecture")
    return norms if parallel else 0


def canonical(name: str) -> str:
    """FalconForCausalLM puts `transformer.` before what FalconModel has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, heads = c.hidden_size, c.ffn_hidden_size, c.num_attention_heads
    head_dim = width // heads
    scale = head_dim**-0.5
    positions = c.rope.max_positions if c.rope else c.max_position_embeddings
    r = Recorder("falcon", vocab_size=c.vocab_size, max_positions=positions)
    tokens = table("word_embeddings", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)
    alibi = None if c.rope else Alibi(tuple((round_bf16(bloom_slopes(heads)) * scale).tolist()))

    x = r.hidden(r.embed("embed", tokens))
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling) if c.rope else None
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            p, attn = f"h.{i}", f"h.{i}.self_attention"
            qkv = grouped_qkv(f"{attn}.query_key_value", width, heads, c.num_kv_heads, head_dim, bias=c.bias)
            n = _norm(r, "attn_norm", x, f"{p}.ln_attn" if c.parallel_norms == 2 else f"{p}.input_layernorm", c)
            h = r.linear("qkv", n, qkv)
            h = r.attention(
                "attn",
                h,
                num_heads=heads,
                num_kv_heads=c.num_kv_heads,
                head_dim=head_dim,
                scale=scale,
                rope=rope,
                bias=alibi,
            )
            y = r.linear("attn_out", h, matrix(f"{attn}.dense", width, width, bias=c.bias), residual=x)
            if c.parallel_norms == 2:
                n = _norm(r, "ffn_norm", x, f"{p}.ln_mlp", c)
            elif not c.parallel_norms:
                n = _norm(r, "ffn_norm", y, f"{p}.post_attention_layernorm", c)
            h = r.linear("ffn_up", n, matrix(f"{p}.mlp.dense_h_to_4h", ffn, width, bias=c.bias), c.activation)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.dense_4h_to_h", width, ffn, bias=c.bias), residual=y)
            if i < c.num_hidden_layers - 1:
                r.hidden(x)
    x = r.hidden(_norm(r, "norm", r.select("last", x), "ln_f", c))
    logits = r.linear("logits", x, head)
    tied = (("word_embeddings.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)


def _norm(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    return r.layer_norm(name, x, *norm(weights, c.hidden_size), c.layer_norm_epsilon)
