"""GPT-J and CodeGen (model_types gptj, codegen): one norm before attention and feed-forward, which run side by side.

Rotary positions in pairs on the first `rotary_dim` elements of a head, an own head with a bias. The two differ in how
q, k and v are stored: GPT-J has three matrices, CodeGen one that was trained in four parts, each holding q, v and k of
a quarter of the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from ..program.tensors import Matrix, Source
from .blocks import ACTIVATIONS, joined, matrix, norm, rearranged, table
from .fields import GPT2_NAMES, MAX_LAYERS, Fields
from .rope import RopeParameters, rope_from_fields

CODEGEN_PARTS = 4
# Causal masks and sines that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (
    r"h\.\d+\.attn\.(bias|masked_bias|causal_mask|embed_positions)",
    r"rotary_emb\.embed_positions",
    r"(score|qa_outputs)\..*",
)


@dataclass(frozen=True)
class Config:
    """Hugging Face's GPTJConfig and CodeGenConfig, the fields that shape the network. rope: from rotary_dim."""

    model_type: str
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: ActivationName
    layer_norm_epsilon: float
    tie_word_embeddings: bool
    rope: RopeParameters

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, GPT2_NAMES)
        model_type = str(config["model_type"])
        width, heads, head_dim = fields.heads("n_embd", "n_head")
        rotary_dim = fields.integer("rotary_dim", 64)
        if head_dim and (rotary_dim > head_dim or rotary_dim % 2):
            fields.invalid(f"rotary_dim must be an even number up to the head width {head_dim}, got {rotary_dim}")
        if model_type == "codegen" and width % CODEGEN_PARTS:
            fields.invalid(f"n_embd must be a multiple of {CODEGEN_PARTS}, got {width}")
        result = Config(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            n_positions=fields.integer("n_positions", 2048),
            n_embd=width,
            n_layer=fields.integer("n_layer", high=MAX_LAYERS),
            n_head=heads,
            n_inner=fields.integer("n_inner", 4 * width, low=1 if width else 0),
            activation_function=fields.choice("activation_function", "gelu_new", ACTIVATIONS),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            rope=RopeParameters(()),
        )
        fields.finish()
        # No field scales these frequencies: they are those of theta 10000 over rotary_dim elements.
        return replace(result, rope=rope_from_fields(Fields({}), rotary_dim, result.n_positions))


def canonical(name: str) -> str:
    """GPTJForCausalLM puts `transformer.` before what GPTJModel has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, head_dim = c.n_embd, c.n_embd // c.n_head
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.n_positions)
    tokens = table("wte", c.vocab_size, width)
    weight = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)
    head = replace(weight, name="lm_head", bias=(Source("lm_head.bias", (c.vocab_size,)),))

    x = r.hidden(r.embed("embed", tokens))
    rope = r.rotary("rope", c.rope.inv_freq)
    for i in range(c.n_layer):
        with r.layer(i):
            p = f"h.{i}"
            h = r.layer_norm("norm", x, *norm(f"{p}.ln_1", width), c.layer_norm_epsilon)
            qkv = r.linear("qkv", h, _qkv(c, f"{p}.attn"))
            a = r.attention(
                "attn",
                qkv,
                num_heads=c.n_head,
                num_kv_heads=c.n_head,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                rope=rope,
                rope_interleaved=True,
            )
            x = r.linear("attn_out", a, matrix(f"{p}.attn.out_proj", width, width), residual=x)
            h = r.linear("ffn_up", h, matrix(f"{p}.mlp.fc_in", c.n_inner, width, bias=True), c.activation_function)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.fc_out", width, c.n_inner, bias=True), residual=x)
            if i < c.n_layer - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("ln_f", width), c.layer_norm_epsilon))
    logits = r.linear("logits", x, head)
    tied = (("wte.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)


def _qkv(c: Config, attn: str) -> Matrix:
    width = c.n_embd
    if c.model_type == "gptj":
        return joined(f"{attn}.qkv_proj", [(f"{attn}.{part}_proj", width) for part in "qkv"], width)
    part = width // CODEGEN_PARTS
    starts = [  # q, then k, then v; stored as q, v, k in each part
        [(3 * block + place) * part for block in range(CODEGEN_PARTS)] for place in (0, 2, 1)
    ]
    pieces = [(start, start + part) for places in starts for start in places]
    return rearranged(f"{attn}.qkv_proj", 3 * width, width, pieces)
