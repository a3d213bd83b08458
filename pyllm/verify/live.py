"""Asks Hugging Face transformers, where it is installed. The only place that knows it, and imports it when asked."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidOptionError
from .questions import Questions
from .reference import Case, Pass, Reference

AUTO = {
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModel",
}


def ask_transformers(folder: Path, config: Mapping[str, Any], questions: Questions) -> Reference:
    """What transformers makes of a checkpoint folder, computed in float32 on the CPU.

    Raises InvalidOptionError when it is not installed, or fails on the folder.
    """
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise InvalidOptionError(
            f"[verify] comparing live needs transformers and torch, got: {error}; install them, or give recorded "
            "outputs with --reference"
        ) from error
    origin = f"transformers {transformers.__version__}"
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            texts, missing = _tokenize(transformers, folder, questions.texts)
            model = _load(torch, transformers, folder, config, questions.kind)
            passes = [_pass(torch, model, questions.kind, pair) for pair in questions.inputs]
            cases = _generate(torch, transformers, model, questions)
    except Exception as error:  # whatever transformers and its libraries raise
        raise InvalidOptionError(
            f"[verify] {origin} must run {folder}, got {type(error).__name__}: {str(error)[:300]}; give recorded "
            "outputs with --reference"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    return Reference(origin, questions.kind, texts, passes, cases, missing)


def _tokenize(
    transformers: Any, folder: Path, texts: Sequence[str]
) -> tuple[list[tuple[str, list[int]]], dict[str, str]]:
    if not texts:
        return [], {"tokenization": "this folder has no tokenizer that pyllm can read"}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        return [(text, list(tokenizer(text)["input_ids"])) for text in texts], {}
    except Exception as error:  # whatever transformers and its libraries raise
        return [], {"tokenization": f"transformers could not tokenize: {type(error).__name__}: {str(error)[:160]}"}


def _load(torch: Any, transformers: Any, folder: Path, config: Mapping[str, Any], kind: str) -> Any:
    """The class that the checkpoint names, where there is one."""
    name = (config.get("architectures") or [""])[0]
    found = getattr(transformers, str(name), None) or getattr(transformers, AUTO[kind])
    dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    return found.from_pretrained(str(folder), **{dtype: torch.float32}).eval()


def _pass(torch: Any, model: Any, kind: str, pair: tuple[list[int], list[int]]) -> Pass:
    first, second = pair
    ids = torch.tensor([first])
    if kind == "decoder":
        return Pass({"prompt": first}, {"logits": model(ids).logits[0].numpy()})
    if kind == "encoder-decoder":
        classifies = type(model).__name__.endswith("ForSequenceClassification")  # which makes the decoder's input
        output = model(input_ids=ids, **({} if classifies else {"decoder_input_ids": torch.tensor([second])}))
        found = {"logits": output.logits[0].numpy(), "encoded": output.encoder_last_hidden_state[0].numpy()}
        return Pass({"source": first, "decoder": second}, found)
    types = {"token_type_ids": torch.tensor([second])} if getattr(model.config, "type_vocab_size", 0) > 1 else {}
    output = model(ids, output_hidden_states=True, **types)
    hidden = output.hidden_states[-1][0].numpy()
    return Pass({"ids": first, "type_ids": second}, {"output": _head(output), "hidden": hidden})


def _head(output: Any) -> Any:
    """float32 [T, n], or [n] of a whole text; the last hidden state without a head."""
    if hasattr(output, "start_logits"):
        return np.stack([output.start_logits[0].numpy(), output.end_logits[0].numpy()], axis=-1)
    for name in ("prediction_logits", "logits"):
        if hasattr(output, name):
            rows = getattr(output, name)[0].numpy()
            return rows[:, None] if type(output).__name__ == "ElectraForPreTrainingOutput" else rows  # lacks this axis
    return output.last_hidden_state[0].numpy()


def _generate(torch: Any, transformers: Any, model: Any, questions: Questions) -> list[Case]:
    """Every search on every prompt, with the options given and none of generation_config.json."""
    cases = []
    model.generation_config = transformers.GenerationConfig()
    for number, (prompt, _) in enumerate(questions.inputs if questions.options else (), 1):
        ids = torch.tensor([prompt])
        for name, options in questions.options.items():
            told = transformers.GenerationConfig(**options, return_dict_in_generate=True, output_scores=True)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=told)
            skipped = 1 if questions.kind == "encoder-decoder" else len(prompt)
            tokens = [_ended(row[skipped:], options.get("eos_token_id")) for row in output.sequences.tolist()]
            scores = output.sequences_scores.tolist() if options.get("num_beams", 1) > 1 else None
            cases.append(Case(f"{name}, prompt {number}", prompt, options, tokens, scores))
    return cases


def _ended(tokens: list[int], eos: Any) -> list[int]:
    """Without the padding after an end token."""
    ends = set(eos) if isinstance(eos, list) else {eos}
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
