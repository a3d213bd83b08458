"""The text2text-generation pipeline, and what translation and summarization share with it: transformers 4's call and
return shapes over `Seq2SeqModel`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from ..decode.options import GenerationOptions
from ..engine.captures import Wanted, attention_names
from ..engine.results import GeneratedSequence
from ..engine.seq2seq_model import Seq2SeqModel
from ..errors import InvalidOptionError
from . import alignments, own_options, seq2seq_options, task_options
from . import inputs as shapes
from .seq2seq_sources import Languages, PreparedSource, prepare
from .task_options import Settings, Table
from .task_pipeline import Record, TaskPipeline, with_cut


@dataclass(frozen=True)
class Plan:
    """What a call's options come to: those of the search, the text put before each input, the languages."""

    generation: GenerationOptions
    prefix: str
    languages: Languages


class Text2TextPipeline(TaskPipeline[str]):
    """Turns texts into texts: `pipe("question: ...") -> [{"generated_text": ...}]`. KEY: how records' keys begin."""

    task = "text2text-generation"
    KINDS = ("encoder-decoder",)
    OPTIONS: ClassVar[Table] = seq2seq_options.OWN
    KEY: ClassVar[str] = "generated"

    def __init__(self, model: Seq2SeqModel, **defaults: Any) -> None:
        super().__init__(model, **defaults)
        self.model: Seq2SeqModel = model
        self._parameters = seq2seq_options.task_parameters(model.config, self.task)

    @classmethod
    def option_names(cls) -> frozenset[str]:
        """Every option that calls take."""
        return frozenset(cls.OPTIONS) | own_options.GENERATION

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raises InvalidOptionError or UnknownOptionError for options no call could take."""
        _, generation = seq2seq_options.split(cls.task, cls.OPTIONS, options)
        seq2seq_options.check(generation)

    @overload
    def __call__(self, inputs: str, **options: Any) -> list[Record]: ...
    @overload
    def __call__(self, inputs: Sequence[str], **options: Any) -> list[Any]: ...
    @overload
    def __call__(self, inputs: Iterable[str], **options: Any) -> Iterator[list[Record]]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Writes one text's target, or that of each of several.

        return_tensors         True: "..._token_ids" (start token and what follows it, a list of int) instead of text
        return_text            True: the text beside the token ids
        clean_up_tokenization_spaces   True: takes spaces before punctuation out of the text
        truncation             True: inputs are cut to what the model takes, and records say by how many tokens
                               ("truncated_tokens"); else inputs that are too long raise ContextLengthError
        stop_sequence          a str or list of them: ends the text, included in it
        src_lang, tgt_lang     language codes of models that have them
        target_prefix          text that the target begins with; for a list of inputs also a list of such texts
        return_scores          True: "score" (see GeneratedSequence.score)
        return_alignments      True: "alignments", pairs (i, j): the j-th word of the target was written looking at the
                               i-th of the input, words being what str.split() gives; "attention", float32
                               [target tokens, source tokens] of the last layer, mean over heads; "source_tokens" and
                               "target_tokens", what its columns and rows are
        batch_size             inputs run together. Results don't depend on it
        options                transformers' generate() options (num_return_sequences, max_length, ...) and pyllm's
                               (return_alternatives, coverage_penalty, ...)

        Returns a list of num_return_sequences dicts for one text; for a list of texts a list of dicts, or of such lists
        when there are several for each; for a generator or other iterable an iterator over such lists, which reads it
        as it goes. What neither the call nor config.json's task_specific_params nor generation_config.json sets is 4
        beams and at most 256 new tokens, as in transformers 4. Raises what `Seq2SeqModel.generate` raises.
        """
        prefixes = {**self._defaults, **options}.get("target_prefix")
        listed = isinstance(inputs, (list, tuple))
        if listed and isinstance(prefixes, (list, tuple)) and len(prefixes) != len(inputs):
            raise InvalidOptionError(
                f"[{self.task}] target_prefix must be one for all inputs or one for each, got {len(prefixes)} for "
                f"{len(inputs)} inputs; correct it"
            )
        found = self._call(inputs, options, isinstance(inputs, str))
        if listed and all(len(records) == 1 for records in found):
            return [records[0] for records in found]
        return found

    def _read(self, given: Any) -> str:
        return self._text(given)

    def _settings(self, options: Mapping[str, Any]) -> Settings:
        settings, asked = seq2seq_options.split(self.task, self.OPTIONS, {**self._defaults, **options})
        settings["plan"] = self._plan(settings, asked)
        return settings

    def _plan(self, settings: Settings, asked: Mapping[str, Any]) -> Plan:
        languages = self._languages(settings)
        own = dict(asked)
        if languages.forced is not None and own.get("forced_bos_token_id") is None:
            own["forced_bos_token_id"] = languages.forced
        options = seq2seq_options.generation(self.model.generation_config, self._parameters, own)
        if settings["return_scores"]:
            options = seq2seq_options.with_score(options)
        prefix = self._parameters.get("prefix", self.model.config.get("prefix"))
        return Plan(options, prefix or "", languages)

    def _languages(self, settings: Settings) -> Languages:
        """The languages of a call. Raises TokenizerError for those the tokenizer doesn't know."""
        source, target = settings["src_lang"], settings["tgt_lang"]
        forced = None if target is None else self.tokenizer.forced_bos_token_id(target)
        return Languages(source, target, forced)

    def _run(self, items: Sequence[str], settings: Settings, first: int | None) -> Iterator[list[Record]]:
        plan: Plan = settings["plan"]
        cuts = task_options.strategy(settings) != "do_not_truncate"

        def read(text: str) -> PreparedSource:
            return prepare(self.model, self.task, plan.prefix, text, plan.languages, cuts)

        sources = [read(items[0])] if first is None else shapes.read_all(items, read, first)
        self._warn_of_lengths([len(source.ids) for source in sources], plan.generation)
        prefixes = _prefixes(settings["target_prefix"], first, len(items))
        starts = self.model.starts(prefixes, len(items), plan.generation, plan.languages.codes)
        wanted = None
        if settings["return_alignments"]:
            wanted = Wanted(cross=attention_names(self.model.program, [-1], cross=True))
        results = self.model.run([source.ids for source in sources], plan.generation, starts, wanted)
        for source, start, result in zip(sources, starts, results, strict=True):
            yield [self._record(source, start, sequence, settings) for sequence in result.sequences]

    def _warn_of_lengths(self, lengths: Sequence[int], options: GenerationOptions) -> None:
        """Says which inputs' lengths do not go with the length of the targets."""

    def _record(self, source: PreparedSource, start: list[int], sequence: GeneratedSequence, own: Settings) -> Record:
        ids, clean_up = [*start, *sequence.token_ids], own["clean_up_tokenization_spaces"]
        record: Record = {}
        if own["return_text"] or not own["return_tensors"]:
            record[f"{self.KEY}_text"] = alignments.text_of(self.tokenizer, ids, clean_up)
        if own["return_tensors"]:
            record[f"{self.KEY}_token_ids"] = ids
        if own["return_scores"]:
            record["score"] = sequence.score
        if own["return_alignments"]:
            assert sequence.cross_attentions is not None
            attention = sequence.cross_attentions[0].mean(axis=0)
            record |= alignments.record(self.tokenizer, source, ids[1:], attention, clean_up)
        return with_cut(record, source.cut)


def _prefixes(given: Any, first: int | None, count: int) -> Any:
    """The target prefixes of the inputs first, first + 1, ..., given one for all, or a list with one for each."""
    if given is None or isinstance(given, str) or first is None:
        return given
    return list(given[first : first + count])
