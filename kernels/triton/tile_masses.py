"""Masses of tiles of ids, once the row's largest key is known, and draws from rows that only min-p filters.

`tile_masses` reads whole rows a second time; without top-k and top-p `draw_from_tiles` then picks the tile in which the
target falls and reads that one alone. With top-p the sum of the masses tells which ids cannot be in the nucleus.
"""

from typing import NamedTuple

import torch

from mmfast.kernels.draw_in_registers import (
    RULE_MIN_P_FIRST,
    draw_target,
    filter_bits,
    store_certain,
    store_status,
)
from mmfast.kernels.sampling_keys import load_keys
from mmfast.kernels.sampling_numbers import NO_KEY, key_weights, log2_probability, tl, triton


class TileMasses(NamedTuple):
    """What the second read leaves, for T tiles a row, those beyond the row's end included.

    Attributes:
        masses: [B, T] int64.
        num_kept: [B, T] int32, ids that min-p keeps.
        highest: [B, T] int32, lowest id with the row's largest key, `num_ids` for none.
        num_tiles: T.
    """

    masses: torch.Tensor
    num_kept: torch.Tensor
    highest: torch.Tensor
    num_tiles: int


@triton.jit
def load_top_key(found, row, NUM_GROUPS: tl.constexpr):
    """The row's largest key."""
    maxima = tl.load(found.maxima + row * NUM_GROUPS + tl.arange(0, NUM_GROUPS))
    return tl.max(maxima, axis=0)


@triton.jit(do_not_specialize=["num_ids", "num_tiles"])
def tile_masses_kernel(
    tiles,
    found,
    inputs,
    parameters,
    num_ids,
    num_tiles,
    IS_FILTERED: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (rows, splits), a slice is `num_tiles` tiles; fills `tiles`.

    Masses are those of the draw's weights of what min-p keeps, or (`IS_FILTERED` false) of the filters' weights of what
    they look at.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    top_key = load_top_key(found, row, NUM_GROUPS)
    bits = filter_bits(parameters, row)
    least_weight = tl.load(parameters.min_p + row) << 13
    is_first = (tl.load(parameters.rules + row) & RULE_MIN_P_FIRST) != 0
    for tile in range(split * num_tiles, (split + 1) * num_tiles):
        ids = tile * TILE + tl.arange(0, TILE)
        key, exists, _ = load_keys(inputs, row, ids, num_ids)
        weights = key_weights(top_key, key, bits)
        is_likely = (key > NO_KEY) & (weights >= least_weight)
        if IS_FILTERED:
            if parameters.filter_bits_per_logit is not None:
                weights = key_weights(top_key, key, tl.load(parameters.bits_per_logit + row))
            weights = tl.where(is_likely, weights, 0)
        else:
            weights = tl.where(is_likely | ~is_first, weights, 0)
        highest = tl.min(tl.where(exists & (key == top_key), ids, num_ids), axis=0)
        slot = row * tiles.num_tiles + tile
        tl.store(tiles.masses + slot, tl.sum(weights, axis=0))
        tl.store(tiles.num_kept + slot, tl.sum(is_likely.to(tl.int32), axis=0))
        tl.store(tiles.highest + slot, highest)


@triton.jit(do_not_specialize=["num_ids"])
def draw_from_tiles_kernel(
    outputs,
    tiles,
    found,
    inputs,
    parameters,
    num_ids,
    MAX_SPLITS: tl.constexpr,
    MAX_TILES: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (rows,); for rows without top-k and top-p."""
    row = tl.program_id(0).to(tl.int64)
    top_key = load_top_key(found, row, NUM_GROUPS)
    splits = tl.arange(0, MAX_SPLITS)
    excluded = found.num_excluded + row * found.num_splits + splits
    num_excluded = tl.sum(tl.load(excluded, mask=splits < found.num_splits, other=0), axis=0)
    is_infinite, is_empty = store_status(outputs, row, top_key, num_excluded > 0)
    places = tl.arange(0, MAX_TILES)
    slots = row * tiles.num_tiles + places
    is_tile = places < tiles.num_tiles
    if (tl.load(parameters.greedy + row) != 0) | is_infinite | is_empty:
        # of an empty row the lowest id that exists, which has the key of none
        highest = tl.min(tl.load(tiles.highest + slots, mask=is_tile, other=num_ids), axis=0)
        store_certain(outputs, row, tl.where(highest < num_ids, highest, 0), is_empty)
    else:
        masses = tl.load(tiles.masses + slots, mask=is_tile, other=0)
        num_kept = tl.load(tiles.num_kept + slots, mask=is_tile, other=0)
        tl.store(outputs.num_kept + row, tl.sum(num_kept.to(tl.int64), axis=0))
        up_to = tl.cumsum(masses, axis=0)
        mass = tl.sum(masses, axis=0)
        bits = tl.load(parameters.bits_per_logit + row)
        least_weight = tl.load(parameters.min_p + row) << 13
        for d in range(outputs.num_draws):
            target = draw_target(parameters, row, d, mass)
            tile = tl.sum((up_to <= target).to(tl.int32), axis=0)
            rest = target - tl.sum(tl.where(places < tile, masses, 0), axis=0)
            ids = tile * TILE + tl.arange(0, TILE)
            key, _, _ = load_keys(inputs, row, ids, num_ids)
            is_likely = key_weights(top_key, key, filter_bits(parameters, row)) >= least_weight
            weights = tl.where(is_likely, key_weights(top_key, key, bits), 0)
            passed = tl.cumsum(weights, axis=0) <= rest
            drawn = tile * TILE + tl.sum(passed.to(tl.int32), axis=0)
            drawn_key = tl.max(tl.where(ids == drawn, key, NO_KEY), axis=0)
            slot = row * outputs.num_draws + d
            tl.store(outputs.tokens + slot, drawn.to(tl.int64))
            tl.store(
                outputs.log2_probabilities + slot,
                log2_probability(top_key, drawn_key, bits, mass),
            )
