"""The filters and the draw on candidates that one program holds in registers.

Candidates are the keys of a whole row in the order of its ids, so that running sums serve, or gathered keys in any
order, whose ids are bisected instead and are loaded only then, to leave registers free. The k-th key, the edge of the nucleus and the drawn id are found by bisection on
integers; each round is a sum of integers, so the result is that of a sort, ties included.
"""

from typing import NamedTuple

import torch

from mmfast.kernels.sampling_numbers import (
    KEY_OF_INFINITY,
    NO_KEY,
    PROBABILITY_ONE,
    key_weights,
    log2_probability,
    needed_mass,
    random_target,
    tl,
    triton,
)

STATUS_EXCLUDED = tl.constexpr(1)
STATUS_INFINITE = tl.constexpr(2)
STATUS_EMPTY = tl.constexpr(4)
RULE_KEEP_TIES = tl.constexpr(1)
RULE_EXCLUSIVE = tl.constexpr(2)
RULE_FULL_MASS = tl.constexpr(4)
RULE_MIN_P_FIRST = tl.constexpr(8)


class RowParameters(NamedTuple):
    """What decides about a row's draws, each [B]; see `mmfast.sampling.SamplingParams`."""

    bits_per_logit: torch.Tensor
    filter_bits_per_logit: torch.Tensor | None
    greedy: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    rules: torch.Tensor
    seeds: torch.Tensor
    steps: torch.Tensor
    positions: torch.Tensor | None


class DrawOutputs(NamedTuple):
    """Where draws go: tokens and log2-probabilities int64 [B, D], kept ids int64 [B], status uint8 [B]."""

    tokens: torch.Tensor
    log2_probabilities: torch.Tensor
    num_kept: torch.Tensor
    status: torch.Tensor
    num_draws: int


@triton.jit
def filter_bits(parameters, row):
    """Bits per logit that the filters see."""
    if parameters.filter_bits_per_logit is None:
        bits = tl.load(parameters.bits_per_logit + row)
    else:
        bits = tl.load(parameters.filter_bits_per_logit + row)
    return bits


@triton.jit
def store_status(outputs, row, top_key, is_excluded):
    """Status bits of a row; whether it has an infinite logit, and whether it has none."""
    is_infinite = top_key == KEY_OF_INFINITY
    is_empty = top_key == NO_KEY
    status = tl.where(is_excluded, STATUS_EXCLUDED, 0)
    status = status + tl.where(is_infinite, STATUS_INFINITE, 0)
    status = status + tl.where(is_empty, STATUS_EMPTY, 0)
    tl.store(outputs.status + row, status.to(tl.uint8))
    return is_infinite, is_empty


@triton.jit
def store_certain(outputs, row, token, is_empty):
    """The draws of a row that has nothing to choose."""
    for d in range(outputs.num_draws):
        tl.store(outputs.tokens + row * outputs.num_draws + d, token.to(tl.int64))
        tl.store(outputs.log2_probabilities + row * outputs.num_draws + d, tl.zeros((), tl.int64))
    tl.store(outputs.num_kept + row, tl.where(is_empty, 0, 1).to(tl.int64))


@triton.jit
def draw_target(parameters, row, draw, mass):
    """Where in the mass the row's draw of that number falls."""
    number = tl.full((), 0, tl.int64) + draw
    if parameters.positions is not None:
        number += tl.load(parameters.positions + row)
    return random_target(
        tl.load(parameters.seeds + row), tl.load(parameters.steps + row), number, mass
    )


@triton.jit
def ties_needed(missing, weight):
    """How many ids of that weight reach the missing mass, ceil(missing / weight), below 2**19.

    Bit by bit, since the compiler's 64-bit division goes through floats.
    """
    num_short = missing * 0
    for b in tl.static_range(18, -1, -1):
        more = num_short + (1 << b)
        num_short = tl.where(more * weight < missing, more, num_short)
    return num_short + 1


@triton.jit
def _keep_lowest(key, is_tie, ids_ptr, quota, num_ids):
    # the keys without those ties that are not among the `quota` (at least 1) lowest ids of them
    if ids_ptr is None:
        stays = tl.cumsum(is_tie.to(tl.int32), axis=0) <= quota
    else:
        # the smallest id with `quota` ties up to it, the last one if there are fewer
        ids = tl.load(ids_ptr + tl.arange(0, key.shape[0]), mask=key > NO_KEY, other=num_ids)
        low = tl.full((), -1, tl.int32)
        high = num_ids - 1
        while high - low > 1:
            middle = (low + high) >> 1
            enough = tl.sum((is_tie & (ids <= middle)).to(tl.int32), axis=0) >= quota
            high = tl.where(enough, middle, high)
            low = tl.where(enough, low, middle)
        stays = ids <= high
    return tl.where(is_tie & ~stays, NO_KEY, key)


@triton.jit
def _lowest_key(key, top_key):
    return tl.min(tl.where(key > NO_KEY, key, top_key), axis=0)


@triton.jit
def draw_in_registers(
    outputs, parameters, row, key, keys_ptr, ids_ptr, num_candidates, num_ids, top_key, full_mass
):
    """Filters a row that is not certain, draws from what is left and stores the draws.

    Args:
        key: [BLOCK] int32, `NO_KEY` for what is no candidate.
        keys_ptr: where they come from, `num_candidates` of them.
        ids_ptr: their ids, distinct and in [0, num_ids); None if they are a whole row in order.
        num_candidates: in [0, BLOCK].
        num_ids: of the row.
        top_key: the row's largest key.
        full_mass: the row's mass of filter weights before top-k, read under `RULE_FULL_MASS` and without top-k, unless
            the row is whole.
    """
    bits = filter_bits(parameters, row)
    rules = tl.load(parameters.rules + row)
    weights = key_weights(top_key, key, bits)
    least_weight = tl.load(parameters.min_p + row) << 13
    if (rules & RULE_MIN_P_FIRST) != 0:
        key = tl.where(weights >= least_weight, key, NO_KEY)
        weights = tl.where(key > NO_KEY, weights, 0)

    if ids_ptr is None:
        full_mass = tl.sum(weights, axis=0)

    top_k = tl.load(parameters.top_k + row)
    num_left = tl.sum((key > NO_KEY).to(tl.int32), axis=0)
    if (top_k > 0) & (top_k < num_left):
        # the k-th largest key is the largest v with at least k keys >= v
        low = _lowest_key(key, top_key).to(tl.int64)
        high = top_key.to(tl.int64) + 1
        num_reaching = num_left
        while (high - low > 1) & (num_reaching != top_k):
            middle = (low + high) >> 1
            count = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), axis=0)
            enough = count >= top_k
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
            num_reaching = tl.where(enough, count, num_reaching)
        kth = low.to(tl.int32)
        key = tl.where(key >= kth, key, NO_KEY)
        if ((rules & RULE_KEEP_TIES) == 0) & (num_reaching > top_k):
            room = top_k.to(tl.int32) - tl.sum((key > kth).to(tl.int32), axis=0)
            key = _keep_lowest(key, key == kth, ids_ptr, room, num_ids)
        weights = tl.where(key > NO_KEY, weights, 0)

    top_p = tl.load(parameters.top_p + row)
    if top_p < PROBABILITY_ONE:
        mass = tl.sum(weights, axis=0)
        is_full = ((rules & RULE_FULL_MASS) != 0) | (top_k == 0)
        whole = tl.where(is_full, full_mass, mass)
        needed = needed_mass(whole, top_p, rules & RULE_EXCLUSIVE)
        if needed <= mass:
            # the edge is the largest v with that mass in keys >= v
            low = _lowest_key(key, top_key).to(tl.int64)
            high = top_key.to(tl.int64) + 1
            while high - low > 1:
                middle = (low + high) >> 1
                enough = tl.sum(tl.where(key >= middle.to(tl.int32), weights, 0), axis=0) >= needed
                low = tl.where(enough, middle, low)
                high = tl.where(enough, high, middle)
            edge = low.to(tl.int32)
            key = tl.where(key >= edge, key, NO_KEY)
            num_ties = tl.sum((key == edge).to(tl.int64), axis=0)
            if num_ties > 1:
                missing = needed - tl.sum(tl.where(key > edge, weights, 0), axis=0)
                quota = ties_needed(missing, key_weights(top_key, edge, bits))
                if quota < num_ties:
                    key = _keep_lowest(key, key == edge, ids_ptr, quota, num_ids)
    if (rules & RULE_MIN_P_FIRST) == 0:
        key = tl.where(key_weights(top_key, key, bits) >= least_weight, key, NO_KEY)
    tl.store(outputs.num_kept + row, tl.sum((key > NO_KEY).to(tl.int64), axis=0))

    bits = tl.load(parameters.bits_per_logit + row)
    weights = key_weights(top_key, key, bits)
    mass = tl.sum(weights, axis=0)
    for d in range(outputs.num_draws):
        target = draw_target(parameters, row, d, mass)
        places = tl.arange(0, key.shape[0])
        if ids_ptr is None:
            passed = tl.cumsum(weights, axis=0) <= target
            drawn = tl.minimum(tl.sum(passed.to(tl.int32), axis=0), num_ids - 1)
            drawn_key = tl.max(tl.where(places == drawn, key, NO_KEY), axis=0)
        else:
            # the smallest id with more mass than the target up to it
            ids = tl.load(ids_ptr + places, mask=places < num_candidates, other=num_ids)
            low_id = tl.full((), -1, tl.int32)
            drawn = num_ids - 1
            while drawn - low_id > 1:
                middle_id = (low_id + drawn) >> 1
                enough = tl.sum(tl.where(ids <= middle_id, weights, 0), axis=0) > target
                drawn = tl.where(enough, middle_id, drawn)
                low_id = tl.where(enough, low_id, middle_id)
            drawn_keys = tl.load(keys_ptr + places, mask=ids == drawn, other=NO_KEY)
            drawn_key = tl.max(drawn_keys, axis=0)
        slot = row * outputs.num_draws + d
        tl.store(outputs.tokens + slot, drawn.to(tl.int64))
        tl.store(
            outputs.log2_probabilities + slot, log2_probability(top_key, drawn_key, bits, mass)
        )
