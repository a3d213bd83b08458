"""GPT-Neo (model_type gpt_neo): GPT-2's wiring, every other layer with a window, scores that are not scaled.

Weights are plain linears, q, k and v apart and without biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.program import ActivationName, Program
from ..program.recorder import Recorder
from .blocks import ACTIVATIONS, joined, matrix, norm, table
from .fields import MAX_LAYERS, Fields

NAMES = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
# Causal masks that old checkpoints hold, and the heads of classes that do not generate.
IGNORED = (r"h\.\d+\.attn\.attention\.(bias|masked_bias)", r"(score|classifier|qa_outputs)\..*")


@dataclass(frozen=True)
class Config:
    """Hugging Face's GPTNeoConfig, the fields that shape the network.

    windows: keys each layer's queries see (0: all), from attention_types and window_size.
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation_function: ActivationName
    layer_norm_epsilon: float
    tie_word_embeddings: bool
    windows: tuple[int, ...]

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> Config:
        """Raises InvalidConfigError or UnsupportedModelError with everything that is wrong."""
        fields = Fields(config, NAMES)
        width, heads, _ = fields.heads("hidden_size", "num_heads")
        layers = fields.integer("num_layers", high=MAX_LAYERS)
        result = Config(
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=fields.integer("max_position_embeddings", 2048),
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            intermediate_size=fields.integer("intermediate_size", 4 * width, low=1 if width else 0),
            activation_function=fields.choice("activation_function", "gelu_new", ACTIVATIONS),
            layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            windows=_windows(fields, layers),
        )
        fields.finish()
        return result


def _windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """The window of each layer from attention_types, [[["global", "local"], 12]]: names, and how often they repeat."""
    window = fields.integer("window_size", 256)
    types = fields.raw("attention_types")
    types = [[["global", "local"], 12]] if types is None else types
    if not isinstance(types, list) or not all(_is_type(item) for item in types):
        fields.invalid(f'attention_types must be like [[["global", "local"], 12]], got {types!r:.200}')
        return ()
    count = sum(len(names) * times for names, times in types)
    if count != layers:
        fields.invalid(f"attention_types must name {layers} layers, as num_layers does, it names {count}")
        return ()
    return tuple(window if kind == "local" else 0 for names, times in types for kind in names * times)


def _is_type(item: Any) -> bool:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], list):
        return False
    return all(name in ("global", "local") for name in item[0]) and type(item[1]) is int and item[1] >= 0


def canonical(name: str) -> str:
    """GPTNeoForCausalLM puts `transformer.` before what GPTNeoModel has without."""
    return name.removeprefix("transformer.")


def build(config: Mapping[str, Any]) -> Program:
    """The program of a config.json."""
    c = Config.from_dict(config)
    width, ffn, head_dim = c.hidden_size, c.intermediate_size, c.hidden_size // c.num_heads
    r = Recorder("gpt_neo", vocab_size=c.vocab_size, max_positions=c.max_position_embeddings)
    tokens = table("wte", c.vocab_size, width)
    head = tokens if c.tie_word_embeddings else table("lm_head", c.vocab_size, width)

    x = r.hidden(r.embed("embed", tokens, positions=table("wpe", c.max_position_embeddings, width)))
    for i, window in enumerate(c.windows):
        with r.layer(i):
            p, attn = f"h.{i}", f"h.{i}.attn.attention"
            h = r.layer_norm("attn_norm", x, *norm(f"{p}.ln_1", width), c.layer_norm_epsilon)
            qkv = joined(f"{attn}.qkv_proj", [(f"{attn}.{part}_proj", width) for part in "qkv"], width)
            h = r.linear("qkv", h, qkv)
            n = c.num_heads
            h = r.attention("attn", h, num_heads=n, num_kv_heads=n, head_dim=head_dim, scale=1.0, window=window)
            x = r.linear("attn_out", h, matrix(f"{attn}.out_proj", width, width, bias=True), residual=x)
            h = r.layer_norm("ffn_norm", x, *norm(f"{p}.ln_2", width), c.layer_norm_epsilon)
            h = r.linear("ffn_up", h, matrix(f"{p}.mlp.c_fc", ffn, width, bias=True), c.activation_function)
            x = r.linear("ffn_out", h, matrix(f"{p}.mlp.c_proj", width, ffn, bias=True), residual=x)
            if i < c.num_layers - 1:
                r.hidden(x)
    x = r.hidden(r.layer_norm("norm", r.select("last", x), *norm("ln_f", width), c.layer_norm_epsilon))
    logits = r.linear("logits", x, head)
    tied = (("wte.weight", "lm_head.weight"),) if c.tie_word_embeddings else ()
    return r.finish(logits, ignored=IGNORED, aliases=tied)
