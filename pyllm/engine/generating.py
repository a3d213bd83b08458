"""`GeneratingModel`: what decoders and encoder-decoders share: running policies, streams, results. No prompts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..decode.options import GenerationOptions
from ..decode.policy import Policy, make_policy
from ..errors import InvalidOptionError, PromptError
from ..program.batch import Runner
from ..tokenization import Detokenizer, Tokenizer
from .captures import Collected, Wanted, attention_names
from .engine import ROWS_PER_STEP, Engine
from .model import Model
from .prompts import bounded
from .results import GeneratedSequence, Generation, LazyText, SpeculationCounts
from .sources import Source, encode_batches, release
from .speculation import Assistant
from .streams import feed, new_tokens

# Live sequences of one call, for runners without a number of their own; further prompts wait: it bounds the cache.
SEQUENCES_AT_ONCE = 64


class GeneratingModel(Model):
    """A model with a decoder."""

    @contextmanager
    def _session(self, assistant_model: Any = None) -> Iterator[Engine]:
        """An engine on caches of its own. assistant_model: who proposes tokens (see GenerationOptions), if anyone."""
        with ExitStack() as stack:
            cache = stack.enter_context(self._cache("step"))
            cross = attention = assistant = None
            if assistant_model is not None:
                model = self._assistant(assistant_model)
                own = stack.enter_context(model._cache("step"))
                assistant = Assistant(model._open_runner(), own, self.program.vocab_size)
            if self.network.encode is not None:
                cross = stack.enter_context(self._cache("cross"))
                attention = attention_names(self.program, cross=True)[-1]
            engine = Engine(self._open_runner(), cache, cross=cross, attention=attention, assistant=assistant)
            yield stack.enter_context(engine)

    def _assistant(self, given: Any) -> GeneratingModel:
        """The model that is to propose tokens. Raises InvalidOptionError."""
        raise InvalidOptionError(
            f"[generate] assistant_model is for decoders, {self.folder.name} has an encoder; use "
            "prompt_lookup_num_tokens, or leave it out"
        )

    def _policies(
        self,
        prompts: Sequence[list[int]],
        options: GenerationOptions,
        sources: Sequence[list[int]] | None = None,
    ) -> list[Policy]:
        """One policy for each prompt; what is wrong with any of them is raised at once."""
        decode = self._decode_all if options.stop_strings else None
        policies: list[Policy] = []
        wrong: list[tuple[int, PromptError]] = []
        for index, ids in enumerate(prompts):
            fitting = bounded(options, len(ids), self.max_positions)
            try:
                policies.append(
                    make_policy(
                        ids,
                        fitting,
                        vocab_size=self.program.vocab_size,
                        batch_id=index,
                        max_positions=self.max_positions,
                        decode=decode,
                        source_ids=None if sources is None else sources[index],
                    )
                )
            except PromptError as error:
                wrong.append((index, error))
        if wrong and len(prompts) == 1:
            raise wrong[0][1]
        if wrong:
            raise type(wrong[0][1])(" | ".join(f"prompt {index}: {error}" for index, error in wrong))
        return policies

    def _run_policies(
        self, policies: Sequence[Policy], options: GenerationOptions, wanted: Wanted | None = None
    ) -> list[Generation]:
        with self._session(options.assistant_model) as engine:
            if options.streamer is not None:
                if len(policies) != 1:
                    raise InvalidOptionError(f"[generate] a streamer takes one prompt, got {len(policies)}; drop it")
                feed(options.streamer, engine, policies[0], self._sources(engine, policies)[0])
            else:
                run_all(engine, policies, at_once(options, self._open_runner()), self._sources)
            results = [self._generation(policy) for policy in policies]
            if wanted:
                results = [self._opened(engine, *pair, wanted) for pair in zip(policies, results, strict=True)]
            return results

    def _opened(self, engine: Engine, policy: Policy, result: Generation, wanted: Wanted) -> Generation:
        """The result with the network's inside: one more pass over each text, which gives the bits of the steps."""
        source = self._sources(engine, [policy])[0]
        sequences = []
        try:
            for sequence in result.sequences:
                collected = Collected(wanted.hidden, (*wanted.attentions, *wanted.cross))
                read = [*policy.prompt_ids, *sequence.token_ids][:-1]
                for _ in engine.score_rows(read, source=source, capture=collected.capture):
                    collected.read()
                opened = dataclasses.replace(
                    sequence,
                    hidden_states=collected.hidden(wanted.hidden) if wanted.hidden else None,
                    attentions=collected.weights(wanted.attentions) if wanted.attentions else None,
                    cross_attentions=collected.weights(wanted.cross) if wanted.cross else None,
                )
                sequences.append(opened)
        finally:
            if source is not None:
                release(engine.cross, source)
        return dataclasses.replace(result, sequences=sequences)

    def _sources(self, engine: Engine, policies: Sequence[Policy]) -> list[Source | None]:
        """The encoded source of each policy; None for those of a decoder."""
        if engine.cross is None:
            return [None] * len(policies)
        texts = [policy.request.source_ids or [] for policy in policies]
        with self._cache("encode") as cache:
            steps = encode_batches(self._open_runner(), cache, texts, cross=engine.cross)
            return [source for _, sources in steps for source in sources]

    def _pieces(self, policy: Policy, detokenizer: Detokenizer) -> Generator[str, None, Generation]:
        with self._session(policy.options.assistant_model) as engine:
            for tokens in new_tokens(engine, policy, self._sources(engine, [policy])[0]):
                for token in tokens:
                    if piece := detokenizer.push(token):
                        yield piece
        if piece := detokenizer.finish():
            yield piece
        return self._generation(policy)

    def _generation(self, policy: Policy) -> Generation:
        prompt_ids = tuple(policy.prompt_ids)
        sequences = [GeneratedSequence.of(h, self._text(prompt_ids, tuple(h.token_ids))) for h in policy.results()]
        counts = SpeculationCounts(policy.checked, policy.proposed, policy.accepted)
        return Generation(
            sequences,
            policy.prompt_ids,
            policy.seed if policy.options.do_sample else None,
            counts if policy.options.speculates else None,
        )

    def _text(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> LazyText:
        """What a stream of these tokens joins to: text that follows the prompt, its first space included.

        It knows how to get the tokenizer, but not the model: results that are kept keep no weights.
        """
        return LazyText(functools.partial(_joined, self._read_tokenizer, self._following, prompt_ids, token_ids))

    @staticmethod
    def _following(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> Detokenizer:
        """For tokens that follow the prompt."""
        return tokenizer.detokenizer(prompt_ids)

    def _decode_all(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def _joined(
    read_tokenizer: Callable[[], Tokenizer],
    following: Callable[[Tokenizer, Sequence[int]], Detokenizer],
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
) -> str:
    detokenizer = following(read_tokenizer(), prompt_ids)
    return "".join([*map(detokenizer.push, token_ids), detokenizer.finish()])


def at_once(options: GenerationOptions, runner: Runner) -> int:
    """Prompts whose sequences may live at once; with proposals, no more than fit the rows of a step."""
    width = max(options.num_beams, options.num_return_sequences)
    if options.return_alternatives:
        width = options.num_beams * options.num_return_sequences
    most = int(getattr(runner, "sequences_at_once", SEQUENCES_AT_ONCE))
    rows = ROWS_PER_STEP // (1 + options.most_proposed)
    return max(1, min(most, rows) // width)


def run_all(
    engine: Engine,
    policies: Sequence[Policy],
    at_once: int,
    encode: Callable[[Engine, Sequence[Policy]], list[Source | None]],
) -> None:
    """Runs every policy to its end, `at_once` of them side by side; others start as these end, a few at a time, so that
    their sources are encoded together."""
    waiting = list(policies)[::-1]
    while waiting or engine.busy:
        room = at_once - engine.groups
        if waiting and room >= min(len(waiting), max(1, at_once // 8)):
            fresh = [waiting.pop() for _ in range(min(room, len(waiting)))]
            for policy, source in zip(fresh, encode(engine, fresh), strict=True):
                engine.add(policy, source)
        engine.step()


def check_streamable(options: GenerationOptions) -> None:
    """Raises InvalidOptionError for options under which no text is certain before the end."""
    problems: dict[str, Any] = {
        "num_beams must be 1 (beams change until the end)": options.num_beams > 1,
        "num_return_sequences must be 1": options.num_return_sequences > 1,
        "streamer is for generate()": options.streamer is not None,
    }
    if any(problems.values()):
        raise InvalidOptionError("[stream] " + "; ".join(rule for rule, broken in problems.items() if broken))
