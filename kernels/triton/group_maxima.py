"""First read of whole rows: the maxima of strided groups of keys, and what the row's status needs.

The k-th largest maximum of disjoint groups bounds the k-th largest key from below, since k groups then have a key
that large. Groups are *strided*: ids that lie `WIDTH` apart within one program's slice. Contiguous groups would fail
where likely ids are neighbours, as image ids are (25 to 128 times as many candidates instead of 1.1 to 1.4).
Grid (rows, splits); a program's slice is `num_tiles` tiles of `HEIGHT * WIDTH` ids.
"""

from typing import NamedTuple

import torch

from mmfast.kernels.sampling_keys import load_keys
from mmfast.kernels.sampling_numbers import NO_KEY, tl, triton


class RowMaxima(NamedTuple):
    """What the first read leaves, int32.

    Attributes:
        maxima: [B, S, WIDTH] largest key of each group.
        num_excluded: [B, S] ids that are NaN or -inf.
        lowest: [B, S] lowest id that exists, `num_ids` for none.
        num_candidates: [B], set to 0.
        num_splits: S.
    """

    maxima: torch.Tensor
    num_excluded: torch.Tensor
    lowest: torch.Tensor
    num_candidates: torch.Tensor
    num_splits: int


@triton.jit(do_not_specialize=["num_ids", "num_tiles"])
def group_maxima_kernel(
    found, inputs, num_ids, num_tiles, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Grid (rows, splits); fills `found`."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    places = tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    maxima = tl.full((HEIGHT, WIDTH), NO_KEY, tl.int32)
    excluded = tl.zeros((HEIGHT, WIDTH), tl.int32)
    lowest = tl.zeros((HEIGHT, WIDTH), tl.int32) + num_ids
    for tile in range(split * num_tiles, (split + 1) * num_tiles):
        ids = tile * (HEIGHT * WIDTH) + places
        key, exists, is_excluded = load_keys(inputs, row, ids, num_ids)
        maxima = tl.maximum(maxima, key)
        excluded += is_excluded.to(tl.int32)
        lowest = tl.minimum(lowest, tl.where(exists, ids, num_ids))

    slot = row * found.num_splits + split
    tl.store(found.maxima + slot * WIDTH + tl.arange(0, WIDTH), tl.max(maxima, axis=0))
    tl.store(found.num_excluded + slot, tl.sum(tl.sum(excluded, axis=1), axis=0))
    tl.store(found.lowest + slot, tl.min(tl.min(lowest, axis=1), axis=0))
    if split == 0:
        tl.store(found.num_candidates + row, 0)
