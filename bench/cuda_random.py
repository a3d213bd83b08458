"""Real shapes with random weights for benchmarks on a GPU: configs, and tensors that take no disk and little memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from random_model import GPT2

from pyllm.engine.language_model import LanguageModel
from pyllm.models import build_network
from pyllm.program.network import Network

LLAMA3_8B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
QWEN2_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
MODELS: dict[str, dict[str, Any]] = {"llama3-8b": LLAMA3_8B, "qwen2.5-0.5b": QWEN2_05B, "gpt2-124m": GPT2}


class RandomTensors:
    """Tensors of any network: bfloat16 views (as uint16) of one random array, each beginning somewhere else, so that
    an 8-billion-weight model takes the memory of its largest tensor. Norm weights are about 1."""

    def __init__(self, network: Network) -> None:
        programs = network.programs.values()
        self._shapes = {source.name: source.shape for program in programs for source in program.sources()}
        self._norms = {v.source.name for p in programs for v in p.vectors() if v.source.name.endswith("weight")}
        largest = max(int(np.prod(shape)) for shape in self._shapes.values())
        values = np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32) * np.float32(0.02)
        period = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        self._values = np.resize(period, largest + len(self._shapes))

    def tensor(self, name: str) -> NDArray[Any]:
        """bfloat16 bits in the shape that the network's sources say."""
        shape = self._shapes[name]
        if name in self._norms:
            return np.full(shape, 0x3F80, np.uint16)
        begin = sorted(self._shapes).index(name)
        return self._values[begin : begin + int(np.prod(shape))].reshape(shape)

    def dtype(self, name: str) -> str:
        """As safetensors names it."""
        return "BF16"

    def release(self, name: str) -> None:
        """Nothing: the array is everybody's."""


def random_model(config: Mapping[str, Any], device: str, **options: Any) -> LanguageModel:
    """A model of this config on "cuda" or "cpu". options: of the device's runner (dtype, quantization, ...)."""
    network = build_network(config)
    if device == "cuda":
        from pyllm.devices.cuda import CudaRunner

        runner: Any = CudaRunner(network, RandomTensors(network), **options)
    else:
        from pyllm.devices.cpu import CpuRunner

        runner = CpuRunner(network, RandomTensors(network), **options)
    return LanguageModel(
        network,
        runner,
        folder=Path("random"),
        config=dict(config),
        generation_config={},
        tokenizer=_no_tokenizer,
        dtype=options["dtype"],
        device=device,
    )


def _no_tokenizer() -> Any:
    raise RuntimeError("[bench] random models have no tokenizer; pass ids")
