"""`EncoderModel`: a loaded encoder: rows of its last layer, logits of its head, embeddings of whole texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from functools import cached_property
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    ContextLengthError,
    InvalidOptionError,
    NumericError,
    PromptError,
    UnsupportedModelError,
)
from ..program.batch import Capture
from ..program.program import Embed, Program
from .captures import Layers, attention_names, hidden_names
from .model import Model
from .pooling import Sentences, chosen_modes, read_sentences, unit
from .prompts import Prompt, Prompts, read_id_lists, read_prompt, read_prompts
from .sources import Wanted, encode_batches

Floats = NDArray[np.float32]


class EncoderModel(Model):
    """An encoder ready to run: BERT, RoBERTa, ModernBERT and so on. See `Model` for its attributes.

    head: "masked-lm", "sequence-classification", "token-classification", "question-answering", or None.
    max_length: the longest input in tokens, special tokens included.

    Texts run ragged, without padding, and a text's results do not depend on those beside it.
    """

    @property
    def head(self) -> str | None:
        return self.network.head

    @property
    def max_length(self) -> int:
        return self.max_positions

    @cached_property
    def sentences(self) -> Sentences:
        """How `embed` pools: what the folder's sentence-transformers files say, else the mean of all rows."""
        return read_sentences(self.folder)

    def forward(
        self,
        ids: Sequence[Sequence[int]],
        type_ids: Sequence[Sequence[int]] | None = None,
        *,
        output: str = "head",
        rows: Sequence[Sequence[int]] | None = None,
        capture: Capture | None = None,
    ) -> list[Floats]:
        """Runs texts given as token ids; float32 arrays in their order.

        output: "head": the head's logits, [T, n] for each text ([n] for sequence-classification), or "hidden": the
        last hidden state [T, D]. type_ids: token types of each token; a model with fewer than two types ignores them.
        rows: of the head's rows those wanted of each text, ascending, at least one (only they are computed); None: all.
        capture: gets the rows of all texts joined, and the attention weights of each.
        Raises PromptError, ContextLengthError, NumericError, and UnsupportedModelError for a head that is not there.
        """
        if not isinstance(output, str) or output not in ("head", "hidden"):
            raise InvalidOptionError(f"[forward] output must be 'head' or 'hidden', got {output!r:.40}; give one")
        if output == "head" and self.head is None:
            raise UnsupportedModelError(
                f"[forward] logits need a head, this {self.network.family} checkpoint has none (its architectures: "
                f"{self.config.get('architectures')}); use encode() or embed(), or a checkpoint trained for the task"
            )
        ids = read_id_lists(ids, "forward", "ids")
        self._check_texts(ids)
        types = self._checked_types(ids, type_ids)
        if rows is not None:
            rows = read_id_lists(rows, "forward", "rows")
            self._check_rows(ids, rows, output)
        if self.head is None or output == "head":
            wanted: Wanted = "first" if self.head == "sequence-classification" else "all" if rows is None else rows
            results = [row for each in self._steps(ids, types, wanted, capture) for row in each]
            results = [row[0] for row in results] if wanted == "first" else results
        else:
            last = self.program.hidden[-1]
            results = [row for each in self._steps(ids, types, "none", capture, last) for row in each]
        wrong = [str(index) for index, rows in enumerate(results) if not np.isfinite(rows).all()]
        if wrong:
            raise NumericError(
                f"[forward] outputs must be finite, got NaN or infinity for text {', '.join(wrong[:20])}; the "
                "weights are damaged, or bfloat16 overflows: load with dtype='float32'"
            )
        return results

    @overload
    def encode(self, text: Prompt) -> Floats: ...  # type: ignore[overload-overlap]
    @overload
    def encode(self, text: Prompts) -> list[Floats]: ...
    def encode(self, text: Prompt | Prompts) -> Floats | list[Floats]:
        """Last hidden state, float32 [T, D], of a text (a str or a list of token ids); a list for a list.

        Special tokens that the tokenizer puts around a str have rows like others. Raises as `forward`.
        """
        texts, single = read_prompts(text, self._encode, "encode")
        rows = self.forward(texts, output="hidden")
        return rows[0] if single else rows

    @overload
    def logits(self, text: Prompt) -> Floats: ...  # type: ignore[overload-overlap]
    @overload
    def logits(self, text: Prompts) -> list[Floats]: ...
    def logits(self, text: Prompt | Prompts) -> Floats | list[Floats]:
        """What the checkpoint's head gives for a text, float32: [T, V] for masked-lm, [T, labels] for
        token-classification, [T, 2] (start, end) for question-answering, [labels] for sequence-classification; a list
        for a list. Raises as `forward`."""
        texts, single = read_prompts(text, self._encode, "logits")
        rows = self.forward(texts)
        return rows[0] if single else rows

    def embed(
        self,
        texts: Prompt | Prompts,
        normalize: bool = True,
        pooling: str | Sequence[str] | None = None,
        batch_size: int = 32,
        *,
        truncation: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Floats:
        """One vector a text: float32 [n, D] for a list, [D] for a single str.

        normalize     vectors of length 1, so that a dot product is the cosine
        pooling       "mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", or several, whose
                      vectors are joined; None: what the folder's sentence-transformers files say, else the mean
        batch_size    texts in one step, at most; it changes no result
        truncation    cut texts that are too long (sentence-transformers always does); otherwise they are refused
        prompt, prompt_name   put before each str; None: the folder's default, if it has one

        The limit is max_seq_length of the sentence-transformers files, else the model's own. Raises ContextLengthError
        with both numbers, PromptError, InvalidOptionError.
        """
        _check_embedding(normalize, batch_size, truncation)
        sentences, modes = self.sentences, chosen_modes(pooling, self.sentences.modes)
        before = self._prompt(prompt, prompt_name)
        if isinstance(texts, Sized) and not isinstance(texts, str) and len(texts) == 0:
            return np.zeros((0, self._width(modes)), np.float32)
        ids, single = read_prompts(texts, lambda text: self._sentence_ids(before + text, truncation), "embed")
        limit = self._sentence_limit()
        ids = [text[:limit] for text in ids] if truncation else ids
        self._check_lengths("embed", ids, limit)
        skipped = 0 if sentences.include_prompt or not before else self._prompt_length(before)
        vectors: list[Floats] = []
        for begin in range(0, len(ids), batch_size):
            for rows in self.forward(ids[begin : begin + batch_size], output="hidden"):
                vector = sentences.vector(rows[min(skipped, len(rows) - 1) :], modes)
                vectors.append(unit(vector) if normalize else vector)
        return vectors[0] if single else np.stack(vectors)

    def hidden_states(self, text: Prompt, layers: Layers = None) -> list[Floats]:
        """transformers' `hidden_states` of one text, float32 [T, D] each: 0 the embeddings, i what layer i gives.
        layers: those wanted, None for all."""
        names = hidden_names(self.program, layers)
        capture = Capture(buffers=tuple(dict.fromkeys(names)))
        self._run_one("hidden_states", text, capture)
        return [capture.values[name] for name in names]

    def attentions(self, text: Prompt, layers: Layers = None) -> list[Floats]:
        """Attention weights of one text, float32 [H, T, T] for each layer wanted (None: all)."""
        names = attention_names(self.program, layers)
        capture = Capture(attentions=tuple(dict.fromkeys(names)))
        self._run_one("attentions", text, capture)
        return [capture.weights[name][0] for name in names]

    def _run_one(self, where: str, text: Prompt, capture: Capture) -> None:
        ids = read_prompt(text, self._encode, where)
        self._check_ids(where, ids, self.program.vocab_size, self.max_length)
        for _ in self._steps([ids], None, "none", capture):
            pass

    def _steps(
        self,
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        wanted: Wanted,
        capture: Capture | None,
        buffer: str | None = None,
    ) -> Iterator[list[Floats]]:
        """Output rows of each text, step by step; with `buffer` that buffer's rows instead."""
        names = (*(capture.buffers if capture else ()), *([buffer] if buffer else []))
        step = Capture(tuple(dict.fromkeys(names)), capture.attentions if capture else ())
        kept: dict[str, list[Floats]] = {name: [] for name in (capture.buffers if capture else ())}
        done = 0
        with self._cache("encode") as cache:
            steps = encode_batches(
                self._open_runner(),
                cache,
                ids,
                type_ids=types,
                wanted=wanted,
                capture=step if names or step.attentions else None,
            )
            for outputs, _ in steps:
                for name, values in kept.items():
                    values.append(np.array(step.values[name]))
                if capture is not None:
                    for name in capture.attentions:
                        capture.weights.setdefault(name, []).extend(map(np.array, step.weights[name]))
                if buffer is None:
                    yield outputs
                    continue
                rows = step.values[buffer]
                pieces, row = [], 0
                while row < len(rows):
                    pieces.append(np.array(rows[row : row + len(ids[done])]))
                    row, done = row + len(ids[done]), done + 1
                yield pieces
        for name, values in kept.items():
            if capture is not None and values:
                capture.values[name] = np.concatenate(values)

    def _check_texts(self, ids: Sequence[Sequence[int]]) -> None:
        """Raises everything that is wrong with any text, at once."""
        problems = [self._problem(text) for text in ids]
        _raise_all([(index, error) for index, error in enumerate(problems) if error is not None], len(ids))

    def _check_rows(self, ids: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], output: str) -> None:
        if output != "head" or self.head in (None, "sequence-classification"):
            raise InvalidOptionError("[forward] rows are those of a head with an output for each token; leave it out")
        fitting = len(rows) == len(ids) and all(
            each and each[0] >= 0 and each[-1] < len(text) and all(a < b for a, b in pairwise(each))
            for each, text in zip(rows, ids, strict=True)
        )
        if not fitting:
            raise PromptError("[forward] rows must be some of each text's tokens, ascending; correct them")

    def _problem(self, text: Sequence[int]) -> PromptError | None:
        try:
            self._check_ids("forward", text, self.program.vocab_size, self.max_length)
        except PromptError as error:
            return error
        return None

    def _checked_types(
        self, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None
    ) -> Sequence[Sequence[int]] | None:
        count = _token_types(self.program)
        if type_ids is None or count < 2:
            return None
        type_ids = read_id_lists(type_ids, "forward", "type_ids")
        if [len(text) for text in ids] != [len(types) for types in type_ids]:
            raise PromptError("[forward] type_ids must be as many as ids for each text, they differ; give one a token")
        outside = sorted({kind for types in type_ids for kind in types if not 0 <= kind < count})
        if outside:
            raise PromptError(f"[forward] type_ids must lie in [0, {count}), got {outside[:20]}; correct them")
        return type_ids

    def _sentence_limit(self) -> int:
        """Longest input of `embed`, in tokens."""
        length = self.sentences.max_length
        return self.max_length if length is None else min(length, self.max_length)

    def _sentence_ids(self, text: str, truncation: bool) -> list[int]:
        """Ids of one text for `embed`; cut before the special tokens are put around it."""
        text = text.lower() if self.sentences.lower_case else text
        ids = self.tokenizer.encode(text)
        limit = self._sentence_limit()
        if not truncation or len(ids) <= limit:
            return ids
        room = max(0, limit - self.tokenizer.num_special_tokens())
        return self.tokenizer.build_inputs(self.tokenizer.encode(text, add_special_tokens=False)[:room]).ids

    def _check_lengths(self, where: str, ids: Sequence[Sequence[int]], limit: int) -> None:
        wrong: list[tuple[int, PromptError]] = []
        for index, text in enumerate(ids):
            if len(text) > limit:
                problem = f"a text must have at most {limit} tokens, got {len(text)}"
                cure = "shorten it, or pass truncation=True"
                wrong.append((index, ContextLengthError(f"[{where}] {problem}; {cure}")))
        _raise_all(wrong, len(ids))

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """The text to put before each input."""
        prompts = self.sentences.prompts
        if prompt is not None and name is not None:
            raise InvalidOptionError("[embed] prompt and prompt_name exclude each other, both were given; drop one")
        if not all(each is None or isinstance(each, str) for each in (prompt, name)):
            raise InvalidOptionError(
                f"[embed] prompt and prompt_name must be str, got {name if prompt is None else prompt!r:.40}; pass text"
            )
        if prompt is not None:
            return prompt
        name = self.sentences.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in prompts:
            known = ", ".join(map(repr, prompts)) or "none"
            raise InvalidOptionError(f"[embed] prompt_name must be one of the folder's ({known}), got {name!r:.40}")
        return prompts[name]

    def _prompt_length(self, prompt: str) -> int:
        """Tokens at the beginning that are the prompt's: those of the prompt alone, less the token that ends it."""
        ids = self._sentence_ids(prompt, False)
        ends = ids and ids[-1] in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id)
        return len(ids) - bool(ends)

    def _width(self, modes: Sequence[str]) -> int:
        dense = [each for each in self.sentences.dense if each is not None]
        widths: dict[str, Any] = {op.out.name: op.out.cols for op in self.program.ops if not hasattr(op, "kv")}
        return dense[-1].weight.shape[0] if dense else len(modes) * int(widths[self.program.hidden[-1]])


def _token_types(program: Program) -> int:
    """Token types that the program knows."""
    return max((op.types.shape[0] for op in program.ops if isinstance(op, Embed) and op.types), default=0)


def _check_embedding(normalize: object, batch_size: object, truncation: object) -> None:
    """Raises InvalidOptionError for options of `embed` of another kind."""
    problems = [
        f"{name} must be True or False, got {value!r:.40}"
        for name, value in (("normalize", normalize), ("truncation", truncation))
        if not isinstance(value, (bool, np.bool_))
    ]
    if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
        problems.append(f"batch_size must be an integer >= 1, got {batch_size!r:.40}")
    if problems:
        raise InvalidOptionError("[embed] " + "; ".join(problems))


def _raise_all(wrong: Sequence[tuple[int, PromptError]], texts: int) -> None:
    """One error that says what is wrong with every text."""
    if wrong and texts == 1:
        raise wrong[0][1]
    if wrong:
        kinds = {type(error) for _, error in wrong}
        kind = kinds.pop() if len(kinds) == 1 else PromptError
        raise kind(" | ".join(f"text {index}: {error}" for index, error in wrong[:100]))
