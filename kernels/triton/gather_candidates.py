"""Second read of whole rows: the keys that may survive the filters, gathered into a buffer in any order.

Every program finds the row's bound for itself: a key with at least k group maxima from it on and not many more, which
the k-th largest key cannot lie below. A row in which more keys reach the bound than the buffer holds is only
counted; `draw_streaming` takes it.
"""

from typing import NamedTuple

import torch

from mmfast.kernels.sampling_keys import load_keys
from mmfast.kernels.sampling_numbers import NO_KEY, tl, triton


class Candidates(NamedTuple):
    """Gathered keys and ids, int32 [B, MAX_CANDIDATES]; how many is `RowMaxima.num_candidates`."""

    keys: torch.Tensor
    ids: torch.Tensor


@triton.jit
def _bound(maxima, num_wanted):
    # the largest key with `num_wanted` maxima from it on, or a little below it; without that many, any key
    bound = tl.full((), NO_KEY + 1, tl.int64)
    num_reaching = tl.sum((maxima > NO_KEY).to(tl.int32), axis=0)
    if (num_wanted > 0) & (num_wanted < num_reaching):
        bound = tl.min(tl.where(maxima > NO_KEY, maxima, 0x7FFFFFFF), axis=0).to(tl.int64)
        high = tl.max(maxima, axis=0).to(tl.int64) + 1
        # a few candidates more cost less than the last rounds
        num_enough = num_wanted + (num_wanted >> 5)
        while (high - bound > 1) & (num_reaching > num_enough):
            middle = (bound + high) >> 1
            count = tl.sum((maxima >= middle.to(tl.int32)).to(tl.int32), axis=0)
            enough = count >= num_wanted
            bound = tl.where(enough, middle, bound)
            high = tl.where(enough, high, middle)
            num_reaching = tl.where(enough, count, num_reaching)
    return bound.to(tl.int32)


@triton.jit(do_not_specialize=["num_ids", "num_tiles"])
def gather_candidates_kernel(
    candidates,
    found,
    inputs,
    parameters,
    num_ids,
    num_tiles,
    NUM_GROUPS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (rows, splits), a slice is `num_tiles` tiles; fills `candidates` and counts in `found`."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    maxima = tl.load(found.maxima + row * NUM_GROUPS + tl.arange(0, NUM_GROUPS))
    is_greedy = tl.load(parameters.greedy + row) != 0
    bound = _bound(maxima, tl.where(is_greedy, 1, tl.load(parameters.top_k + row)))

    buffer = row * MAX_CANDIDATES
    for tile in range(split * num_tiles, (split + 1) * num_tiles):
        ids = tile * TILE + tl.arange(0, TILE)
        key, _, _ = load_keys(inputs, row, ids, num_ids)
        stays = key >= bound
        num_staying = tl.sum(stays.to(tl.int32), axis=0)
        if num_staying > 0:
            first = tl.atomic_add(found.num_candidates + row, num_staying, sem="relaxed")
            places = first + tl.cumsum(stays.to(tl.int32), axis=0) - 1
            fits = stays & (places < MAX_CANDIDATES)
            tl.store(candidates.keys + buffer + places, key, mask=fits)
            tl.store(candidates.ids + buffer + places, ids, mask=fits)
