"""The sampler in plain torch: the definition that every other backend equals bit for bit.

Shapes: B rows, N ids of the allowed range. Stages, in order: support, mixing of streams, temperature,
integer weights, top-k, top-p, min-p, one Philox draw in id order. Nothing is decided by a floating-point
sum: after the temperature all is integers. Ranking is by logit descending, then id ascending.

Float stages use separate eager operations, since fused ones (`lerp`, `addcmul`) round differently, and
flush subnormals by a bit test, so that flush-to-zero hardware agrees.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

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
    """One draw a row: token counted from the range's start, kept ids, log2-probability, status.

    `log2_probabilities` is int64 with 26 fractional bits, so that backends can be compared exactly.
    """

    tokens: torch.Tensor
    num_kept: torch.Tensor
    log2_probabilities: torch.Tensor
    status: torch.Tensor


def draw(
    conditions: Sequence[torch.Tensor],
    unconditional: torch.Tensor | None,
    params: SamplingParams,
    support: torch.Tensor | None,
    seeds: torch.Tensor,
    steps: torch.Tensor,
) -> Draw:
    """Draws one id a row.

    Args:
        conditions: S tensors [B, N], any floating dtype, already cut to the allowed range.
        unconditional: [B, N] or None for no mixing.
        params: of B rows.
        support: [B, N] or [1, N] bool, ids that exist; None for all.
        seeds: [B] int64.
        steps: [B] int64.
    """
    logits, usable = _mix(conditions, unconditional, params.guidance)
    exists = torch.ones_like(usable) if support is None else support.expand_as(usable)
    excluded = (exists & ~usable).any(-1)
    keep = exists & usable
    logits = torch.where(keep, logits, -math.inf)
    top = logits.amax(-1, keepdim=True)

    gap_bits = _flush(_flush(top - logits) * params.bits_per_logit[:, None])
    q = exponents(gap_bits)
    w = torch.where(keep, weights(q), 0)

    likely = w >= (params.min_p << _MIN_P_SHIFT)[:, None]
    if params.order == "vllm":
        keep = keep & likely
    if params.uses_rank:
        keep = _rank_filters(torch.where(keep, logits, -math.inf), w, params)
    keep = keep & likely

    cumulative = torch.where(keep, w, 0).cumsum(-1)
    mass = cumulative[:, -1]
    word_0, word_1 = random_words(seeds, steps, purpose=PURPOSE_TOKEN)
    target = multiply_high(word_0, word_1, mass)
    last_id = logits.shape[-1] - 1
    drawn = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp(max=last_id)
    log2_probabilities = (
        (WEIGHT_BITS << EXPONENT_BITS)
        - q.gather(-1, drawn[:, None])[:, 0]
        - log2_fixed(mass.clamp(min=1))
    )

    infinite = top[:, 0] == math.inf
    empty = top[:, 0] == -math.inf
    certain = params.greedy | infinite | empty
    # argmax returns the first of equal values: the lowest id at the top, or the lowest allowed one.
    highest = ((logits == top) & exists).to(torch.uint8).argmax(-1)
    status = (excluded * STATUS_EXCLUDED + infinite * STATUS_INFINITE + empty * STATUS_EMPTY).to(
        torch.uint8
    )
    return Draw(
        tokens=torch.where(certain, highest, drawn),
        num_kept=torch.where(empty, 0, torch.where(certain, 1, keep.sum(-1))),
        log2_probabilities=torch.where(certain, 0, log2_probabilities),
        status=status,
    )


def _mix(
    conditions: Sequence[torch.Tensor], unconditional: torch.Tensor | None, guidance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed logits u + sum of w (c - u) in listed order, and which ids are usable: no NaN, no -inf.

    A stream of weight 0 is not looked at, and one of weight exactly 1, alone, is taken as it is.
    """
    if unconditional is None:
        mixed = _flush(conditions[0].to(torch.float32))
        return mixed, mixed > -math.inf
    base = _flush(unconditional.to(torch.float32))
    used = guidance != 0
    alone = (used.sum(0) == 1) & (torch.where(used, guidance, 0.0).sum(0) == 1)
    mixed = base
    usable = (base > -math.inf) | alone[:, None]
    for stream, weight, is_used in zip(conditions, guidance, used, strict=True):
        condition = _flush(stream.to(torch.float32))
        difference = _flush(condition - base)
        added = _flush(mixed + _flush(weight[:, None] * difference))
        copied = torch.where(alone[:, None], condition, added)
        mixed = torch.where(is_used[:, None], copied, mixed)
        usable = usable & ((condition > -math.inf) | ~is_used[:, None])
    return mixed, usable & (mixed > -math.inf)


def _rank_filters(logits: torch.Tensor, w: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[B, N] bool: ids that top-k and then top-p keep; ids at -inf are not kept."""
    ranked, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    num_ids = logits.shape[-1]
    rank = torch.arange(num_ids, device=logits.device)
    k = torch.where(params.top_k == 0, num_ids, params.top_k).clamp(max=num_ids)[:, None]
    inside = rank < k if params.ties == "index" else ranked >= ranked.gather(-1, k - 1)
    kept = inside & (ranked > -math.inf)

    ranked_weights = torch.where(kept, w.gather(-1, ids), 0)
    up_to = ranked_weights.cumsum(-1)
    # keep while prefix * 2**31 < P * mass, that is prefix < ceil(P * mass / 2**31)
    quotient, remainder = share_of_mass(up_to[:, -1], params.top_p)
    needed = quotient + (remainder > 0)
    nucleus = (up_to - ranked_weights < needed[:, None]) | (rank == 0)
    kept = kept & (nucleus | (params.top_p == TOP_P_OFF)[:, None])
    return torch.zeros_like(kept).scatter(-1, ids, kept)


def _flush(values: torch.Tensor) -> torch.Tensor:
    """Subnormals and -0 become +0."""
    is_tiny = (values.view(torch.int32) & _MAGNITUDE_BITS) < _LOWEST_NORMAL_BITS
    return torch.where(is_tiny, 0.0, values)
