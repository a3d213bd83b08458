"""Records what transformers 4's translation, summarization and text2text-generation pipelines give for toy models.

    PYTHONPATH=. python tests/make_pipeline_fixtures.py    (transformers 4.53, the last line but one that has them)

Each text is recorded in float32 and confirmed in float64: a case whose choice of token rests on rounding stops the
script instead of making a flaky test.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from toy_pipelines import CONFIGS, TOKENIZERS, write

TESTS = Path(__file__).resolve().parent
DATA = TESTS.parent.parent / "shared" / "data"
TEXTS = ["Hello world, how are you today?", "This is a test.", 'The committee said: "no" (again) to 42 of them!']
LENGTH = {"max_new_tokens": 15}  # transformers 4.53 lets its default of 256 new tokens win over every max_length
LANGUAGES = {"src_lang": "en_XX", "tgt_lang": "de_DE"}

# (model, task, options of the pipeline, [(inputs, options of the call), ...])
CASES: list[tuple[str, str, dict[str, Any], list[tuple[Any, dict[str, Any]]]]] = [
    (
        "marian",
        "translation_en_to_pt",
        {},
        [
            (TEXTS[0], {}),
            (TEXTS, {}),
            (TEXTS, {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 9}),
            (TEXTS[:2], {"num_beams": 1, "no_repeat_ngram_size": 2, "return_tensors": True}),
            (TEXTS[2], {"clean_up_tokenization_spaces": True, "max_length": 12}),
            ("word " * 90, {"truncation": True, "max_length": 14}),
        ],
    ),
    ("t5", "translation_en_to_de", LENGTH, [(TEXTS, {}), (TEXTS[1], {"num_beams": 2})]),
    ("t5", "translation", LENGTH, [(TEXTS[:1], {})]),
    ("t5", "summarization", LENGTH, [(TEXTS, {}), (TEXTS[0], {"min_length": 3, "max_new_tokens": 7})]),
    ("t5", "text2text-generation", {"max_new_tokens": 10}, [(TEXTS, {}), (TEXTS[:2], {"num_beams": 1})]),
    (
        "mbart",
        "translation",
        {**LANGUAGES, "max_new_tokens": 10},
        [
            (TEXTS, {}),
            (TEXTS[0], {"src_lang": "fr_XX", "tgt_lang": "ro_RO", "num_beams": 2, "return_tensors": True}),
            ("word " * 90, {"truncation": True}),
        ],
    ),
]


def run(folder: Path, task: str, options: dict[str, Any], calls: list[Any], dtype: torch.dtype) -> list[Any]:
    pipe = transformers.pipeline(task, model=str(folder), torch_dtype=dtype, device="cpu", **options)
    pad = pipe.model.config.pad_token_id
    return [_plain(pipe(inputs, **call), pad) for inputs, call in calls]


def _plain(found: Any, pad: int) -> Any:
    """Token ids as lists, without the padding that follows the end."""
    if isinstance(found, list):
        return [_plain(each, pad) for each in found]
    if isinstance(found, dict):
        return {key: _plain(value, pad) for key, value in found.items()}
    if not isinstance(found, torch.Tensor):
        return found
    ids: list[int] = found.tolist()
    while ids[-1] == pad:
        ids.pop()
    return ids


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    cases = []
    with tempfile.TemporaryDirectory() as root:
        folders = {name: write(name, Path(root), DATA / TOKENIZERS[name][0]) for name in CONFIGS}
        for name, task, options, calls in CASES:
            found = run(folders[name], task, options, calls, torch.float32)
            exact = run(folders[name], task, options, calls, torch.float64)
            if found != exact:
                sys.exit(f"{name} {task}: rounding decides; change the case\n{found}\n{exact}")
            for (inputs, call), output in zip(calls, found, strict=True):
                cases.append({"model": name, "task": task, "options": options, "inputs": inputs, "call": call})
                cases[-1]["output"] = output
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n'
    (TESTS / "fixtures" / "seq2seq_pipelines.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
