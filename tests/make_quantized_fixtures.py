"""Makes tests/fixtures/quantized/: one matrix as the quantisers themselves store it, and weights they read back.

    pip install compressed-tensors bitsandbytes; pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9, unpack both
    python tests/make_quantized_fixtures.py AUTO_GPTQ AUTOAWQ       (the folders with auto_gptq/ and awq/ in them)

AutoGPTQ and AutoAWQ no longer import beside a recent transformers, so the one file of each that packs is run by itself.
"""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

FOLDER = Path(__file__).parent / "fixtures" / "quantized"
N, K = 32, 64
SPARSE = 5  # of the weights every fifth row is kept, to spare room
Tensors = dict[str, torch.Tensor]
CASES: list[dict[str, Any]] = []
ARRAYS: dict[str, np.ndarray] = {}


def record(label: str, config: dict[str, Any], tensors: Tensors, weights: torch.Tensor) -> None:
    CASES.append({"label": label, "config": config})
    for name, tensor in tensors.items():
        ARRAYS[f"{label}/m.{name}"] = tensor.detach().numpy()
    ARRAYS[f"{label}/weights"] = weights.detach().float().numpy()[::SPARSE]


def random_weights() -> torch.Tensor:
    return (0.1 * torch.randn(N, K)).half().float()


def run_file(path: Path, package: str, stubs: dict[str, dict[str, Any]]) -> types.ModuleType:
    """One file of a package, what it imports from the rest being `stubs`."""
    for name, content in stubs.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        module.__path__ = []  # type: ignore[attr-defined]
        sys.modules[name] = module
    module = types.ModuleType(f"{package}.{path.stem}")
    module.__package__ = package
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def min_max(w: torch.Tensor, bits: int, order: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
    """scales and zero points [n, groups] with float16 scales, and the weights on that grid."""
    scales, zeros, rounded = torch.zeros(N, groups), torch.zeros(N, groups), torch.zeros(N, K)
    top = 2**bits - 1
    for g in range(groups):
        part = w[:, order == g]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[:, g] = ((high - low) / top).half().float()
        zeros[:, g] = (-low / scales[:, g]).round().clamp(1, top)
        codes = ((part / scales[:, g, None]).round() + zeros[:, g, None]).clamp(0, top)
        rounded[:, order == g] = (codes - zeros[:, g, None]) * scales[:, g, None]
    return scales, zeros, rounded


def linear(w: torch.Tensor) -> torch.nn.Linear:
    made = torch.nn.Linear(K, N, bias=False)
    made.weight.data = w
    return made


def record_gptq(root: Path) -> None:
    conv1d = type("Conv1D", (), {})
    pytorch_utils = {"transformers": {}, "transformers.pytorch_utils": {"Conv1D": conv1d}}
    names = ("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    file = root / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_cuda.py"
    kept = {name: sys.modules.get(name) for name in pytorch_utils}
    module = run_file(file, names[-1], pytorch_utils | {name: {} for name in names})
    module.transformers.pytorch_utils = sys.modules["transformers.pytorch_utils"]
    for bits, group, shuffled in ((4, 16, False), (4, 16, True), (4, -1, False), (8, 32, False)):
        size = K if group == -1 else group
        order = torch.arange(K) // size
        order = order[torch.randperm(K)] if shuffled else order
        scales, zeros, rounded = min_max(random_weights(), bits, order, K // size)
        packed = module.QuantLinear(bits, group, K, N, False)
        packed.pack(linear(rounded), scales.clone(), zeros.clone(), order.int())
        tensors = packed.state_dict() | {"scales": packed.scales.half()}
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": False}
        record(f"gptq {bits} bit {group}{' desc_act' * shuffled}", config, tensors, rounded)
    sys.modules.update({name: old for name, old in kept.items() if old is not None})


def record_awq(root: Path) -> None:
    stubs: dict[str, dict[str, Any]] = {name: {} for name in ("awq", "awq.modules", "awq.utils", "awq.modules.linear")}
    stubs |= {"awq.utils.module": {"try_import": lambda _: (None, "")}}
    stubs |= {"awq.utils.utils": {"get_best_device": lambda: "cpu"}}
    stubs |= {"awq.utils.packing_utils": {"dequantize_gemm": None}}
    for version in ("gemm", "gemv"):
        module = run_file(root / "awq" / "modules" / "linear" / f"{version}.py", "awq.modules.linear", stubs)
        kind = getattr(module, f"WQLinear_{version.upper()}")
        scales, zeros, rounded = min_max(random_weights(), 4, torch.arange(K) // 32, 2)
        if version == "gemm":
            scales, zeros = scales.t().contiguous(), zeros.t().contiguous()
        packed = kind.from_linear(linear(rounded), 4, 32, scales=scales, zeros=zeros)
        config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": version}
        record(f"awq {version}", config, packed.state_dict(), rounded)


def record_compressed() -> None:
    for form, bits, symmetric, strategy, group in (
        ("pack-quantized", 4, True, "group", 32),
        ("pack-quantized", 4, False, "group", 16),
        ("pack-quantized", 4, False, "channel", None),
        ("pack-quantized", 8, True, "channel", None),
        ("pack-quantized", 8, False, "group", 32),
        ("int-quantized", 8, True, "channel", None),
        ("int-quantized", 8, False, "channel", None),
        ("int-quantized", 8, True, "tensor", None),
    ):
        w = random_weights()
        grouping = {"group_size": group} if group else {}
        args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, type="int", **grouping)
        blocks = w.reshape(N, -1, group or K)
        low, high = blocks.amin(-1), blocks.amax(-1)
        if strategy == "tensor":
            low, high = low.amin().reshape(1), high.amax().reshape(1)
        scale, zero = calculate_qparams(low, high, args)
        state = {"weight": w, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
        compressor = BaseCompressor.get_value_from_registry(form)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        tensors = compressor.compress(state, scheme)
        group_0 = {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}
        config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group_0}}
        label = f"{form} {bits} bit {strategy}{'' if symmetric else ' asymmetric'}"
        record(label, config, tensors, compressor.decompress(tensors, scheme)["weight"])


def record_bitsandbytes() -> None:
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            w = random_weights()
            codes, state = bnb.quantize_4bit(w, quant_type=kind, compress_statistics=nested, blocksize=64)
            tensors = {"weight": codes} | {f"weight.{name}": each for name, each in state.as_dict(packed=True).items()}
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
            record(f"bitsandbytes {kind}{' nested' * nested}", config, tensors, bnb.dequantize_4bit(codes, state))
    codes, largest, _ = bnb.int8_vectorwise_quant(random_weights())
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    weights = bnb.int8_vectorwise_dequant(codes, largest)
    record("bitsandbytes int8", config, {"weight": codes, "SCB": largest}, weights)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable()
    record_compressed()
    record_bitsandbytes()
    record_awq(Path(sys.argv[2]))
    record_gptq(Path(sys.argv[1]))
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n  ".join(json.dumps(case) for case in CASES)
    (FOLDER / "cases.json").write_text(f"[\n  {lines}\n]\n")
    np.savez_compressed(FOLDER / "tensors.npz", **ARRAYS)


if __name__ == "__main__":
    main()
