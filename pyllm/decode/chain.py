"""Which filters a request asks for, in transformers' order of application. The filters themselves are filters.py's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import filters
from .filters import Histories, Scores
from .options import GenerationOptions
from .policy import Request

Filter = Callable[[Scores, Histories], Scores]


class FilterChain:
    """The filters of one request.

    `apply` runs all of them. Where nothing but temperature, top-k, top-p and min-p follows the filters that every
    search has, `sampling_fused` is true: `apply_plain` and _search.sample then do the same in fewer passes.
    """

    def __init__(self, request: Request, chosen: Sequence[int] = ()) -> None:
        """chosen: for group beams, the tokens that earlier groups chose in this step (a list the policy refills)."""
        options = request.options
        self._plain = _plain_filters(request, chosen)
        self._repetition = options.repetition_penalty
        self._sampling = _sampling_filters(options) if options.do_sample else []
        self._last: list[Filter] = [lambda scores, _: filters.renormalize(scores)] if options.renormalize_logits else []
        unfused = options.top_h is not None or options.typical_p < 1 or 0 < options.epsilon_cutoff < 1
        unfused = unfused or 0 < options.eta_cutoff < 1 or options.renormalize_logits or options.num_beams > 1
        self.sampling_fused = options.do_sample and not unfused

    @property
    def penalty(self) -> float | None:
        """The repetition penalty, 1 for none, if no other filter comes before sampling or in its place; else None."""
        if len(self._plain) > (self._repetition != 1) or (self._sampling and not self.sampling_fused) or self._last:
            return None
        return self._repetition

    @property
    def is_drawn_from_logits(self) -> bool:
        """Whether sampling needs nothing but the logits and what _search.sample does."""
        return self.sampling_fused and not self._plain

    def __bool__(self) -> bool:
        return bool(self._plain or self._sampling or self._last)

    def apply(self, scores: Scores, histories: Histories) -> Scores:
        """All filters, in order. Overwrites `scores`; returns it or what a caller's processor returned."""
        for one in (*self._plain, *self._sampling, *self._last):
            scores = one(scores, histories)
        return scores

    def apply_plain(self, scores: Scores, histories: Histories) -> Scores:
        """The filters that do not belong to sampling."""
        for one in self._plain:
            scores = one(scores, histories)
        return scores


def _plain_filters(request: Request, chosen: Sequence[int]) -> list[Filter]:
    o, prompt_length = request.options, len(request.prompt_ids)
    ends = tuple(token for token in o.eos_token_id if token < request.vocab_size)
    least = o.min_length if o.min_new_tokens is None else prompt_length + o.min_new_tokens
    words = tuple((word, float("-inf")) for word in o.bad_words_ids if word not in {(end,) for end in ends})
    chain: list[Filter] = []
    if o.sequence_bias:
        chain.append(lambda s, h: filters.sequence_bias(s, h, o.sequence_bias))
    if o.num_beam_groups > 1:
        chain.append(lambda s, h: filters.diversity(s, chosen, o.diversity_penalty))
    source = request.prompt_ids if request.source_ids is None else request.source_ids
    if o.encoder_repetition_penalty != 1:
        chain.append(lambda s, h: filters.encoder_repetition_penalty(s, source, o.encoder_repetition_penalty))
    if o.repetition_penalty != 1:
        chain.append(lambda s, h: filters.repetition_penalty(s, h, o.repetition_penalty))
    if o.no_repeat_ngram_size > 0:
        chain.append(lambda s, h: filters.no_repeat_ngram(s, h, o.no_repeat_ngram_size))
    if (size := o.encoder_no_repeat_ngram_size) > 0:
        ngrams = filters.source_ngrams(source, size, request.vocab_size)
        chain.append(lambda s, h: filters.encoder_no_repeat_ngram(s, h, ngrams, size))
    if words:
        chain.append(lambda s, h: filters.sequence_bias(s, h, words))
    if ends and least > prompt_length:
        chain.append(lambda s, h: filters.suppress(s, ends) if len(h[0]) < least else s)
    if (allowed := o.prefix_allowed_tokens_fn) is not None:
        chain.append(lambda s, h: filters.prefix_allowed(s, h, allowed, request.batch_id))
    if o.forced_bos_token_id is not None and prompt_length == 1:
        bos = (o.forced_bos_token_id,)
        chain.append(lambda s, h: filters.force(s, bos) if len(h[0]) == 1 else s)
    if o.forced_eos_token_id:
        last = request.max_length - 1
        chain.append(lambda s, h: filters.force(s, o.forced_eos_token_id) if len(h[0]) == last else s)
    if o.remove_invalid_values:
        chain.append(lambda s, h: filters.remove_invalid(s))
    if o.exponential_decay_length_penalty is not None:
        start, factor = o.exponential_decay_length_penalty
        start += prompt_length
        chain.append(lambda s, h: filters.exponential_decay(s, len(h[0]) - start, factor, ends))
    if o.suppress_tokens:
        chain.append(lambda s, h: filters.suppress(s, o.suppress_tokens))
    if o.begin_suppress_tokens:
        begin = prompt_length + (prompt_length == 1 and o.forced_bos_token_id is not None)
        chain.append(lambda s, h: filters.suppress(s, o.begin_suppress_tokens) if len(h[0]) == begin else s)
    chain += [lambda s, h, f=function: filters.custom(s, h, f) for function in o.logits_processor]  # type: ignore[misc]
    return chain


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
