"""Second read of whole rows: the keys that may survive the filters, gathered into a buffer in any order.

Every program finds the row's bound for itself. With top-k it is a key with at least k group maxima from it on and not
many more, which the k-th largest key cannot lie below. With top-p alone it is a weight: the N ids below
(mass - needed) / N together weigh less than top-p may lose. A row in which more keys reach the bound than the buffer holds is only
counted; `draw_streaming` takes it.
"""

from typing import NamedTuple

import torch

from mmfast.kernels.draw_in_registers import RULE_EXCLUSIVE, filter_bits
from mmfast.kernels.sampling_keys import load_keys
from mmfast.kernels.sampling_numbers import (
    NO_KEY,
    PROBABILITY_ONE,
    key_weights,
    needed_mass,
    tl,
    triton,
)


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


@triton.jit
def load_mass(tiles, row, MAX_TILES: tl.constexpr):
    """The sum of a row's tile masses."""
    places = tl.arange(0, MAX_TILES)
    masses = tiles.masses + row * tiles.num_tiles + places
    return tl.sum(tl.load(masses, mask=places < tiles.num_tiles, other=0), axis=0)


@triton.jit
def _spare_weight(tiles, parameters, row, num_ids, MAX_TILES: tl.constexpr):
    # a weight below which all ids together cannot reach what top-p may lose; 0 where top-k decides or top-p is off
    spare = tl.full((), 0, tl.int64)
    top_p = tl.load(parameters.top_p + row)
    if (tl.load(parameters.top_k + row) == 0) & (top_p < PROBABILITY_ONE):
        mass = load_mass(tiles, row, MAX_TILES)
        is_exclusive = tl.load(parameters.rules + row) & RULE_EXCLUSIVE
        lost = mass - needed_mass(mass, top_p, is_exclusive)
        # the largest power of two with that much in num_ids of them, or half of it
        for b in tl.static_range(44):
            power = tl.full((), 1, tl.int64) << b
            spare = tl.where(power * num_ids <= lost, power, spare)
    return spare


@triton.jit(do_not_specialize=["num_ids", "num_tiles"])
def gather_candidates_kernel(
    candidates,
    found,
    tiles,
    inputs,
    parameters,
    num_ids,
    num_tiles,
    MAX_TILES: tl.constexpr,
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
    if tiles is not None:
        top_key = tl.max(maxima, axis=0)
        bits = filter_bits(parameters, row)
        spare_weight = _spare_weight(tiles, parameters, row, num_ids, MAX_TILES)

    buffer = row * MAX_CANDIDATES
    for tile in range(split * num_tiles, (split + 1) * num_tiles):
        ids = tile * TILE + tl.arange(0, TILE)
        key, _, _ = load_keys(inputs, row, ids, num_ids)
        stays = key >= bound
        if tiles is not None:
            stays = stays & (key_weights(top_key, key, bits) >= spare_weight)
        num_staying = tl.sum(stays.to(tl.int32), axis=0)
        if num_staying > 0:
            first = tl.atomic_add(found.num_candidates + row, num_staying, sem="relaxed")
            places = first + tl.cumsum(stays.to(tl.int32), axis=0) - 1
            fits = stays & (places < MAX_CANDIDATES)
            tl.store(candidates.keys + buffer + places, key, mask=fits)
            tl.store(candidates.ids + buffer + places, ids, mask=fits)
