"""Model families: which there are, and the way from a config.json and a checkpoint to a program with its tensors."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.quantized import quantized_view
from ..errors import InvalidConfigError, UnsupportedModelError
from ..program.network import Network, as_network
from ..program.program import Program
from .binding import BoundCheckpoint, bind_tensors
from .encoders import without_head

# model_type -> the module that describes it. A module has Config, canonical(name) and build(config), in this order,
# and perhaps unstacked(checkpoint), a view of the checkpoint with the tensors that the model has.
REGISTRY: dict[str, str] = {
    "gpt2": "pyllm.models.gpt2",
    "gptj": "pyllm.models.gptj",
    "codegen": "pyllm.models.gptj",
    "gpt_neo": "pyllm.models.gpt_neo",
    "gpt_neox": "pyllm.models.gpt_neox",
    "opt": "pyllm.models.opt",
    "bloom": "pyllm.models.bloom",
    "falcon": "pyllm.models.falcon",
    "mpt": "pyllm.models.mpt",
    "gpt_bigcode": "pyllm.models.gpt_bigcode",
    "starcoder2": "pyllm.models.starcoder2",
    "phi": "pyllm.models.phi",
    "stablelm": "pyllm.models.stablelm",
    "llama": "pyllm.models.llama",
    "mistral": "pyllm.models.llama",
    "qwen2": "pyllm.models.llama",
    "qwen3": "pyllm.models.llama",
    "granite": "pyllm.models.llama",
    "smollm3": "pyllm.models.llama",
    "gemma": "pyllm.models.gemma",
    "gemma2": "pyllm.models.gemma",
    "gemma3_text": "pyllm.models.gemma",
    "gemma3": "pyllm.models.gemma",
    "phi3": "pyllm.models.phi3",
    "olmo": "pyllm.models.olmo",
    "olmo2": "pyllm.models.olmo2",
    "olmo3": "pyllm.models.olmo2",
    "cohere": "pyllm.models.cohere",
    "cohere2": "pyllm.models.cohere",
    "glm": "pyllm.models.glm",
    "glm4": "pyllm.models.glm",
    "mixtral": "pyllm.models.moe",
    "qwen2_moe": "pyllm.models.moe",
    "qwen3_moe": "pyllm.models.moe",
    "olmoe": "pyllm.models.moe",
    "t5": "pyllm.models.t5",
    "mt5": "pyllm.models.t5",
    "umt5": "pyllm.models.t5",
    "bart": "pyllm.models.bart",
    "plbart": "pyllm.models.bart",
    "mbart": "pyllm.models.bart",
    "pegasus": "pyllm.models.bart",
    "marian": "pyllm.models.bart",
    "m2m_100": "pyllm.models.bart",
    "blenderbot": "pyllm.models.bart",
    "blenderbot-small": "pyllm.models.bart",
    "bert": "pyllm.models.bert",
    "roberta": "pyllm.models.bert",
    "xlm-roberta": "pyllm.models.bert",
    "camembert": "pyllm.models.bert",
    "electra": "pyllm.models.bert",
    "distilbert": "pyllm.models.distilbert",
    "albert": "pyllm.models.albert",
    "mpnet": "pyllm.models.mpnet",
    "modernbert": "pyllm.models.modernbert",
    "deberta-v2": "pyllm.models.deberta",
}

__all__ = ["REGISTRY", "BoundCheckpoint", "bind", "build_network", "build_program", "network_of"]


def build_program(config: Mapping[str, Any]) -> Program:
    """The main program of a config.json: a decoder's only one. Raises as build_network."""
    return build_network(config).main


def build_network(config: Mapping[str, Any]) -> Network:
    """The network of a config.json. Raises UnsupportedModelError or InvalidConfigError."""
    model_type = config.get("model_type")
    supported = f"supported are {', '.join(REGISTRY)}"
    if not isinstance(model_type, str):
        got = "it is missing" if model_type is None else f"got {model_type!r:.80}"
        raise InvalidConfigError(f"[config.json] model_type must name the model family, {got}; {supported}")
    if model_type not in REGISTRY:
        near = difflib.get_close_matches(model_type[:80].lower(), REGISTRY, n=1, cutoff=0.5)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise UnsupportedModelError(f"[config.json] there is no model_type {model_type!r:.80} here, {supported}{hint}")
    return as_network(_module(model_type).build(config))


def network_of(checkpoint: Checkpoint) -> Network:
    """The network of a checkpoint: build_network of its config.json, but a base model where that names a class with a
    head and no tensor of a head is stored, as in many sentence-transformers folders."""
    checkpoint = quantized_view(checkpoint)
    network = build_network(checkpoint.config)
    module = _module(network.family)
    if network.head is None or network.step is not None:
        return network
    head = re.compile(module.HEAD_TENSORS)
    if any(head.fullmatch(module.canonical(name)) for name in checkpoint.names()):
        return network
    return build_network(without_head(checkpoint.config))


def bind(network: Network | Program, checkpoint: Checkpoint) -> BoundCheckpoint:
    """The network's tensors in a checkpoint, quantised or not. Raises CheckpointError listing all that do not fit,
    and what quantized_view raises."""
    checkpoint = quantized_view(checkpoint)
    module = _module(network.family)
    view = getattr(module, "unstacked", None)
    return bind_tensors(network, checkpoint if view is None else view(checkpoint), module.canonical)


def _module(model_type: str) -> ModuleType:
    return importlib.import_module(REGISTRY[model_type])
