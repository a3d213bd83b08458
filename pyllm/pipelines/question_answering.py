"""The question-answering pipeline: the parts of a context that answer a question, as transformers 4 found them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ContextLengthError, InvalidOptionError, PromptError
from ..tokenization.encoding import Encoding
from . import answer_spans, task_options, windows
from .encoder_pipeline import EncoderPipeline, Floats, Prepared
from .inputs import is_stream
from .task_options import Settings, Table
from .task_pipeline import with_cut

DEFAULT_LENGTH, DEFAULT_STRIDE = 384, 128  # transformers' own


@dataclass(frozen=True)
class Example:
    """One question and the text that holds its answer."""

    question: str
    context: str


class QuestionAnsweringPipeline(EncoderPipeline[Example]):
    """`qa(question="Who?", context="Ada wrote it.") -> {"score": 0.9, "start": 0, "end": 3, "answer": "Ada"}`"""

    task = "question-answering"
    HEAD = "question-answering"
    OPTIONS: ClassVar[Table] = {
        **task_options.COMMON,
        "top_k": task_options.count(),
        "topk": task_options.count(),
        "doc_stride": task_options.count(None, 0),
        "max_answer_len": task_options.count(15),
        "max_seq_len": task_options.count(),
        "max_question_len": task_options.count(),
        "handle_impossible_answer": task_options.flag(),
        "align_to_words": task_options.flag(True),
    }
    TAKES = (
        'question= and context= (each a str or a list), a dict {"question": ..., "context": ...}, or a list or '
        "generator of these"
    )

    def __call__(self, *args: Any, question: Any = None, context: Any = None, **options: Any) -> Any:
        """Answers one question or several, each from a context.

        question, context          a str each; lists of the same length; or a list of questions about one context.
                                   Instead: a dict with both, an object with question_text and context_text (SQuAD
                                   examples), a list of these, or a generator of them, which is read and answered lazily
        top_k                      answers to each question; default 1
        max_seq_len                tokens of question and context that the model reads at once, default 384 or what it
                                   can; longer contexts are read in windows
        doc_stride                 tokens that neighbouring windows share; default 128 or half of max_seq_len
        max_answer_len             longest answer in tokens; default 15
        max_question_len           cut questions to this many tokens, and say so as answer["truncated_tokens"]; default:
                                   a question that leaves no room for a context raises ContextLengthError
        handle_impossible_answer   True: "" with start and end 0 is an answer too
        align_to_words             True (default): answers are whole words
        batch_size                 questions run together; results don't depend on it

        Returns {"score", "start", "end", "answer"} for one question that has one answer, a list of these where there
        are several, best first; a list of such results for several questions.
        """
        given = self._given(args, question, context, options)
        if isinstance(given, list) and len(given) == 1:
            return self._call(given[0], options, True)
        return self._call(given, options, False)

    def _given(self, args: Sequence[Any], question: Any, context: Any, options: dict[str, Any]) -> Any:
        """A list of inputs, or a stream."""
        old = [options.pop(name) for name in ("X", "data") if name in options]
        ways = [bool(args), question is not None or context is not None, bool(old)]
        if sum(ways) != 1 or len(old) > 1:
            raise PromptError(f"[{self.task}] takes {self.TAKES}, got {'several' if any(ways) else 'none'} of these")
        if ways[1]:
            return self._paired(question, context)
        if len(args) == 2 and all(isinstance(each, str) for each in args):
            return self._paired(*args)
        inputs = old[0] if old else args[0] if len(args) == 1 else list(args)
        if is_stream(inputs):
            return inputs
        return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]

    def _paired(self, question: Any, context: Any) -> list[dict[str, Any]]:
        if isinstance(question, str) and isinstance(context, str):
            return [{"question": question, "context": context}]
        if isinstance(question, (list, tuple)) and isinstance(context, str):
            return [{"question": each, "context": context} for each in question]
        if isinstance(question, (list, tuple)) and isinstance(context, (list, tuple)):
            if len(question) != len(context):
                raise PromptError(
                    f"[{self.task}] each question needs one context, got {len(question)} questions and {len(context)} "
                    "contexts; pass lists of the same length, or one context for all"
                )
            return [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]
        raise PromptError(
            f"[{self.task}] takes {self.TAKES}, got question={type(question).__name__} and "
            f"context={type(context).__name__}"
        )

    def _settings(self, options: Any) -> Settings:
        settings = super()._settings(options)
        if settings["topk"] is not None:
            if settings["top_k"] is None:
                warnings.warn("topk is the old name of top_k", UserWarning, stacklevel=4)
            settings["top_k"] = settings["top_k"] or settings["topk"]
        most: int = self.model.max_length
        own = self.tokenizer.model_max_length
        asked = settings["max_seq_len"]
        if asked is not None and asked > most:
            raise InvalidOptionError(
                f"[{self.task}] max_seq_len must be at most the model's length, got {asked} for {most}; lower it"
            )
        length = asked or min(most, own or most, DEFAULT_LENGTH)
        stride = settings["doc_stride"]
        if stride is not None and stride > length:
            raise InvalidOptionError(f"[{self.task}] doc_stride must be at most max_seq_len, got {stride} for {length}")
        return settings | {"top_k": settings["top_k"] or 1, "max_seq_len": length}

    def _read(self, given: Any) -> Example:
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - {"question", "context"}, key=str)
            question, context = given.get("question"), given.get("context")
            if unknown:
                raise PromptError(f"[{self.task}] a dict has question and context, got {', '.join(map(str, unknown))}")
        else:
            question, context = getattr(given, "question_text", None), getattr(given, "context_text", None)
        values = {"question": question, "context": context}
        wrong = [name for name, value in values.items() if not isinstance(value, str) or not value]
        if wrong:
            raise PromptError(
                f"[{self.task}] takes {self.TAKES}, got {given!r:.80}; {' and '.join(wrong)} must be a str, not empty"
            )
        return Example(str(question), str(context))

    def _prepare(self, item: Example, settings: Settings) -> Prepared[Example]:
        question, context = self._span(item.question), self._span(item.context)
        if not len(context):
            raise PromptError(f"[{self.task}] a context must have tokens, got none of {item.context!r:.60}")
        longest = settings["max_question_len"]
        cut = 0 if longest is None else max(0, len(question) - longest)
        question = question.part(0, len(question) - cut)
        room = settings["max_seq_len"] - self.tokenizer.num_special_tokens(True) - len(question)
        if room < 1:
            raise ContextLengthError(
                f"[{self.task}] a question must leave room for a context, got {len(question)} tokens of a question for "
                f"a length of {settings['max_seq_len']}; shorten it, or pass max_question_len to have it cut"
            )
        parts = [context.part(*part) for part in windows.windows(len(context), room, self._stride(room, settings))]
        if self._context_place == 1:
            encodings = [windows.assemble(self.tokenizer, question, part) for part in parts]
        else:
            encodings = [windows.assemble(self.tokenizer, part, question) for part in parts]
        return Prepared(item, encodings, cut)

    def _span(self, text: str) -> windows.Span:
        return windows.spans_of(self.tokenizer.encode_plus(text, add_special_tokens=False))[0]

    def _stride(self, room: int, settings: Settings) -> int:
        """Tokens that windows of `room` tokens of a context share."""
        asked: int | None = settings["doc_stride"]
        if asked is None:
            usual = min(settings["max_seq_len"] // 2, DEFAULT_STRIDE)
            return usual if usual < room else room // 2
        windows.check_stride(self.task, "doc_stride", asked, room)
        return asked

    @property
    def _context_place(self) -> int:
        """0 or 1: models that pad on the left (XLNet) read the context before the question."""
        return 1 if self.tokenizer.padding_side == "right" else 0

    def _cls(self, encoding: Encoding) -> int | None:
        """Where the token is that stands for "no answer"."""
        cls = self.tokenizer.cls_token_id
        places = [at for at, id in enumerate(encoding.ids) if id == cls and encoding.special_mask[at]]
        return places[0] if places else None

    def _finish(self, prepared: Prepared[Example], outputs: Sequence[Floats], settings: Settings) -> Any:
        top_k, context = settings["top_k"], prepared.item.context
        found: list[tuple[float, int, int]] = []
        null = 1e6
        for encoding, logits in zip(prepared.encodings, outputs, strict=True):
            spans, window_null = answer_spans.window_spans(
                logits[:, 0],
                logits[:, 1],
                [sequence == self._context_place for sequence in encoding.sequence_ids],
                self._cls(encoding),
                top_k=top_k,
                max_answer_len=settings["max_answer_len"],
            )
            null = min(null, window_null)
            for span in spans:
                places = encoding.offsets, encoding.word_ids, encoding.sequence_ids
                found.append((span.score, *answer_spans.character_span(span, *places, settings["align_to_words"])))
        allowed = null if settings["handle_impossible_answer"] else None
        answers = [with_cut(each, prepared.cut) for each in answer_spans.ranked(found, context, allowed, top_k)]
        return answers[0] if len(answers) == 1 else answers
