"""The filters and the draw for rows of any size: one program a row, several passes over its logits.

Takes what the quicker kernels leave over, with the same answer: rows with more candidates than the buffer holds
(constant ones, flat ones). Every kept set is an *edge*: all keys above it and the lowest ids of those equal to it.
Each pass measures three cuts at once and so finds two bits of an edge.
"""

from mmfast.kernels.draw_in_registers import (
    RULE_EXCLUSIVE,
    RULE_FULL_MASS,
    RULE_KEEP_TIES,
    RULE_MIN_P_FIRST,
    draw_target,
    filter_bits,
    store_certain,
    store_status,
    ties_needed,
)
from mmfast.kernels.sampling_keys import load_keys
from mmfast.kernels.sampling_numbers import (
    NO_KEY,
    PROBABILITY_ONE,
    key_weights,
    log2_probability,
    needed_mass,
    tl,
    triton,
)

_ALL = tl.constexpr(1 << 20)


@triton.jit
def _measure(
    inputs,
    row,
    num_ids,
    top_key,
    bits_per_logit,
    cut_1,
    cut_2,
    cut_3,
    MASS: tl.constexpr,
    TILE: tl.constexpr,
):
    # ids, or their mass, with keys from each of three cuts on
    sum_1 = tl.zeros((TILE,), tl.int64)
    sum_2 = tl.zeros((TILE,), tl.int64)
    sum_3 = tl.zeros((TILE,), tl.int64)
    for start in range(0, num_ids, TILE):
        key, _, _ = load_keys(inputs, row, start + tl.arange(0, TILE), num_ids)
        if MASS:
            amount = key_weights(top_key, key, bits_per_logit)
        else:
            amount = (key > NO_KEY).to(tl.int64)
        sum_1 += tl.where(key >= cut_1, amount, 0)
        sum_2 += tl.where(key >= cut_2, amount, 0)
        sum_3 += tl.where(key >= cut_3, amount, 0)
    return tl.sum(sum_1, axis=0), tl.sum(sum_2, axis=0), tl.sum(sum_3, axis=0)


@triton.jit
def _largest_cut(
    inputs,
    row,
    num_ids,
    top_key,
    bits_per_logit,
    needed,
    lowest,
    MASS: tl.constexpr,
    TILE: tl.constexpr,
):
    # the largest cut >= lowest (which has it) with the needed amount from it on, and the amount above that cut
    low = lowest.to(tl.int64)
    high = top_key.to(tl.int64) + 1
    above = low * 0
    while high - low > 1:
        width = high - low
        cut_1 = low + ((width + 3) >> 2)
        cut_2 = low + ((2 * width + 3) >> 2)
        cut_3 = low + ((3 * width + 3) >> 2)
        sum_1, sum_2, sum_3 = _measure(
            inputs, row, num_ids, top_key, bits_per_logit, cut_1, cut_2, cut_3, MASS, TILE
        )
        if sum_3 >= needed:
            low = cut_3
        elif sum_2 >= needed:
            low = cut_2
            high = cut_3
            above = sum_3
        elif sum_1 >= needed:
            low = cut_1
            high = cut_2
            above = sum_2
        else:
            high = cut_1
            above = sum_1
    return low.to(tl.int32), above


@triton.jit
def _likely_key(top_key, bits_per_logit, least_weight):
    # the lowest key with that weight
    low = tl.full((), NO_KEY, tl.int64)
    high = top_key.to(tl.int64)
    while high - low > 1:
        middle = (low + high) >> 1
        is_likely = key_weights(top_key, middle.to(tl.int32), bits_per_logit) >= least_weight
        high = tl.where(is_likely, middle, high)
        low = tl.where(is_likely, low, middle)
    return high.to(tl.int32)


@triton.jit
def _edge(parameters, inputs, row, num_ids, top_key, TILE: tl.constexpr):
    # what the filters keep: the keys above an edge, and how many of those equal to it
    bits = filter_bits(parameters, row)
    rules = tl.load(parameters.rules + row)
    likely = _likely_key(top_key, bits, tl.load(parameters.min_p + row) << 13)
    edge = tl.where((rules & RULE_MIN_P_FIRST) != 0, likely, NO_KEY + 1)
    num_ties = tl.full((), _ALL, tl.int64)
    num_left, _, _ = _measure(
        inputs, row, num_ids, top_key, bits, edge, edge, edge, MASS=False, TILE=TILE
    )
    top_k = tl.load(parameters.top_k + row)
    top_p = tl.load(parameters.top_p + row)
    mass = tl.full((), 0, tl.int64)
    if top_p < PROBABILITY_ONE:
        mass, _, _ = _measure(
            inputs, row, num_ids, top_key, bits, edge, edge, edge, MASS=True, TILE=TILE
        )
    full_mass = mass

    if (top_k > 0) & (top_k < num_left):
        edge, num_above = _largest_cut(
            inputs, row, num_ids, top_key, bits, top_k, edge, MASS=False, TILE=TILE
        )
        if (rules & RULE_KEEP_TIES) == 0:
            num_ties = top_k - num_above
        if top_p < PROBABILITY_ONE:
            mass, above, _ = _measure(
                inputs, row, num_ids, top_key, bits, edge, edge + 1, edge + 1, MASS=True, TILE=TILE
            )
            if (rules & RULE_KEEP_TIES) == 0:
                mass = above + num_ties * key_weights(top_key, edge, bits)

    if top_p < PROBABILITY_ONE:
        whole = tl.where((rules & RULE_FULL_MASS) != 0, full_mass, mass)
        needed = needed_mass(whole, top_p, rules & RULE_EXCLUSIVE)
        if needed <= mass:
            kth = edge
            edge, above = _largest_cut(
                inputs, row, num_ids, top_key, bits, needed, kth, MASS=True, TILE=TILE
            )
            quota = ties_needed(needed - above, key_weights(top_key, edge, bits))
            num_ties = tl.where(edge == kth, tl.minimum(num_ties, quota), quota)
    if likely > edge:
        edge = likely
        num_ties = tl.full((), _ALL, tl.int64)
    return edge, num_ties


@triton.jit
def _stays(key, edge, num_ties, ties_before):
    # which keys the edge leaves, and how many ties there are up to here
    is_tie = (key == edge).to(tl.int64)
    rank = ties_before + tl.cumsum(is_tie, axis=0)
    stays = (key > edge) | ((is_tie > 0) & (rank <= num_ties))
    return stays, ties_before + tl.sum(is_tie, axis=0)


@triton.jit(do_not_specialize=["num_ids"])
def draw_streaming_kernel(
    outputs,
    found,
    inputs,
    parameters,
    num_ids,
    MAX_CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (rows,); takes rows with more than `MAX_CANDIDATES` candidates."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(found.num_candidates + row) > MAX_CANDIDATES:
        lanes = tl.arange(0, TILE)
        top_keys = tl.full((TILE,), NO_KEY, tl.int32)
        excluded = tl.zeros((TILE,), tl.int32)
        for start in range(0, num_ids, TILE):
            key, _, is_excluded = load_keys(inputs, row, start + lanes, num_ids)
            top_keys = tl.maximum(top_keys, key)
            excluded += is_excluded.to(tl.int32)
        top_key = tl.max(top_keys, axis=0)
        is_infinite, is_empty = store_status(outputs, row, top_key, tl.sum(excluded, axis=0) > 0)

        if (tl.load(parameters.greedy + row) != 0) | is_infinite | is_empty:
            highest = tl.zeros((TILE,), tl.int32) + num_ids
            for start in range(0, num_ids, TILE):
                key, exists, _ = load_keys(inputs, row, start + lanes, num_ids)
                is_highest = exists & (key == top_key)
                highest = tl.minimum(highest, tl.where(is_highest, start + lanes, num_ids))
            token = tl.min(highest, axis=0)
            store_certain(outputs, row, tl.where(token < num_ids, token, 0), is_empty)
        else:
            edge, num_ties = _edge(parameters, inputs, row, num_ids, top_key, TILE)
            bits = tl.load(parameters.bits_per_logit + row)
            masses = tl.zeros((TILE,), tl.int64)
            kept = tl.zeros((TILE,), tl.int64)
            num_before = tl.full((), 0, tl.int64)
            for start in range(0, num_ids, TILE):
                key, _, _ = load_keys(inputs, row, start + lanes, num_ids)
                stays, num_before = _stays(key, edge, num_ties, num_before)
                kept += stays.to(tl.int64)
                masses += tl.where(stays, key_weights(top_key, key, bits), 0)
            mass = tl.sum(masses, axis=0)
            tl.store(outputs.num_kept + row, tl.sum(kept, axis=0))

            for d in range(outputs.num_draws):
                target = draw_target(parameters, row, d, mass)
                drawn = num_ids - 1
                drawn_key = tl.full((), NO_KEY, tl.int32)
                up_to = tl.full((), 0, tl.int64)
                num_before = tl.full((), 0, tl.int64)
                start = tl.full((), 0, tl.int32)
                while (start < num_ids) & (up_to <= target):
                    ids = start + lanes
                    key, _, _ = load_keys(inputs, row, ids, num_ids)
                    stays, num_before = _stays(key, edge, num_ties, num_before)
                    weights = tl.where(stays, key_weights(top_key, key, bits), 0)
                    passes = up_to + tl.cumsum(weights, axis=0) > target
                    drawn = tl.min(tl.where(passes, ids, num_ids), axis=0)
                    drawn_key = tl.max(tl.where(ids == drawn, key, NO_KEY), axis=0)
                    up_to += tl.sum(weights, axis=0)
                    start += TILE
                slot = row * outputs.num_draws + d
                tl.store(outputs.tokens + slot, drawn.to(tl.int64))
                tl.store(
                    outputs.log2_probabilities + slot,
                    log2_probability(top_key, drawn_key, bits, mass),
                )
