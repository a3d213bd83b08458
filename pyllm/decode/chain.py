"""Which filters a request asks for, in transformers' order of application. The filters themselves are filters.py's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from . import filters
from .changes import Changes
from .filters import Histories, Scores
from .options import GenerationOptions
from .policy import Request

Filter = Callable[[Scores, Histories], Scores]
Telling = Callable[[Changes, list[int]], None]


class Rule(NamedTuple):
    """A filter, and what tells the changes that it makes to the row after a history; None where they depend on it."""

    apply: Filter
    tell: Telling | None = None


class FilterChain:
    """The filters of one request.

    `apply` runs all of them. Where nothing but temperature, top-k, top-p and min-p follows the filters that every
    search has, `sampling_fused` is true: `apply_plain` and _search.sample then do the same in fewer passes.
    """

    def __init__(self, request: Request, chosen: Sequence[int] = ()) -> None:
        """chosen: for group beams, the tokens that earlier groups chose in this step (a list the policy refills)."""
        options = request.options
        self._plain = _plain_filters(request, chosen)
        self._sampling = _sampling_filters(options) if options.do_sample else []
        self._last: list[Rule] = []
        if options.renormalize_logits:
            self._last.append(Rule(lambda s, _: filters.renormalize(s), lambda changes, _: changes.renormalise()))
        unfused = options.top_h is not None or options.typical_p < 1 or 0 < options.epsilon_cutoff < 1
        unfused = unfused or 0 < options.eta_cutoff < 1 or options.renormalize_logits or options.num_beams > 1
        self.sampling_fused = options.do_sample and not unfused
        self._samples = options.do_sample

    @property
    def tells(self) -> bool:
        """Whether nothing but `changes` comes before a choice by the likeliest or by the cuts of sampling_fused."""
        fused = self.sampling_fused or not self._samples
        return fused and all(rule.tell is not None for rule in self._plain)

    def changes(self, history: list[int], of_log_probabilities: bool = False) -> Changes:
        """What the filters that do not belong to sampling do to the row after `history`, as logits or as
        log-probabilities; only where `tells`."""
        changes = Changes(of_log_probabilities)
        for rule in (*self._plain, *self._last):
            assert rule.tell is not None
            rule.tell(changes, history)
        return changes

    @property
    def is_drawn_from_logits(self) -> bool:
        """Whether sampling needs nothing but the logits and what _search.sample does."""
        return self.sampling_fused and not self._plain

    def __bool__(self) -> bool:
        return bool(self._plain or self._sampling or self._last)

    def apply(self, scores: Scores, histories: Histories) -> Scores:
        """All filters, in order. Overwrites `scores`; returns it or what a caller's processor returned."""
        scores = self.apply_plain(scores, histories)
        for one in self._sampling:
            scores = one(scores, histories)
        for rule in self._last:
            scores = rule.apply(scores, histories)
        return scores

    def apply_plain(self, scores: Scores, histories: Histories) -> Scores:
        """The filters that do not belong to sampling."""
        for rule in self._plain:
            scores = rule.apply(scores, histories)
        return scores


def _plain_filters(request: Request, chosen: Sequence[int]) -> list[Rule]:
    o = request.options
    words = tuple((word, float("-inf")) for word in o.bad_words_ids if word not in {(end,) for end in o.eos_token_id})
    rules: list[Rule] = []
    if o.sequence_bias:
        rules.append(_bias(o.sequence_bias))
    if o.num_beam_groups > 1:
        rules.append(Rule(lambda s, h: filters.diversity(s, chosen, o.diversity_penalty)))
    rules += _repetition(request)
    if words:
        rules.append(_bias(words))
    return rules + _by_length(request) + _last_rules(request)


def _bias(biases: Sequence[tuple[tuple[int, ...], float]]) -> Rule:
    apply = partial(filters.sequence_bias, biases=biases)
    return Rule(apply, lambda changes, h: changes.add(filters.biases_after(h, biases)))


def _repetition(request: Request) -> list[Rule]:
    """What penalises or rules out tokens that were there before, in the text or in its source."""
    o = request.options
    source = request.prompt_ids if request.source_ids is None else request.source_ids
    rules: list[Rule] = []
    if (factor := o.encoder_repetition_penalty) != 1:
        rules.append(
            Rule(
                lambda s, _: filters.encoder_repetition_penalty(s, source, factor),
                lambda changes, _: changes.penalise(source, 1 / factor),
            )
        )
    if (penalty := o.repetition_penalty) != 1:
        apply: Filter = partial(filters.repetition_penalty, penalty=penalty)
        rules.append(Rule(apply, lambda changes, h: changes.penalise(h, penalty)))
    if (length := o.no_repeat_ngram_size) > 0:
        apply = partial(filters.no_repeat_ngram, size=length)
        rules.append(Rule(apply, lambda changes, h: changes.rule_out(filters.completions(h, length))))
    if (size := o.encoder_no_repeat_ngram_size) > 0:
        ngrams = filters.source_ngrams(source, size, request.vocab_size)
        apply = partial(filters.encoder_no_repeat_ngram, ngrams=ngrams, size=size)
        rules.append(Rule(apply, lambda changes, h: changes.rule_out(filters.source_completions(h, ngrams, size))))
    return rules


def _by_length(request: Request) -> list[Rule]:
    """What is ruled out or forced at certain lengths, or by a caller's function."""
    o, prompt_length, ends = request.options, len(request.prompt_ids), _ends(request)
    least = o.min_length if o.min_new_tokens is None else prompt_length + o.min_new_tokens
    rules: list[Rule] = []
    if ends and least > prompt_length:
        rules.append(_suppress(ends, lambda length: length < least))
    if (allowed := o.prefix_allowed_tokens_fn) is not None:
        rules.append(Rule(partial(filters.prefix_allowed, allowed=allowed, batch_id=request.batch_id)))
    if o.forced_bos_token_id is not None and prompt_length == 1:
        rules.append(_force((o.forced_bos_token_id,), 1))
    if o.forced_eos_token_id:
        rules.append(_force(o.forced_eos_token_id, request.max_length - 1))
    return rules


def _last_rules(request: Request) -> list[Rule]:
    """What transformers puts after all that is forced."""
    o, prompt_length, ends = request.options, len(request.prompt_ids), _ends(request)
    rules: list[Rule] = []
    if o.remove_invalid_values:
        rules.append(Rule(lambda s, _: filters.remove_invalid(s)))
    if o.exponential_decay_length_penalty is not None:
        start, factor = o.exponential_decay_length_penalty
        start += prompt_length
        rules.append(Rule(lambda s, h: filters.exponential_decay(s, len(h[0]) - start, factor, ends)))
    if o.suppress_tokens:
        rules.append(_suppress(o.suppress_tokens, lambda _: True))
    if o.begin_suppress_tokens:
        begin = prompt_length + (prompt_length == 1 and o.forced_bos_token_id is not None)
        rules.append(_suppress(o.begin_suppress_tokens, lambda length: length == begin))
    return rules + [Rule(partial(filters.custom, function=function)) for function in o.logits_processor]


def _ends(request: Request) -> tuple[int, ...]:
    return tuple(token for token in request.options.eos_token_id if token < request.vocab_size)


def _suppress(tokens: Sequence[int], is_at: Callable[[int], bool]) -> Rule:
    """Rules out tokens at the lengths of a history that are asked for."""

    def tell(changes: Changes, history: list[int]) -> None:
        if is_at(len(history)):
            changes.rule_out(tokens)

    return Rule(lambda s, h: filters.suppress(s, tokens) if is_at(len(h[0])) else s, tell)


def _force(tokens: Sequence[int], length: int) -> Rule:
    def tell(changes: Changes, history: list[int]) -> None:
        if len(history) == length:
            changes.leave(tokens)

    return Rule(lambda s, h: filters.force(s, tokens) if len(h[0]) == length else s, tell)


def _sampling_filters(o: GenerationOptions) -> list[Filter]:
    """Filters of sampling; each leaves at least `keep` tokens."""
    keep = o.min_tokens_to_keep
    chain: list[Filter] = []
    if o.temperature != 1:
        chain.append(lambda s, _: filters.temperature(s, o.temperature))
    if (share := o.top_h) is not None:
        chain.append(lambda s, _: filters.top_h(s, share))
    if o.top_k > 0:
        chain.append(lambda s, _: filters.top_k(s, max(o.top_k, keep)))
    if o.top_p < 1:
        chain.append(lambda s, _: filters.top_p(s, o.top_p, keep))
    if (ratio := o.min_p) is not None:
        chain.append(lambda s, _: filters.min_p(s, ratio, keep))
    if o.typical_p < 1:
        chain.append(lambda s, _: filters.typical_p(s, o.typical_p, keep))
    if 0 < o.epsilon_cutoff < 1:
        chain.append(lambda s, _: filters.epsilon_cutoff(s, o.epsilon_cutoff, keep))
    if 0 < o.eta_cutoff < 1:
        chain.append(lambda s, _: filters.eta_cutoff(s, o.eta_cutoff, keep))
    return chain
