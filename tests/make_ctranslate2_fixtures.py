"""Records what CTranslate2 makes of a real translation model: n-best lists, coverage, alternatives.

    python tests/make_ctranslate2_fixtures.py        (needs ctranslate2 4 and the test data; see fixtures/README.md)

Beside its results, the network's logits and attention after every target that our searches ask for are recorded, so
that a test can run the searches on them without the network.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from conftest import FIXTURES, data_path
from numpy.typing import NDArray

FOLDER = FIXTURES / "ctranslate2"
SOURCES = ("آ ت ز م و ن", "آ ت ش ي س و ن")
COMMON = {"max_decoding_length": 30, "min_decoding_length": 0}
CASES: list[dict[str, Any]] = [
    {"beam_size": 4, "num_hypotheses": 4},
    {"beam_size": 4, "num_hypotheses": 4, "length_penalty": 0.6, "coverage_penalty": 0.5},
    {"beam_size": 6, "num_hypotheses": 3, "coverage_penalty": 2.0},
    {"beam_size": 1, "num_hypotheses": 4, "return_alternatives": True},
    {"beam_size": 1, "num_hypotheses": 6, "return_alternatives": True, "min_alternative_expansion_prob": 0.01},
    {"beam_size": 1, "num_hypotheses": 3, "return_alternatives": True, "length_penalty": 0.3, "target_prefix": ["a"]},
    {"beam_size": 3, "num_hypotheses": 4, "return_alternatives": True, "length_penalty": 0.6},
]


class Recorder:
    """The model behind CTranslate2, one source at a time; `rows` keeps what `step` was asked for."""

    def __init__(self, translator: Any, vocabulary: list[str], source: str) -> None:
        self.translator = translator
        self.vocabulary = vocabulary
        self.source = source.split()
        self.rows: dict[tuple[int, ...], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def translate(self, **options: Any) -> Any:
        prefix = options.pop("target_prefix", None)
        shown = {"return_scores": True, "return_attention": True, "return_end_token": True}
        prefixes = None if prefix is None else [prefix]
        return self.translator.translate_batch([self.source], target_prefix=prefixes, **shown, **options)[0]

    def step(self, target: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [V] and attention [S] after `target`."""
        if target not in self.rows:
            prefix = [self.vocabulary[token] for token in target]
            longest = {"max_decoding_length": len(prefix) + 1, "min_decoding_length": 0}
            found = self.translate(target_prefix=prefix, beam_size=1, return_logits_vocab=True, **longest)
            logits = np.array(found.logits[0][len(prefix)]).astype(np.float32).reshape(-1)
            self.rows[target] = logits, np.array(found.attention[0][len(prefix)], np.float32)
        return self.rows[target]


def main() -> None:
    import ctranslate2
    from test_decode_ctranslate2 import search  # the same searches as in the test

    folder = data_path("models/aren-transliteration-ct2")
    translator = ctranslate2.Translator(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    words = (folder / "target_vocabulary.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = [*words, "<unk>"]
    cases, arrays = [], {}
    for number, source in enumerate(SOURCES):
        recorder = Recorder(translator, vocabulary, source)
        for options in CASES:
            found = recorder.translate(**COMMON, **options)
            search(recorder.step, vocabulary, len(recorder.source), COMMON | options)
            cases.append({"source": source, "options": COMMON | options, "targets": found.hypotheses})
            cases[-1]["scores"] = [round(score, 6) for score in found.scores]
        targets = sorted(recorder.rows)
        arrays[f"targets_{number}"] = np.array([json.dumps(target) for target in targets])
        arrays[f"logits_{number}"] = np.stack([recorder.rows[target][0] for target in targets])
        arrays[f"attention_{number}"] = np.stack([recorder.rows[target][1] for target in targets])
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "steps.npz", **arrays)
    content = {"ctranslate2": ctranslate2.__version__, "vocabulary": vocabulary, "cases": cases}
    (FOLDER / "cases.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
