"""`Seq2SeqModel`: a loaded encoder-decoder that turns one text into another: translation, summaries and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..decode.options import GenerationOptions
from ..errors import InvalidConfigError, InvalidOptionError, UnsupportedModelError
from ..tokenization import Detokenizer, Tokenizer
from .captures import Collected, Floats, Layers, Wanted, attention_names, hidden_names, split_wanted
from .engine import Engine
from .generating import GeneratingModel, check_streamable
from .prompts import Prompt, Prompts, read_ids, read_prompt, read_prompts
from .results import Generation
from .scoring import Score, score_rows
from .sources import Source, encode_batches, release
from .streams import TextStream

Prefix = str | Sequence[int] | None


class Seq2SeqModel(GeneratingModel):
    """An encoder-decoder model ready to run: T5, BART, Marian and so on. See `Model` for its attributes."""

    @overload
    def generate(self, source: Prompt, **options: Any) -> Generation: ...
    @overload
    def generate(self, source: Prompts, **options: Any) -> list[Generation]: ...
    def generate(self, source: Prompt | Prompts, **options: Any) -> Generation | list[Generation]:
        """Reads one source (a str or a list of token ids) or, in one batch, a list of them, and writes the target.

        src_lang, tgt_lang   language codes of models that have them (M2M100, NLLB, mBART)
        target_prefix        a str, or token ids, that the target begins with; of a list of sources one for each, or one
                             for all. The text of a result includes it, its token_ids are what came after
        options              transformers' generate() options by name, on top of generation_config.json;
                             output_hidden_states and output_attentions take True or a list of the decoder's layers

        Raises PromptError, ContextLengthError, InvalidOptionError, UnknownOptionError, NumericError, TokenizerError.
        """
        prefix, languages, options = _own(options)
        sources, single = read_prompts(source, lambda text: self._read(text, languages))
        options, wanted = split_wanted(options, self.program)
        chosen = self.options(options, languages)
        results = self.run(sources, chosen, self.starts(prefix, len(sources), chosen, languages), wanted)
        return results[0] if single else results

    def stream(self, source: Prompt, **options: Any) -> TextStream:
        """Iterator over pieces of the target, each as soon as it is certain. Options as for `generate`; no beams."""
        self._check_writes("stream")
        prefix, languages, options = _own(options)
        ids = read_prompt(source, lambda text: self._read(text, languages), "stream")
        chosen = self.options(options, languages)
        check_streamable(chosen)
        self._check_source("stream", ids)
        starts = self.starts(prefix, 1, chosen, languages)
        policy = self._policies(starts, chosen, [ids])[0]
        return TextStream(self._pieces(policy, self._following(self.tokenizer, starts[0])))

    def logits(self, decoder_ids: Sequence[int], *, source: Prompt) -> NDArray[np.float32]:
        """One forward pass: float32 [T, V] for decoder_ids (the decoder's input, its start token first) and a source;
        [T, labels] of a classifier. Raises PromptError, ContextLengthError."""
        ids = read_ids(decoder_ids, "logits", "decoder_ids")
        self._check_ids("logits", ids, self.program.vocab_size, self.max_positions)
        with self._session() as engine:
            encoded = self._encode_one(engine, source, "logits")
            try:
                return engine.score(ids, encoded)
            finally:
                release(engine.cross, encoded)

    @overload
    def encode(self, source: Prompt) -> Floats: ...  # type: ignore[overload-overlap]
    @overload
    def encode(self, source: Prompts) -> list[Floats]: ...
    def encode(self, source: Prompt | Prompts) -> Floats | list[Floats]:
        """The encoder's last hidden state: float32 [S, D], or a list for a list of sources."""
        sources, single = read_prompts(source, self._encode, "encode")
        for ids in sources:
            self._check_source("encode", ids)
        found: list[Floats] = []
        with self._cache("encode") as cache, self._cache("cross") as cross:
            for outputs, stored in encode_batches(self._open_runner(), cache, sources, cross=cross, wanted="all"):
                found += outputs
                for each in stored:
                    release(cross, each)
        return found[0] if single else found

    @overload
    def score(  # type: ignore[overload-overlap]
        self, source: Prompt, target: Prompt, *, src_lang: str | None = None, tgt_lang: str | None = None
    ) -> Score: ...
    @overload
    def score(
        self, source: Prompts, target: Prompts, *, src_lang: str | None = None, tgt_lang: str | None = None
    ) -> list[Score]: ...
    def score(
        self,
        source: Prompt | Prompts,
        target: Prompt | Prompts,
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
    ) -> Score | list[Score]:
        """Log-probability of every token of a target, its end token included, given its source; or of several pairs.

        Targets given as text are tokenized with their special tokens; as ids they are scored as they are. Raises
        PromptError, ContextLengthError, NumericError.
        """
        self._check_writes("score")
        languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        sources, single = read_prompts(source, lambda text: self._read(text, languages), "score")
        targets, single_target = read_prompts(target, lambda text: self._read_target(text, languages), "score")
        if single != single_target or len(sources) != len(targets):
            pairs = ((single, sources), (single_target, targets))
            given = " and ".join("one" if one else f"a list of {len(ids)}" for one, ids in pairs)
            raise InvalidOptionError(
                f"[score] each source needs one target, got {given}; pass two texts, or two lists of the same length"
            )
        start = self._start(self.options({}, languages))
        with self._session() as engine:
            scores = [self._score_one(engine, s, [start, *t]) for s, t in zip(sources, targets, strict=True)]
        return scores[0] if single else scores

    def hidden_states(self, decoder_ids: Sequence[int], *, source: Prompt, layers: Layers = None) -> list[Floats]:
        """transformers' `decoder_hidden_states`, float32 [T, D] each: 0 the embeddings, i what layer i gives."""
        names = hidden_names(self.program, layers)
        return self._collect("hidden_states", decoder_ids, source, Collected(buffers=names)).hidden(names)

    def attentions(
        self, decoder_ids: Sequence[int], *, source: Prompt, layers: Layers = None, cross: bool = False
    ) -> list[Floats]:
        """The decoder's attention weights, float32 [H, T, T] for each layer wanted; cross: those over the source,
        [H, T, S]."""
        names = attention_names(self.program, layers, cross=cross)
        return self._collect("attentions", decoder_ids, source, Collected(attentions=names)).weights(names)

    def options(self, given: Mapping[str, Any], languages: Mapping[str, str | None] | None = None) -> GenerationOptions:
        """generation_config.json under the options given; a target language brings its forced token."""
        own = dict(given)
        target = (languages or {}).get("tgt_lang")
        if target is not None and "forced_bos_token_id" not in own:
            own["forced_bos_token_id"] = self.tokenizer.forced_bos_token_id(target)
        return GenerationOptions.build(self.generation_config, own)

    def run(
        self,
        sources: Sequence[list[int]],
        options: GenerationOptions,
        starts: Sequence[list[int]] | None = None,
        wanted: Wanted | None = None,
    ) -> list[Generation]:
        """`generate` for callers that have token ids and checked options. starts: what each decoder begins with, its
        start token included; None: the start token."""
        self._check_writes("generate")
        for ids in sources:
            self._check_source("generate", ids)
        begun = [[self._start(options)] for _ in sources] if starts is None else list(starts)
        return self._run_policies(self._policies(begun, options, sources), options, wanted)

    def starts(
        self, prefix: Any, count: int, options: GenerationOptions, languages: Mapping[str, str | None] | None = None
    ) -> list[list[int]]:
        """What each of `count` decoders begins with, for `run`: the start token, and before a prefix (see `generate`)
        the token that is forced there. Raises InvalidOptionError for another number of prefixes."""
        several = isinstance(prefix, Sequence) and not isinstance(prefix, str) and _is_nested(prefix)
        prefixes: list[Prefix] = list(prefix) if several else [prefix] * count
        if len(prefixes) != count:
            raise InvalidOptionError(
                f"[generate] target_prefix must be one for all sources or one for each, got {len(prefixes)} for {count}"
            )
        start, forced = self._start(options), options.forced_bos_token_id
        begun = []
        for each in prefixes:
            follows = []
            if isinstance(each, str):
                follows = self._read_target(each, languages or {}, bare=True)
            elif each is not None:
                follows = read_ids(each, "generate", "target_prefix, if it is no str,")
            begun.append([start, *([forced] if follows and forced is not None else []), *follows])
        return begun

    @property
    def max_source_positions(self) -> int:
        """Most tokens of a source."""
        assert self.network.encode is not None
        return self.network.encode.max_positions

    def _read(self, text: str, languages: Mapping[str, str | None]) -> list[int]:
        given: dict[str, Any] = {name: code for name, code in languages.items() if code is not None}
        return self.tokenizer.encode(text, **given)

    def _read_target(self, text: str, languages: Mapping[str, str | None], bare: bool = False) -> list[int]:
        given: dict[str, Any] = {name: code for name, code in languages.items() if code is not None}
        return self.tokenizer.encode(text, not bare, target=True, **given)

    def _start(self, options: GenerationOptions) -> int:
        """The token that the decoder starts with. Raises InvalidConfigError when no file names one."""
        found = (options.decoder_start_token_id, self.config.get("decoder_start_token_id"), options.bos_token_id)
        for token in (*found, self.config.get("bos_token_id")):
            if isinstance(token, int):
                return token
        raise InvalidConfigError(
            "[config.json] decoder_start_token_id must name the token that targets start with, it is missing; add it, "
            "or pass decoder_start_token_id="
        )

    @staticmethod
    def _following(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> Detokenizer:
        """The whole target is the text: its prefix comes out with the first new token."""
        return _Target(tokenizer.detokenizer(), prompt_ids) if len(prompt_ids) > 1 else tokenizer.detokenizer()

    def _check_writes(self, where: str) -> None:
        if self.network.head is not None:
            raise UnsupportedModelError(
                f"[{where}] the model must write text, this checkpoint has a {self.network.head} head; use the "
                "text-classification or zero-shot-classification pipeline, or logits()"
            )

    def _check_source(self, where: str, ids: Sequence[int]) -> None:
        assert self.network.encode is not None
        self._check_ids(where, ids, self.network.encode.vocab_size, self.max_source_positions)

    def _encode_one(self, engine: Engine, source: Prompt, where: str) -> Source:
        ids = read_prompt(source, self._encode, where)
        self._check_source(where, ids)
        with self._cache("encode") as cache:
            for _, sources in encode_batches(self._open_runner(), cache, [ids], cross=engine.cross):
                return sources[0]
        raise AssertionError("one text gives one source")

    def _score_one(self, engine: Engine, source: list[int], ids: list[int]) -> Score:
        self._check_ids("score", ids[:-1], self.program.vocab_size, self.max_positions)
        encoded = self._encode_one(engine, source, "score")
        try:
            return score_rows(engine.score_rows(ids[:-1], source=encoded), ids[1:], preceded=True)
        finally:
            release(engine.cross, encoded)

    def _collect(self, where: str, decoder_ids: Sequence[int], source: Prompt, collected: Collected) -> Collected:
        ids = read_ids(decoder_ids, where, "decoder_ids")
        self._check_ids(where, ids, self.program.vocab_size, self.max_positions)
        with self._session() as engine:
            encoded = self._encode_one(engine, source, where)
            try:
                for _ in engine.score_rows(ids, source=encoded, capture=collected.capture):
                    collected.read()
            finally:
                release(engine.cross, encoded)
        return collected


class _Target(Detokenizer):
    """Puts a prefix's text before that of the first new token."""

    def __init__(self, detokenizer: Detokenizer, prefix_ids: Sequence[int]) -> None:
        self._inner = detokenizer
        self._held = "".join(map(detokenizer.push, prefix_ids))

    def push(self, id: Any) -> str:
        held, self._held = self._held, ""
        return held + self._inner.push(id)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held + self._inner.finish()


def _own(options: dict[str, Any]) -> tuple[Any, dict[str, str | None], dict[str, Any]]:
    """(target_prefix, languages, options for the search)"""
    rest = dict(options)
    prefix = rest.pop("target_prefix", None)
    languages = {name: rest.pop(name, None) for name in ("src_lang", "tgt_lang")}
    return prefix, languages, rest


def _is_nested(prefix: Sequence[Any]) -> bool:
    """Whether this is one prefix for each source: its items are no token ids."""
    return len(prefix) > 0 and not isinstance(prefix[0], (int, np.integer))
