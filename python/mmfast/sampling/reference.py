"""The sampler in plain torch: the definition that every other backend equals bit for bit.

Shapes: B rows, N ids of the range that is read, D draws a row. Stages, in order: support, mixing of streams,
contrast, repetition penalty, temperature, integer weights, top-k, top-p, min-p, Philox draws in id order.
Nothing is decided by a floating-point sum: after the temperature all is integers. Ranking is by logit
descending, then id ascending.

Float stages use separate eager operations, since fused ones (`lerp`, `addcmul`) round differently, and
flush subnormals by a bit test, so that flush-to-zero hardware agrees.
"""

import math
from typing import NamedTuple

import torch

from mmfast.sampling.inputs import DrawInputs
from mmfast.sampling.orders import (
    RULE_EXCLUSIVE,
    RULE_FULL_MASS,
    RULE_KEEP_TIES,
    RULE_MIN_P_FIRST,
)
from mmfast.sampling.params import TOP_P_OFF, SamplingParams
from mmfast.sampling.philox import PURPOSE_TOKEN, random_words
from mmfast.sampling.weights import (
    EXPONENT_BITS,
    WEIGHT_BITS,
    exponents,
    log2_fixed,
    multiply_high,
    share_of_mass,
    weights,
)

STATUS_EXCLUDED = 1
"""NaN or -inf excluded at least one allowed id."""
STATUS_INFINITE = 2
"""A logit was +inf: the lowest such id was taken."""
STATUS_EMPTY = 4
"""No id was left: the token is the lowest allowed id and means nothing."""

_MIN_P_SHIFT = WEIGHT_BITS - 31
_LOWEST_NORMAL_BITS = 0x00800000
_MAGNITUDE_BITS = 0x7FFFFFFF


class Draw(NamedTuple):
    """D draws a row: tokens counted from the range's start, kept ids, log2-probabilities, status.

    `tokens` and `log2_probabilities` are int64 [B, D], the latter with 26 fractional bits, so that backends can
    be compared exactly; `num_kept` is int64 [B], `status` uint8 [B].
    """

    tokens: torch.Tensor
    num_kept: torch.Tensor
    log2_probabilities: torch.Tensor
    status: torch.Tensor


def draw(inputs: DrawInputs) -> Draw:
    """Draws `inputs.num_draws` ids a row."""
    params = inputs.params
    support = inputs.support()
    logits, usable = _mix(inputs)
    exists = torch.ones_like(usable) if support is None else support.expand_as(usable)
    excluded = (exists & ~usable).any(-1)
    keep = exists & usable
    if params.uses_contrast:
        keep = _contrastive_support(inputs, keep)
    if inputs.history is not None:
        logits = _penalised(logits, inputs)
        usable = logits > -math.inf
        excluded = excluded | (keep & ~usable).any(-1)
        keep = keep & usable
    logits = torch.where(keep, logits, -math.inf)
    top = logits.amax(-1, keepdim=True)
    gap = _flush(top - logits)

    q = exponents(_flush(gap * params.filter_bits_per_logit[:, None]))
    w = torch.where(keep, weights(q), 0)
    likely = w >= (params.min_p << _MIN_P_SHIFT)[:, None]
    keep = keep & (likely | ~_has(params, RULE_MIN_P_FIRST))
    if params.uses_rank:
        keep = _rank_filters(torch.where(keep, logits, -math.inf), w, params)
    keep = keep & likely

    if params.filters_apart:
        q = exponents(_flush(gap * params.bits_per_logit[:, None]))
        w = weights(q)
    cumulative = torch.where(keep, w, 0).cumsum(-1)
    mass = cumulative[:, -1:]
    draws = torch.arange(inputs.num_draws, device=logits.device)[None]
    if inputs.positions is not None:
        draws = draws + inputs.positions[:, None]
    word_0, word_1 = random_words(
        inputs.seeds[:, None], inputs.steps[:, None], draws=draws, purpose=PURPOSE_TOKEN
    )
    target = multiply_high(word_0, word_1, mass.expand_as(word_0))
    drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=inputs.num_ids - 1)
    log2_probabilities = (
        (WEIGHT_BITS << EXPONENT_BITS) - q.gather(-1, drawn) - log2_fixed(mass.clamp(min=1))
    )

    infinite = top == math.inf
    empty = top == -math.inf
    certain = params.greedy[:, None] | infinite | empty
    # argmax returns the first of equal values: the lowest id at the top, or the lowest allowed one.
    highest = ((logits == top) & exists).to(torch.uint8).argmax(-1, keepdim=True)
    num_kept = torch.where(certain, 1, keep.sum(-1, keepdim=True))
    status = excluded[:, None] * STATUS_EXCLUDED + infinite * STATUS_INFINITE + empty * STATUS_EMPTY
    return Draw(
        tokens=torch.where(certain, highest, drawn),
        num_kept=torch.where(empty, 0, num_kept)[:, 0],
        log2_probabilities=torch.where(certain, 0, log2_probabilities),
        status=status[:, 0].to(torch.uint8),
    )


def _mix(inputs: DrawInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed logits [B, N], and which ids are usable: no NaN, no -inf.

    u + sum of w (c - u) in listed order; a stream of weight 0 is not looked at, and one of weight exactly 1,
    alone, is taken as it is. Rows with contrast have c - u of the first stream.
    """
    guidance = inputs.params.guidance
    first = _flush(inputs.conditions[0].to(torch.float32))
    if inputs.unconditional is None:
        return first, first > -math.inf
    base = _flush(inputs.unconditional.to(torch.float32))
    used = guidance != 0
    alone = (used.sum(0) == 1) & (torch.where(used, guidance, 0.0).sum(0) == 1)
    mixed = base
    usable = (base > -math.inf) | alone[:, None]
    for stream, weight, is_used in zip(inputs.conditions, guidance, used, strict=True):
        condition = _flush(stream.to(torch.float32))
        difference = _flush(condition - base)
        added = _flush(mixed + _flush(weight[:, None] * difference))
        copied = torch.where(alone[:, None], condition, added)
        mixed = torch.where(is_used[:, None], copied, mixed)
        usable = usable & ((condition > -math.inf) | ~is_used[:, None])
    if inputs.params.uses_contrast:
        is_contrastive = (inputs.params.contrastive_k > 0)[:, None]
        mixed = torch.where(is_contrastive, _flush(first - base), mixed)
        both = (first > -math.inf) & (base > -math.inf)
        usable = torch.where(is_contrastive, both, usable)
    return mixed, usable & (mixed > -math.inf)


def _contrastive_support(inputs: DrawInputs, keep: torch.Tensor) -> torch.Tensor:
    """Ids whose conditional logit reaches the k-th largest plus ln(alpha), and always the largest one's."""
    params = inputs.params
    expert = torch.where(keep, _flush(inputs.conditions[0].to(torch.float32)), -math.inf)
    place = torch.minimum(params.contrastive_k, keep.sum(-1)).clamp(min=1) - 1
    kth = expert.sort(dim=-1, descending=True).values.gather(-1, place[:, None])
    reached = expert >= _flush(kth + params.contrastive_log_alpha[:, None])
    # argmax returns the lowest id of the largest
    likeliest = torch.zeros_like(keep).scatter(-1, expert.argmax(-1, keepdim=True), True)
    return keep & (reached | likeliest | (params.contrastive_k == 0)[:, None])


def _penalised(logits: torch.Tensor, inputs: DrawInputs) -> torch.Tensor:
    """Logits of seen ids away from preference: times the penalty below 0, divided by it above."""
    assert inputs.history is not None
    if inputs.offsets is not None:
        logits = _flush(logits + inputs.offsets[:, None])
    penalty = inputs.params.repetition_penalty[:, None]
    scaled = _flush(torch.where(logits < 0, logits * penalty, logits / penalty))
    return torch.where(inputs.history.unpacked(inputs.num_ids), scaled, logits)


def _rank_filters(logits: torch.Tensor, w: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[B, N] bool: ids that top-k and then top-p keep; ids at -inf are not kept."""
    ranked, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    num_ids = logits.shape[-1]
    rank = torch.arange(num_ids, device=logits.device)
    k = torch.where(params.top_k == 0, num_ids, params.top_k).clamp(max=num_ids)[:, None]
    is_tied = (ranked >= ranked.gather(-1, k - 1)) & _has(params, RULE_KEEP_TIES)
    exists = ranked > -math.inf
    kept = ((rank < k) | is_tied) & exists

    ranked_weights = torch.where(exists, w.gather(-1, ids), 0)
    up_to = torch.where(kept, ranked_weights, 0).cumsum(-1)
    is_full = _has(params, RULE_FULL_MASS)[:, 0]
    base = torch.where(is_full, ranked_weights.sum(-1), up_to[:, -1])
    # keep while prefix * 2**31 < P * base, that is prefix < ceil(P * base / 2**31), or while <=
    quotient, remainder = share_of_mass(base, params.top_p)
    needed = quotient + ((remainder > 0) | _has(params, RULE_EXCLUSIVE)[:, 0])
    nucleus = (up_to - ranked_weights < needed[:, None]) | (rank == 0)
    kept = kept & (nucleus | (params.top_p == TOP_P_OFF)[:, None])
    return torch.zeros_like(kept).scatter(-1, ids, kept)


def _has(params: SamplingParams, rule: int) -> torch.Tensor:
    """[B, 1] bool: rows with a rule."""
    return ((params.rules & rule) != 0)[:, None]


def _flush(values: torch.Tensor) -> torch.Tensor:
    """Subnormals and -0 become +0."""
    is_tiny = (values.view(torch.int32) & _MAGNITUDE_BITS) < _LOWEST_NORMAL_BITS
    return torch.where(is_tiny, 0.0, values)
