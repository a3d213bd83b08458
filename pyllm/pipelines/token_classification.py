"""The token-classification pipeline (also ner): labels of a text's tokens, or of the entities they make up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..errors import InvalidOptionError, PromptError
from ..tokenization.encoding import Encoding
from . import entities, labels, task_options, windows
from .encoder_pipeline import EncoderPipeline, Floats, Prepared
from .entities import Entity, Token
from .inputs import is_stream
from .task_options import Option, Settings, Table
from .task_pipeline import with_cut


class TokenClassificationPipeline(EncoderPipeline[str]):
    """`ner("I am Ada", aggregation_strategy="simple") -> [{"entity_group": "PER", "word": "Ada", "start": 5, ...}]`"""

    task = "token-classification"
    HEAD = "token-classification"
    OPTIONS: ClassVar[Table] = {
        **task_options.COMMON,
        **task_options.CUTTING,
        "aggregation_strategy": task_options.choice("none", entities.STRATEGIES),
        "ignore_labels": Option(
            ("O",),
            lambda value: isinstance(value, (list, tuple)) and all(isinstance(label, str) for label in value),
            "be a list of str",
        ),
        "grouped_entities": task_options.flag(None),
        "ignore_subwords": task_options.flag(None),
        "stride": task_options.count(None, 0),
        "is_split_into_words": task_options.flag(),
        "delimiter": task_options.text(" "),
    }

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Entities of one text, or of each in a list or generator.

        aggregation_strategy   "none": a dict for each token; "simple", "first", "average", "max": one for each entity
                               (see entities.py)
        grouped_entities       True: aggregation_strategy="simple", or "first" with ignore_subwords=True (its old names)
        ignore_labels          labels left out; default ["O"]
        stride                 a text that is too long is read in windows that share this many tokens (needs a strategy
                               other than "none"). Otherwise it raises ContextLengthError
        truncation             True: cut what the model can't read, and say so as record["truncated_tokens"]
        is_split_into_words    inputs are lists of words; places count in the words joined by `delimiter`
        batch_size             texts run together; results don't depend on it

        Returns a list of {"entity", "score", "index", "word", "start", "end"}, or of {"entity_group", "score", "word",
        "start", "end"}; for a list of texts a list of these lists.
        """
        settings = self._settings(options)
        words = settings["is_split_into_words"]
        single = isinstance(inputs, str)
        if words and isinstance(inputs, (list, tuple)) and inputs and all(isinstance(each, str) for each in inputs):
            inputs = [inputs]  # as transformers: a list of one text
        if words and is_stream(inputs):
            inputs = (self._joined(each, settings["delimiter"]) for each in inputs)
        elif words and isinstance(inputs, (list, tuple)):
            inputs = [self._joined(each, settings["delimiter"]) for each in inputs]
        return self._call(inputs, options, single)

    def _joined(self, words: Any, delimiter: str) -> str:
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise PromptError(
                f"[{self.task}] with is_split_into_words=True each input is a list of words, got {words!r:.60}"
            )
        return delimiter.join(words)

    def _settings(self, options: Any) -> Settings:
        settings = super()._settings(options)
        old = {name: settings.pop(name) for name in ("grouped_entities", "ignore_subwords")}
        if any(value is not None for value in old.values()):
            if settings["aggregation_strategy"] != "none":
                names = " and ".join(name for name, value in old.items() if value is not None)
                raise InvalidOptionError(f"[{self.task}] aggregation_strategy takes the place of {names}; give one")
            grouped = "first" if old["ignore_subwords"] else "simple"
            settings["aggregation_strategy"] = grouped if old["grouped_entities"] else "none"
        if settings["stride"] is not None and settings["aggregation_strategy"] == "none":
            raise InvalidOptionError(
                f"[{self.task}] stride={settings['stride']} needs an aggregation_strategy, tokens of two windows are "
                "not put together without one; pass 'simple', 'first', 'average' or 'max'"
            )
        return settings

    def _read(self, given: Any) -> str:
        return self._text(given)

    def _prepare(self, item: str, settings: Settings) -> Prepared[str]:
        stride = settings["stride"]
        if stride is None:
            fitted = self._fit(item, None, settings)
            return Prepared(item, [fitted.encoding], fitted.cut)
        return Prepared(item, windows.divide(self.tokenizer, self.task, item, self._limit(settings), stride))

    def _finish(self, prepared: Prepared[str], outputs: Sequence[Floats], settings: Settings) -> list[Entity]:
        names = labels.id2label(self.model.config, outputs[0].shape[-1])
        found: list[Entity] = []
        for encoding, logits in zip(prepared.encodings, outputs, strict=True):
            tokens = self._tokens(prepared.item, encoding, logits)
            grouped = entities.entities(tokens, names, settings["aggregation_strategy"], self.tokenizer.tokens_to_text)
            ignored = settings["ignore_labels"]
            found += [entity for entity in grouped if entity.get("entity", entity.get("entity_group")) not in ignored]
        if len(prepared.encodings) > 1:
            found = entities.without_overlaps(found)
        return [with_cut(entity, prepared.cut) for entity in found]

    def _tokens(self, text: str, encoding: Encoding, logits: Floats) -> list[Token]:
        scores = labels.softmax(logits)
        by_word = bool(self.tokenizer.subword_prefix)
        tokens: list[Token] = []
        previous: int | None = None
        for index, id in enumerate(encoding.ids):
            if encoding.special_mask[index]:
                continue
            begin, end = encoding.offsets[index]
            word = self.tokenizer.id_to_token(id) or ""
            if by_word:
                continues = encoding.word_ids[index] is not None and encoding.word_ids[index] == previous
            else:  # transformers' rule for vocabularies that don't split into words first
                continues = begin > 0 and " " not in text[begin - 1 : begin + 1]
            previous = encoding.word_ids[index]
            if id == self.tokenizer.unk_token_id:
                word, continues = text[begin:end], False
            tokens.append(Token(word, scores[index], index, begin, end, continues))
        return tokens
