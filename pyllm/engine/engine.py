"""The one decode loop: each step runs a ragged batch of all live sequences; every policy chooses its next tokens.

Generation, streaming, pipelines and servers drive this loop. Knows no text and no search rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode.policy import Policy
from ..decode.steps import Advance, Verified
from ..errors import InvalidOptionError
from ..program.batch import Batch, Capture, DeviceRows, KvCache, Runner, on_host
from .ahead import RunAhead
from .batching import BatchBuilder
from .groups import Choosing, Group, can_summarise, fetched
from .sequences import SequenceTable
from .sources import Source, release
from .speculation import Assistant, Draft, Lookup

ROWS_PER_STEP = 512  # of a runner that has no number of its own; an eighth is left to prompts however many decode
Rows = NDArray[np.float32] | DeviceRows
SCORED_ROWS = 128  # rows whose logits `score` takes at once: 128 x 50k floats are 25 MB


class Engine:
    """Runs groups together on one runner and one cache. Use it in a `with` block: leaving it, for whatever reason,
    releases every block.

        with Engine(runner) as engine:
            engine.add(policy)
            while engine.busy:
                for group in engine.step():
                    ...

    Groups may be added and dropped between steps. What a group computes does not depend on its company. After an
    exception out of `step` the engine can only be closed. cross: the cross cache of an encoder-decoder; `attention`
    names the output whose attention weights policies are shown when they need them. assistant: who proposes tokens to
    policies that ask for an assistant_model. rows_per_step None: as many as suit the runner.
    """

    def __init__(
        self,
        runner: Runner,
        cache: KvCache | None = None,
        *,
        cross: KvCache | None = None,
        attention: str | None = None,
        assistant: Assistant | None = None,
        rows_per_step: int | None = None,
    ) -> None:
        self.cache = runner.new_cache() if cache is None else cache
        self.cross = cross
        self._attention = attention
        self._assistant = assistant
        self._runner = runner
        self._rows_per_step = rows_per_step or int(getattr(runner, "rows_per_step", ROWS_PER_STEP))
        self._sequences = SequenceTable(self.cache)
        self._builder = BatchBuilder(self._sequences)
        self._ahead = RunAhead(runner, self.cache, cross, self._sequences, self._builder)
        self._groups: list[Group] = []
        self._summarises = can_summarise(runner)
        self._device_rows: Callable[[Any], DeviceRows] | None = getattr(runner, "device_rows", None)
        self._told: set[str] = set()  # why logits came to the host, as logged
        self._running: list[Group] = []  # groups whose logits the current batch yields, in its order
        self._choosing = Choosing([], False)  # for them
        self._steady = False  # the next batch has the same groups and row counts, one token further
        self._moved = False  # some sequence changed its slot since the last batch

    def add(self, policy: Policy, source: Source | None = None) -> Group:
        """A new group for `policy.prompt_ids`; it joins the next step, and owns `source` from now on."""
        group = Group(policy, self._sequences.open(), source)
        self._groups.append(group)
        self._steady = False
        return group

    def drop(self, group: Group) -> None:
        """Takes a group out, finished or not, and releases its blocks."""
        self._groups.remove(group)
        for slot in group.slots:
            self._sequences.close(slot)
        group.slots = []
        self._forget(group.guesses or ())
        if group.source is not None:
            release(self.cross, group.source)
        self._steady = False

    def step(self) -> list[Group]:
        """Runs one batch and lets the groups choose. Returns the groups that chose tokens or finished in this step
        (finished ones are dropped already): none of them while long prompts are still being read."""
        if self._ahead.flies():
            return self._land()
        if not self._groups:
            return []
        batch = self._next_batch() if self._steady else self._compose()
        if self._ahead.begin(self._choosing, batch):
            self._steady = True
            return self._land()
        advanced = self._running
        logits: Any = self._run(batch)
        if self._device_rows is not None:
            logits = self._device_rows(logits)
            self._choosing.choose(logits)
        if self._choosing.lanes is None:
            steady = self._advance_all(logits) and len(advanced) == len(self._groups)
            self._steady = steady and len(batch.ids) == len(logits)
            if self._steady:
                self._choosing.join()
        else:
            self._advance_lanes(logits)
        return advanced

    def _land(self) -> list[Group]:
        """A step whose tokens a device has chosen; if nothing has changed, the one after it is launched first."""
        advanced, ended = self._ahead.land(self._steady)
        self._steady = self._ahead.flies()
        for group in ended:
            self.drop(group)
        return advanced

    def _run(self, batch: Batch) -> NDArray[np.float32]:
        if self.cross is not None:
            return self._run_with_sources(batch)
        return self._runner.run(batch, self.cache, **self._choosing.wanted)

    def _advance_all(self, logits: Rows) -> bool:
        """Lets every running group choose; whether their next rows follow on these one for one."""
        steady, row = True, 0
        for group in self._running:
            rows = group.rows
            steady = self._advance(group, row, logits) and steady
            row += rows
        return steady

    def _advance_lanes(self, logits: Any) -> None:
        """The same in a steady decode, where most need nothing but a choice."""
        on_device = self._device_rows is not None
        ended = self._choosing.take_chosen(logits) if on_device else self._choosing.advance_members(logits)
        steady = True
        for group, row in self._choosing.others:
            steady = self._advance(group, row, logits) and steady
        for group in ended:
            self.drop(group)
        self._steady = steady and not ended

    def _advance(self, group: Group, row: int, logits: Rows) -> bool:
        """Lets one group choose from its rows, which begin at `row`."""
        count, guesses = len(group.slots), group.guesses
        rows = logits if group.rows == len(logits) else logits[row : row + group.rows]
        step: Advance | None = None
        if not isinstance(rows, np.ndarray):
            step = self._choosing.advance_group(group, row, rows)
            rows = fetched(group.policy, rows, self._told) if step is None else rows
        if isinstance(rows, np.ndarray):
            if guesses:
                step = group.policy.verify(rows, [guess.proposal for guess in guesses])
            else:
                step = group.policy.advance(rows, self._choosing.blocks(group, row))
        if isinstance(step, Verified):
            self._shorten(group, guesses or (), step.grown)
        assert step is not None
        group.tokens = step.tokens
        if not step.tokens:
            self.drop(group)
            return False
        if len(step.parents) != count or step.parents != list(range(count)):
            group.slots = self._sequences.reorder(group.slots, step.parents)
            self._moved = True
        if guesses:
            kept = set(step.parents)
            self._forget([guess for i, guess in enumerate(guesses) if i not in kept])
            group.guesses = [guesses[parent] for parent in step.parents]
        elif guesses is not None:
            group.guesses = [self._guess(group.policy, group.policy.live_index(i)) for i in range(len(step.tokens))]
        return guesses is None and len(step.parents) == count

    def _shorten(self, group: Group, guesses: Sequence[Lookup | Draft], grown: Sequence[int]) -> None:
        """What sequences that ran proposals were wrong about leaves the cache."""
        for slot, guess, count in zip(group.slots, guesses, grown, strict=True):
            self._sequences.shorten(slot, 1 + len(guess.proposal.tokens) - count)
            if isinstance(guess, Draft) and self._assistant is not None:
                self._assistant.settle(guess, count)

    def _guess(self, policy: Policy, sequence: int) -> Lookup | Draft:
        """Who proposes tokens to the returned sequence of this index."""
        if policy.options.prompt_lookup_num_tokens is not None:
            return Lookup(policy)
        if self._assistant is None:
            raise InvalidOptionError(
                "[engine] assistant_model must be known to the engine, it has none; pass Engine(assistant=...)"
            )
        return self._assistant.open(policy, sequence)

    def _forget(self, guesses: Iterable[Lookup | Draft]) -> None:
        for guess in guesses:
            if isinstance(guess, Draft) and self._assistant is not None:
                self._assistant.close(guess)

    def _propose(self) -> None:
        """Has the next tokens guessed of every sequence that speculates."""
        asked: list[tuple[Draft, list[int], int]] = []
        for group in self._groups:
            if not group.tokens:
                continue
            for i, guess in enumerate(group.guesses or ()):
                tokens = group.policy.live_tokens(i)
                room = group.policy.max_length - len(tokens) - 1  # the step's own token comes after them
                if isinstance(guess, Lookup):
                    guess.propose(tokens, room)
                else:
                    asked.append((guess, tokens, room))
        if asked and self._assistant is not None:
            self._assistant.propose(asked)

    @property
    def groups(self) -> int:
        """Groups that have not finished."""
        return len(self._groups)

    @property
    def busy(self) -> bool:
        """Whether any group is left."""
        return bool(self._groups)

    def score(self, ids: Sequence[int], source: Source | None = None) -> NDArray[np.float32]:
        """Outputs of every position of one text: float32 [len(ids), V], or [len(ids), labels] of a classifier."""
        out, at = np.empty((0, 0), np.float32), 0
        for rows in self.score_rows(ids, source=source):
            out = np.empty((len(ids), rows.shape[1]), np.float32) if at == 0 else out
            out[at : at + len(rows)] = rows
            at += len(rows)
        return out

    def score_rows(
        self,
        ids: Sequence[int],
        *,
        chunk: int = SCORED_ROWS,
        source: Source | None = None,
        capture: Capture | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """The same in pieces of `chunk` rows, each valid until the next. `capture` is filled anew for every piece; the
        caller keeps `source`."""
        slot = self._sequences.open()
        tokens = np.array(ids, np.int32)
        try:
            for begin in range(0, len(ids), chunk):
                piece = tokens[begin : begin + chunk]
                self._steady = False  # the builder's batch is another one from here on
                self._sequences.extend(slot, len(piece))
                self._builder.start()
                self._builder.add(slot, piece, logits_from=0, source=source)
                batch = self._builder.build()
                if self.cross is None and capture is None:
                    yield on_host(self._runner, self._runner.run(batch, self.cache))
                else:
                    output = self._runner.run(batch, self.cache, cross=self.cross, capture=capture)
                    yield on_host(self._runner, output)
        finally:
            self._sequences.close(slot)

    def close(self) -> None:
        """Ends every group and releases every block."""
        for group in self._groups:
            if group.source is not None:
                release(self.cross, group.source)
        self._groups = []
        self._steady = False
        self._ahead.forget()
        self._sequences.clear()
        if self._assistant is not None:
            self._assistant.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_with_sources(self, batch: Batch) -> NDArray[np.float32]:
        """A decoder's step; policies that need it are shown what the first head attends to (as in CTranslate2)."""
        watching = self._attention is not None and any(group.policy.needs_attention for group in self._running)
        wanted = self._choosing.wanted
        if not watching:
            return self._runner.run(batch, self.cache, cross=self.cross, **wanted)
        name = str(self._attention)
        capture = Capture(attentions=(name,))
        logits = self._runner.run(batch, self.cache, cross=self.cross, capture=capture, **wanted)
        self._choosing.note_attention(batch, capture.weights[name])
        return logits

    def _next_batch(self) -> Batch:
        """The batch after a steady step: one token per sequence, in the same order."""
        groups = self._running
        if len(groups) == 1:
            slots, tokens = groups[0].slots, groups[0].tokens
        else:
            slots = [slot for group in groups for slot in group.slots]
            tokens = [token for group in groups for token in group.tokens]
        changed = self._sequences.append(slots)
        moved, self._moved = self._moved, False
        return self._builder.repeat(slots if changed or moved else None, tokens)

    def _compose(self) -> Batch:
        """Decoding groups first, one row per sequence; then prompts, in order of arrival, up to the rows of a step."""
        builder = self._builder
        self._propose()
        builder.start()
        self._running = []
        rows = 0
        for group in self._groups:
            if group.tokens:
                rows += self._add_tokens(group)
        budget = max(self._rows_per_step - rows, self._rows_per_step // 8, 1)
        for group in self._groups:
            if not group.tokens and budget:
                budget -= self._add_prompt(group, budget)
        self._moved = False
        self._choosing = Choosing(self._running, self._summarises)
        return builder.build()

    def _add_tokens(self, group: Group) -> int:
        """Adds the tokens chosen last, each with those that are proposed to follow it. Returns the rows."""
        group.rows = 0
        if group.guesses is None:
            self._sequences.append(group.slots)
        for i, (slot, token) in enumerate(zip(group.slots, group.tokens, strict=True)):
            piece = [token, *group.guesses[i].proposal.tokens] if group.guesses else [token]
            if group.guesses:
                self._sequences.extend(slot, len(piece))
            self._builder.add(slot, piece, logits_from=0, source=group.source)
            group.rows += len(piece)
        self._running.append(group)
        return group.rows

    def _add_prompt(self, group: Group, budget: int) -> int:
        """Adds the next rows of a prompt, at most `budget`; the prompt's last row wants logits. Returns the rows."""
        chunk = group.prompt[group.prompt_run : group.prompt_run + budget]
        group.prompt_run += len(chunk)
        complete = group.prompt_run == len(group.prompt)
        self._sequences.extend(group.slots[0], len(chunk))
        self._builder.add(group.slots[0], chunk, logits_from=-1 if complete else len(chunk), source=group.source)
        if complete:
            group.rows = 1
            self._running.append(group)
        return len(chunk)
