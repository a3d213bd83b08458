"""Makes the encoders' part of tests/fixtures/: toy checkpoints with random weights, and what transformers computes.

    python tests/make_encoder_fixtures.py [NAME...]      (transformers 5, torch)

A folder holds config.json, model.safetensors as save_pretrained writes it, and outputs.npz: for i = 0, 1, 2 `ids_i`
int32 [T], `type_ids_i` int32 [T], `output_i` float32 (the head's logits: [T, n], or [n] for sequence-classification;
without a head the last hidden state) and `hidden_i` float32 [T, D], all computed in float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from toy_encoders import ENCODERS, STORED_DTYPE, VOCAB_SIZE

FIXTURES = Path(__file__).parent / "fixtures"


def random_model(name: str) -> Any:
    """A float32 model whose outputs have a deviation near 1; every weight is exact in the stored type."""
    config = transformers.AutoConfig.for_model(**ENCODERS[name])
    config._attn_implementation = "eager"
    model = getattr(transformers, ENCODERS[name]["architectures"][0])(config).eval().float()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    stored = getattr(torch, STORED_DTYPE.get(name, "float32"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                value = 0.3 * noise if key.endswith("bias") else 1 + 0.2 * noise
            else:
                value = 0.4 * noise if id(parameter) in embeddings else 1.2 * noise / parameter.shape[-1] ** 0.5
            parameter.copy_(value.to(stored).float())
    return model


def write_checkpoint(name: str, model: Any) -> None:
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    stored = STORED_DTYPE.get(name, "float32")
    (folder / "config.json").write_text(json.dumps(ENCODERS[name] | {"torch_dtype": stored}, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        tensors = load_file(Path(saved) / "model.safetensors")
    tensors = {key: tensor.to(getattr(torch, stored)).contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def inputs(name: str) -> list[tuple[list[int], list[int]]]:
    """(ids, type_ids) of 1, 7 and many ids: more than a 32-token block, any window, most distances with a bias."""
    random = np.random.RandomState(zlib.crc32(b"inputs " + name.encode()))
    longest = 100 if name == "mpnet" else 60
    texts = [random.randint(3, VOCAB_SIZE, size=n).tolist() for n in (1, 7, longest)]
    types = ENCODERS[name].get("type_vocab_size", 1)
    return [(text, [min(types - 1, 2 * i // len(text)) for i in range(len(text))]) for text in texts]


def outputs(model: Any, ids: list[int], type_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The head's output, or the last hidden state, and the last hidden state."""
    types = {"token_type_ids": torch.tensor([type_ids])} if getattr(model.config, "type_vocab_size", 0) > 1 else {}
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True, **types)
    hidden = found.hidden_states[-1][0]
    if hasattr(found, "start_logits"):
        head = torch.stack([found.start_logits[0], found.end_logits[0]], dim=-1)
    else:
        head = found.logits[0] if hasattr(found, "logits") else found.last_hidden_state[0]
    return head.numpy(), hidden.numpy()


def record(name: str, model: Any) -> None:
    arrays: dict[str, np.ndarray] = {}
    for index, (ids, type_ids) in enumerate(inputs(name)):
        output, hidden = outputs(model, ids, type_ids)
        if ENCODERS[name]["architectures"] == ["ElectraForPreTraining"]:
            output = output.reshape(-1, 1)  # transformers drops this axis
        arrays |= {f"ids_{index}": np.array(ids, np.int32), f"type_ids_{index}": np.array(type_ids, np.int32)}
        arrays |= {f"output_{index}": output, f"hidden_{index}": hidden}
    np.savez_compressed(FIXTURES / name / "outputs.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to record (default: all)")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in parser.parse_args().names or ENCODERS:
        model = random_model(name)
        write_checkpoint(name, model)
        record(name, model)


if __name__ == "__main__":
    main()
