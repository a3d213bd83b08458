"""Llama with a mixture of experts for a feed-forward block: mixtral, qwen2_moe (a shared expert, layers without
experts, biases of q, k, v), qwen3_moe (normalised heads), olmoe (queries and keys normalised over all heads).

Checkpoints hold a tensor for each projection of each expert, as those on the Hub do and transformers' save_pretrained
writes, or the experts of a layer stacked, as transformers 5 has them in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import Program
from ..program.recorder import Recorder
from ..program.tensors import Matrix
from .blocks import joined, matrix, vector
from .decoder import (
    FULL,
    IGNORED,
    SLIDING,
    DecoderConfig,
    decoder_fields,
    full_norms,
    gate_up,
    head_norms,
    layer_types,
    layer_windows,
    qkv,
)
from .fields import Fields
from .rope import DEFAULT_THETA, RopeParameters, rope_from_fields
from .stacked import UnstackedCheckpoint

PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
MIXTRAL_NAMES = re.compile(r"(?<=\d)\.(w[123])\.weight$")
MAX_EXPERTS = 1 << 17  # of all layers together; the largest models have some 24,000


@dataclass(frozen=True)
class Family:
    """What a model_type has, and how it names its fields."""

    experts: str = "num_experts"
    expert_width: str = "moe_intermediate_size"
    top_k: int = 4
    normalize: bool | None = None  # the weights of the chosen experts; None: as norm_topk_prob says
    shared: bool = False
    dense_layers: bool = True  # decoder_sparse_step and mlp_only_layers are its fields
    bias: str = "attention_bias"  # the field for biases of q, k and v
    qk_norm: str = ""  # "head": each head by itself; "all": all heads at once
    theta: float = DEFAULT_THETA
    eps: float = 1e-6


FAMILIES = {
    "mixtral": Family(
        experts="num_local_experts",
        expert_width="intermediate_size",
        top_k=2,
        normalize=True,
        dense_layers=False,
        bias="",
        theta=1e6,
        eps=1e-5,
    ),
    "qwen2_moe": Family(shared=True, bias="qkv_bias"),
    "qwen3_moe": Family(qk_norm="head", top_k=8),
    "olmoe": Family(expert_width="intermediate_size", top_k=8, dense_layers=False, qk_norm="all", eps=1e-5),
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Hugging Face's MixtralConfig, Qwen2MoeConfig, ...: the fields that shape the network.

    sparse: whether each layer has experts; the others have a feed-forward block of intermediate_size. expert_width and
    shared_width: the hidden sizes of an expert and of the shared expert (0: there is none).
    """

    rms_norm_eps: float
    qkv_bias: bool
    out_bias: bool
    windows: tuple[int, ...]
    rope: RopeParameters
    sparse: tuple[bool, ...]
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    expert_width: int
    shared_width: int

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        family = FAMILIES[config["model_type"]]
        other = "num_experts" if family.experts == "num_local_experts" else "num_local_experts"
        fields = Fields(config, also={other: family.experts})  # transformers 5 writes either
        shared = decoder_fields(fields)
        layers = shared["num_hidden_layers"]
        experts = fields.integer(family.experts, low=0 if family.dense_layers else 1)
        if layers * experts > MAX_EXPERTS:
            fields.invalid(f"all layers may have {MAX_EXPERTS} experts, {layers} layers of {experts} are more")
            experts = 0
        top_k = fields.integer("num_experts_per_tok", family.top_k)
        if experts and top_k > experts:
            fields.invalid(f"num_experts_per_tok may be at most {family.experts}, got {top_k} and {experts}")
        if fields.raw("clip_qkv") is not None:
            fields.unsupported("clip_qkv: bounded queries, keys and values")
        bias = bool(family.bias) and fields.flag(family.bias, family.bias == "qkv_bias")
        normalize = fields.flag("norm_topk_prob", False) if family.normalize is None else family.normalize
        result = Config(
            **shared,
            rms_norm_eps=fields.number("rms_norm_eps", family.eps),
            qkv_bias=bias,
            out_bias=bias and family.bias == "attention_bias",
            windows=_windows(fields, shared["model_type"], layers),
            rope=rope_from_fields(fields, shared["head_dim"], shared["max_position_embeddings"], theta=family.theta),
            sparse=_sparse(fields, layers, experts) if family.dense_layers else (True,) * layers,
            num_experts=experts,
            num_experts_per_tok=top_k,
            norm_topk_prob=normalize,
            expert_width=fields.integer(family.expert_width),
            shared_width=fields.integer("shared_expert_intermediate_size") if family.shared else 0,
        )
        fields.finish()
        return result


def _sparse(fields: Fields, layers: int, experts: int) -> tuple[bool, ...]:
    """Which layers have experts: every decoder_sparse_step-th, but those of mlp_only_layers."""
    step = fields.integer("decoder_sparse_step", 1) or 1
    dense = fields.integers("mlp_only_layers", below=max(layers, 1))
    return tuple(experts > 0 and i not in dense and (i + 1) % step == 0 for i in range(layers))


def _windows(fields: Fields, model_type: str, layers: int) -> tuple[int, ...]:
    """The sliding window of each layer; 0 where all keys are seen."""
    if model_type == "olmoe":
        return (0,) * layers
    window = fields.integer("sliding_window", 0, low=0)
    if model_type == "mixtral":
        return (window,) * layers
    used = fields.flag("use_sliding_window", False)
    if model_type == "qwen3_moe":
        return layer_windows(fields, [SLIDING if used else FULL] * layers, window, needs="use_sliding_window")
    first = fields.integer("max_window_layers", 28, low=0)
    default = [SLIDING if used and i % 2 == 0 and i < first else FULL for i in range(layers)]
    return layer_windows(fields, layer_types(fields, layers, default), window * used, needs="use_sliding_window")


def canonical(name: str) -> str:
    """The ForCausalLM classes put `model.` before what the models have without; Mixtral names its experts otherwise."""
    name = name.removeprefix("model.").replace(".block_sparse_moe.", ".mlp.")
    return MIXTRAL_NAMES.sub(lambda found: f".{PROJECTIONS[found[1]]}.weight", name)


unstacked = UnstackedCheckpoint  # the view of a checkpoint that is bound


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c, family = Config.from_dict(config), FAMILIES[config["model_type"]]
    width, ffn, eps = c.hidden_size, c.intermediate_size, c.rms_norm_eps
    r = Recorder(c.model_type, vocab_size=c.vocab_size, max_positions=c.rope.max_positions)
    tokens, head = c.tables

    x = r.embed("embed", tokens)
    rope = r.rotary("rope", c.rope.inv_freq, c.rope.scaling)
    for i in range(c.num_hidden_layers):
        with r.layer(i):
            attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            r.hidden(x)
            h = r.rms_norm("attn_norm", x, vector(f"layers.{i}.input_layernorm.weight", width), eps)
            h = r.linear("qkv", h, qkv(attn, c, bias=c.qkv_bias))
            if family.qk_norm:
                norms = head_norms(attn, c) if family.qk_norm == "head" else full_norms(attn, c)
                h = r.head_norm("qk_norm", h, "rms", norms, eps)
            h = r.attention("attn", h, **c.heads, scale=c.head_dim**-0.5, rope=rope, window=c.windows[i])
            x = r.linear("attn_out", h, matrix(f"{attn}.o_proj", width, c.query_width, bias=c.out_bias), residual=x)
            h = r.rms_norm("ffn_norm", x, vector(f"layers.{i}.post_attention_layernorm.weight", width), eps)
            if c.sparse[i]:
                x = r.experts(
                    "ffn_experts",
                    h,
                    r.linear("ffn_router", h, _router(mlp, c)),
                    [_expert(f"{mlp}.experts.{e}", width, c.expert_width) for e in range(c.num_experts)],
                    top_k=c.num_experts_per_tok,
                    activation=c.hidden_act,
                    normalize=c.norm_topk_prob,
                    shared=_expert(f"{mlp}.shared_expert", width, c.shared_width) if c.shared_width else None,
                    residual=x,
                )
            else:
                h = r.linear("ffn_gate_up", h, gate_up(mlp, width, ffn), c.hidden_act)
                x = r.linear("ffn_out", h, matrix(f"{mlp}.down_proj", width, ffn), residual=x)
    x = r.hidden(r.rms_norm("norm", r.select("last", x), vector("norm.weight", width), eps))
    return r.finish(r.linear("logits", x, head), ignored=IGNORED, aliases=c.aliases)


def _router(mlp: str, c: Config) -> Matrix:
    """One output an expert, and one for the gate of the shared expert."""
    shared = [(f"{mlp}.shared_expert_gate", 1)] if c.shared_width else []
    return joined(f"{mlp}.gate", [(f"{mlp}.gate", c.num_experts), *shared], c.hidden_size)


def _expert(prefix: str, inputs: int, ffn: int) -> tuple[Matrix, Matrix]:
    """Its gated input projection and its output projection."""
    return gate_up(prefix, inputs, ffn), matrix(f"{prefix}.down_proj", inputs, ffn)
