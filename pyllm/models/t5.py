"""T5 and what differs from it by fields only: t5 (v1.0, v1.1, FLAN, ByT5, UL2), mt5, umt5 (a bias in every layer).

RMSNorm before each block, no biases, unscaled attention scores with a learned bias by distance (the first layer's is
all layers'), a plain or gated feed-forward. Checkpoints of the ForConditionalGeneration classes, and of T5EncoderModel
as an encoder by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..program.network import Network
from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from ..program.tensors import Buffer, Matrix, RelativeBias, Source
from .blocks import ACTIVATIONS, joined, matrix, table, vector
from .fields import MAX_LAYERS, Fields

POSITIONS = 1 << 20  # distances have no end, so this is a bound for lengths and nothing else
MAX_BUCKETS = 1 << 12
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # copies of `shared` in old checkpoints
# Old checkpoints hold a table for cross-attention that nothing reads; other classes' heads.
IGNORED = (
    r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    r"(classification_head|classifier|qa_outputs)\..*",
)
ENCODER_CLASSES = ("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel")
# feed_forward_proj -> (activation, gated); T5 means the tanh approximation by "gated-gelu", not by "gelu".
FEED_FORWARDS: dict[str, tuple[ActivationName, bool]] = {
    **{name: (activation, False) for name, activation in ACTIVATIONS.items()},
    **{f"gated-{name}": (activation, True) for name, activation in ACTIVATIONS.items()},
    "gated-gelu": ("gelu_tanh", True),
}


@dataclass(frozen=True)
class Config:
    """Hugging Face's T5Config, MT5Config and UMT5Config, the fields that shape the network.

    scale_decoder_outputs: logits are divided by sqrt(d_model), and the head is `shared`. t5 and umt5 say so by
    tie_word_embeddings (true or missing), a config.json of transformers 5 by a field of this name; mt5 never does.
    """

    model_type: str
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    dense_act_fn: ActivationName
    is_gated_act: bool
    scale_decoder_outputs: bool
    encoder_only: bool

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config)
        model_type = str(config["model_type"])
        architectures = config.get("architectures") or [""]
        encoder_only = isinstance(architectures, list) and architectures[0] in ENCODER_CLASSES
        if not encoder_only and not fields.flag("is_encoder_decoder", True):
            fields.unsupported("is_encoder_decoder false: a decoder by itself")
        layers = fields.integer("num_layers", high=MAX_LAYERS)
        buckets = fields.integer("relative_attention_num_buckets", 32, low=4, high=MAX_BUCKETS)
        distance = fields.integer("relative_attention_max_distance", 128, high=MAX_BUCKETS)
        if buckets and distance and distance <= buckets // 2:
            problem = "relative_attention_max_distance must be more than half of relative_attention_num_buckets"
            fields.invalid(f"{problem}, got {distance} and {buckets}")
        default = "relu" if model_type == "t5" else "gated-gelu"
        activation, gated = fields.choice("feed_forward_proj", default, FEED_FORWARDS)
        tied = fields.flag("tie_word_embeddings", True)
        result = Config(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            d_model=fields.integer("d_model"),
            d_kv=fields.integer("d_kv"),
            d_ff=fields.integer("d_ff"),
            num_layers=layers,
            num_decoder_layers=fields.integer("num_decoder_layers", layers, low=min(1, layers), high=MAX_LAYERS),
            num_heads=fields.integer("num_heads"),
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=distance,
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-6),
            dense_act_fn=activation,
            is_gated_act=gated,
            scale_decoder_outputs=model_type != "mt5" and fields.flag("scale_decoder_outputs", tied),
            encoder_only=encoder_only,
        )
        fields.finish()
        return result


def canonical(name: str) -> str:
    """T5ForSequenceClassification and its like put `transformer.` before what the others have without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Network:
    """The network of a config.json."""
    c = Config.from_dict(config)
    if c.encoder_only:
        return Network(c.model_type, encode=_encode(c))
    return Network(c.model_type, encode=_encode(c), step=_step(c))


def _encode(c: Config) -> Program:
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=POSITIONS, causal=False)
    x = r.hidden(r.embed("embed", table("shared", c.vocab_size, c.d_model)))
    for i in range(c.num_layers):
        with r.layer(i):
            p = f"encoder.block.{i}.layer"
            x = _self_attention(r, c, x, "encoder", i)
            x = _feed_forward(r, c, x, f"{p}.1")
            if i + 1 < c.num_layers:
                r.hidden(x)
    h = r.hidden(_norm(r, "norm", x, "encoder.final_layer_norm", c))
    inner = c.num_heads * c.d_kv
    for i in range(0 if c.encoder_only else c.num_decoder_layers):
        with r.layer(i):
            attn = f"decoder.block.{i}.layer.1.EncDecAttention"
            kv = r.linear("cross_kv", h, joined(f"{attn}.kv", [(f"{attn}.k", inner), (f"{attn}.v", inner)], c.d_model))
            r.store_cross(kv, i, num_kv_heads=c.num_heads, head_dim=c.d_kv)
    unused = (r"(decoder|lm_head)\..*",) if c.encoder_only else ()
    copies = EMBEDDINGS[:1] if c.encoder_only else EMBEDDINGS
    aliases = tuple(("shared.weight", copy) for copy in copies)
    return r.finish(r.select("last", h), ignored=IGNORED + unused, aliases=aliases)


def _step(c: Config) -> Program:
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=POSITIONS)
    tokens = table("shared", c.vocab_size, c.d_model)
    inner = c.num_heads * c.d_kv
    x = r.hidden(r.embed("embed", tokens))
    for i in range(c.num_decoder_layers):
        with r.layer(i):
            p = f"decoder.block.{i}.layer"
            x = _self_attention(r, c, x, "decoder", i)
            h = _norm(r, "cross_norm", x, f"{p}.1.layer_norm", c)
            h = r.linear("cross_q", h, matrix(f"{p}.1.EncDecAttention.q", inner, c.d_model))
            count = c.num_heads
            h = r.cross_attention("cross", h, num_heads=count, num_kv_heads=count, head_dim=c.d_kv, scale=1.0)
            x = r.linear("cross_out", h, matrix(f"{p}.1.EncDecAttention.o", c.d_model, inner), residual=x)
            x = _feed_forward(r, c, x, f"{p}.2")
            if i + 1 < c.num_decoder_layers:
                r.hidden(x)
    h = r.hidden(_norm(r, "norm", r.select("last", x), "decoder.final_layer_norm", c))
    if c.scale_decoder_outputs:
        logits = r.linear("logits", h, tokens, scale=c.d_model**-0.5)
        return r.finish(logits, aliases=(("shared.weight", "lm_head.weight"),))
    head = table("lm_head", c.vocab_size, c.d_model)
    return r.finish(r.linear("logits", h, head), fallbacks=(("lm_head.weight", "shared.weight"),))


def _self_attention(r: Recorder, c: Config, x: Buffer, stack: str, layer: int) -> Buffer:
    p = f"{stack}.block.{layer}.layer.0"
    inner = c.num_heads * c.d_kv
    h = _norm(r, "attn_norm", x, f"{p}.layer_norm", c)
    h = r.linear("qkv", h, _fused(f"{p}.SelfAttention", inner, c.d_model))
    h = r.attention(
        "attn",
        h,
        num_heads=c.num_heads,
        num_kv_heads=c.num_heads,
        head_dim=c.d_kv,
        scale=1.0,
        bias=_bias(c, stack, layer if c.model_type == "umt5" else 0),
    )
    return r.linear("attn_out", h, matrix(f"{p}.SelfAttention.o", c.d_model, inner), residual=x)


def _feed_forward(r: Recorder, c: Config, x: Buffer, p: str) -> Buffer:
    h = _norm(r, "ffn_norm", x, f"{p}.layer_norm", c)
    ffn = f"{p}.DenseReluDense"
    if c.is_gated_act:
        weight = joined(f"{ffn}.wi", [(f"{ffn}.wi_0", c.d_ff), (f"{ffn}.wi_1", c.d_ff)], c.d_model, gated=True)
        h = r.linear("ffn_gate_up", h, weight, c.dense_act_fn)
    else:
        h = r.linear("ffn_up", h, matrix(f"{ffn}.wi", c.d_ff, c.d_model), c.dense_act_fn)
    return r.linear("ffn_out", h, matrix(f"{ffn}.wo", c.d_model, c.d_ff), residual=x)


def _norm(r: Recorder, name: str, x: Buffer, weights: str, c: Config) -> Buffer:
    return r.rms_norm(name, x, vector(f"{weights}.weight", c.d_model), c.layer_norm_epsilon)


def _fused(p: str, inner: int, width: int) -> Matrix:
    return joined(f"{p}.qkv", [(f"{p}.q", inner), (f"{p}.k", inner), (f"{p}.v", inner)], width)


def _bias(c: Config, stack: str, layer: int) -> RelativeBias:
    name = f"{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    source = Source(name, (c.relative_attention_num_buckets, c.num_heads))
    found = buckets(
        c.relative_attention_num_buckets, c.relative_attention_max_distance, bidirectional=stack == "encoder"
    )
    return RelativeBias(source, found, -c.relative_attention_max_distance)


@lru_cache(maxsize=8)  # every layer of a stack asks for the same
def buckets(num_buckets: int, max_distance: int, *, bidirectional: bool) -> tuple[int, ...]:
    """Bucket of each distance key - query from -max_distance on: to 0, or to max_distance when bidirectional. Beyond,
    they stay what they are at the ends. Raffel et al. 2020, section 2.1, in the float32 steps of transformers."""
    per_side = num_buckets // 2 if bidirectional else num_buckets
    exact = per_side // 2
    far = np.arange(exact, max_distance + 1)
    logarithm = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    steps = (logarithm * np.float32(per_side - exact)).astype(np.int64)
    behind = [*range(exact), *np.minimum(exact + steps, per_side - 1).tolist()]  # by distance 0, 1, 2, ...
    ahead = [per_side + bucket for bucket in behind[1:]] if bidirectional else []
    return (*behind[::-1], *ahead)
