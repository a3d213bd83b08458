"""Speculation: next tokens guessed cheaply, for one step of the model to check several of them at once.

Two ways to guess: tokens that followed the same few tokens before (`Lookup`), or what a smaller model would say
(`Assistant`). The model's own steps decide (decode/policy.py, `verify`): texts are the same as without, or, where an
assistant draws, distributed the same. A sequence's guesses depend on nothing but the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode.changes import Changes, make
from ..decode.drafting import Drafted, Drafting, likeliest
from ..decode.option_names import MOST_PROPOSED
from ..decode.policy import Policy
from ..decode.steps import Proposal
from ..program.batch import KvCache, Runner, on_host
from ..tokenization import Tokenizer
from .batching import BatchBuilder
from .sequences import SequenceTable

DRAFT_ROWS = 512  # rows of one step of an assistant, which longer texts are read in


class Lookup:
    """Proposes what followed the latest earlier occurrence of a sequence's last tokens, of the longest such run of at
    most max_matching_ngram_size tokens (transformers takes the first occurrence). Proposed tokens count as text: a run
    that repeats itself is continued for ever.

    What an encoder-decoder reads stands before what it writes.
    """

    def __init__(self, policy: Policy) -> None:
        options = policy.options
        self._most = options.prompt_lookup_num_tokens or 0
        self._ends = frozenset(options.eos_token_id)
        self._vocab_size = policy.request.vocab_size
        self._text = list(policy.request.source_ids or [])
        self._before = len(self._text)  # tokens of the source
        self._follows: list[dict[tuple[int, ...], int]] = [{} for _ in range(options.max_matching_ngram_size)]
        self._known = 0  # tokens that stand in _follows, as what follows
        self.proposal = Proposal()

    def propose(self, tokens: list[int], room: int) -> None:
        """Sets `proposal` after `tokens`, of `room` tokens at most."""
        self._text += tokens[len(self._text) - self._before :]
        self._learn()
        self.proposal = Proposal(self._continuation(min(room, self._most)))

    def _learn(self) -> None:
        text = self._text
        for size, follows in enumerate(self._follows, start=1):
            for end in range(max(size, self._known), len(text)):
                follows[tuple(text[end - size : end])] = end
        self._known = len(text)

    def _continuation(self, most: int) -> list[int]:
        text = self._text
        for size in range(min(len(self._follows), len(text)), 0, -1):
            begin = self._follows[size - 1].get(tuple(text[-size:]))
            if begin is None:
                continue
            found: list[int] = []
            for at in range(begin, begin + most):
                token = text[at] if at < len(text) else found[at - len(text)]
                if token in self._ends or token >= self._vocab_size:  # the model says itself when it ends
                    break
                found.append(token)
            if found:
                return found
        return []


class Draft:
    """One sequence as an assistant reads it on. `read`: tokens in the assistant's cache, proposed ones among them until
    `settle`."""

    def __init__(self, slot: int, drafting: Drafting, policy: Policy, sequence: int) -> None:
        self.slot = slot
        self.read = 0
        self.proposal = Proposal()
        self._drafting = drafting
        self._sequence = sequence
        self._options = policy.options
        self._ends = frozenset(policy.options.eos_token_id)
        self._count = policy.options.num_assistant_tokens
        self._most = 0
        self._length = 0  # of the text when the proposal was made
        self.text: list[int] = []  # with proposed tokens

    def begin(self, tokens: list[int], room: int) -> bool:
        """Starts a proposal of `room` tokens at most; whether there is anything to be done."""
        self.proposal = Proposal([], [] if self._options.do_sample else None)
        self.text, self._length = list(tokens), len(tokens)
        self._most = min(self._count, room)
        return self._most > 0

    def changes(self) -> Changes | None:
        """What a device has to do to the assistant's logits, whose best token is to be added then; None: `take` it."""
        return self._drafting.changes(self.text)

    def take(self, row: NDArray[np.float32]) -> bool:
        """Adds a token from the assistant's logits [1, V], and says as `add` does."""
        return self.add(self._drafting.choose(row, self.text, self._sequence))

    def add(self, drafted: Drafted | None) -> bool:
        """Proposes a token; whether more are to follow. Whether a token is proposed depends on those before it only,
        never on itself: otherwise drawn ones would no longer be distributed as said."""
        if drafted is None:
            return False
        self.proposal.tokens.append(drafted.token)
        self.text.append(drafted.token)
        if self.proposal.drawn_from is not None and drafted.drawn_from is not None:
            self.proposal.drawn_from.append(drafted.drawn_from)
        unsure = drafted.probability < self._options.assistant_confidence_threshold
        return not unsure and len(self.proposal.tokens) < self._most and drafted.token not in self._ends

    def settle(self, grown: int) -> int:
        """Takes note that the sequence grew by `grown` tokens, all but the last as proposed. Returns how many tokens
        the assistant has read in vain. The schedule is transformers': two more after a proposal that was all right,
        one fewer after another."""
        proposed = len(self.proposal.tokens)
        if proposed and self._options.num_assistant_tokens_schedule != "constant":
            more = 2 if grown > proposed else -1
            self._count = min(max(1, self._count + more), MOST_PROPOSED)
        right = min(self.read, self._length + grown - 1)
        vain, self.read = self.read - right, right
        return vain


class Assistant:
    """A smaller model of the same vocabulary that proposes for all sequences of an engine together."""

    def __init__(self, runner: Runner, cache: KvCache, vocab_size: int) -> None:
        """vocab_size: of the model that is assisted, whose matrix may be padded to another size."""
        self._runner = runner
        self._cache = cache
        self._vocab_size = vocab_size
        self._sequences = SequenceTable(cache)
        self._builder = BatchBuilder(self._sequences)

    def open(self, policy: Policy, sequence: int) -> Draft:
        """A sequence to be read on; sequence: its index among the policy's results."""
        return Draft(self._sequences.open(), Drafting(policy), policy, sequence)

    def settle(self, draft: Draft, grown: int) -> None:
        """Forgets what the sequence turned out not to be."""
        self._sequences.shorten(draft.slot, draft.settle(grown))

    def close(self, draft: Draft) -> None:
        self._sequences.close(draft.slot)

    def clear(self) -> None:
        """Ends every sequence."""
        self._sequences.clear()

    def propose(self, asked: Sequence[tuple[Draft, list[int], int]]) -> None:
        """Sets the proposals of drafts after their tokens, of so many tokens at most. Past the assistant's own
        context, or after a token that it lacks, nothing is proposed."""
        limit = self._runner.max_positions + 1  # the last proposed token is never read
        going = []
        for draft, tokens, room in asked:
            known = max(tokens[draft.read :]) < self._runner.vocab_size
            if draft.begin(tokens, min(room, limit - len(tokens)) if known else 0):
                going.append(draft)
        while going:
            going = self._step(going)

    def _step(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Reads on, at most DRAFT_ROWS tokens of all, and lets those that are complete choose. Returns who goes on."""
        self._builder.start()
        room = DRAFT_ROWS
        complete: list[Draft] = []
        going: list[Draft] = []
        for draft in drafts:
            piece = draft.text[draft.read : draft.read + room]
            if not piece:
                going.append(draft)
                continue
            room -= len(piece)
            draft.read += len(piece)
            done = draft.read == len(draft.text)
            self._sequences.extend(draft.slot, len(piece))
            self._builder.add(draft.slot, piece, logits_from=-1 if done else len(piece))
            (complete if done else going).append(draft)
        output = self._runner.run(self._builder.build(), self._cache)
        return going + self._choose(output, complete)

    def _choose(self, output: Any, drafts: Sequence[Draft]) -> list[Draft]:
        """Lets drafts choose, each from its row of logits. Returns who goes on."""
        wrap = getattr(self._runner, "device_rows", None)
        rows = None if wrap is None else wrap(output)
        told = [draft.changes() for draft in drafts] if rows is not None and rows.can_rank(1) else [None]
        if rows is None or None in told:
            logits = self._fitting(on_host(self._runner, output))
            return [draft for i, draft in enumerate(drafts) if draft.take(logits[i : i + 1])]
        if not drafts:
            return []
        changes = [one for one in told if one is not None]
        for one in changes:
            one.rule_out(range(self._vocab_size, rows.shape[1]))
        make(rows, list(enumerate(changes)))
        best = rows.best(1, False)
        found = zip(best.ids[:, 0].tolist(), best.values[:, 0].tolist(), best.sums.tolist(), strict=True)
        drafted = [None if token < 0 else likeliest(token, logit, total) for token, logit, total in found]
        return [draft for draft, one in zip(drafts, drafted, strict=True) if draft.add(one)]

    def _fitting(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the assisted model's width: what the assistant lacks is never proposed."""
        missing = self._vocab_size - logits.shape[1]
        if missing == 0:
            return logits
        fitting = np.full((len(logits), self._vocab_size), -np.inf, np.float32)
        width = min(logits.shape[1], self._vocab_size)
        fitting[:, :width] = logits[:, :width]
        return fitting


def first_difference(a: Tokenizer, b: Tokenizer) -> int | None:
    """The lowest id that both tokenizers have and that is another token in each; None: an assistant with one of them
    can propose to a model with the other."""
    both = range(min(a.vocab_size, b.vocab_size))
    return next((id for id in both if a.id_to_token(id) != b.id_to_token(id)), None)
