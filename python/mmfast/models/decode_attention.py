"""Attention of one new token a row against a cache in which every row has its own length.

The cache lies in blocks of 64 positions. Every block is attended to by itself, all of them in one product,
and the blocks' sums are then added in a tree. A block that lies wholly beyond a row's length adds zeros,
which change not even a bit, wherever the tree ends. So a row's result depends neither on how far the
longest row has come nor on the size of the cache, only on its own keys and values.

On CUDA two kernels do it for heads up to 128 wide (`mmfast.kernels.decode_attention`).

Legend: N blocks, R rows, H heads, K key-value heads, G = H / K, D head width.
"""

import math
from typing import Any, NamedTuple

import torch

from mmfast.kernels import triton_available

BLOCK = 64
"""Cache positions per block."""
_WIDEST_IN_KERNELS = 128


def cache_mask(positions: torch.Tensor, num_blocks: int, window: int | None = None) -> torch.Tensor:
    """What the token at each row's position may see of the first blocks: 0, else -inf.

    Args:
        positions: [R] int64, of each row's new token.
        num_blocks: blocks to attend to; all positions lie within.
        window: how many positions a token sees, its own included; None for all before it.

    Returns:
        [num_blocks, R, 1, 1, BLOCK] float32, made once for all layers.
    """
    places = torch.arange(num_blocks * BLOCK, device=positions.device)
    places = places.view(num_blocks, 1, 1, 1, BLOCK)
    mask = torch.zeros((), device=positions.device)
    positions = positions.view(-1, 1, 1, 1)
    is_hidden = places > positions
    if window is not None:
        is_hidden |= places <= positions - window
    return torch.where(is_hidden, -math.inf, mask)


class CacheMasks(NamedTuple):
    """Masks of one step, from `cache_mask`: of layers that see all, and of those with a window, if there are any."""

    full: torch.Tensor
    windowed: torch.Tensor | None

    def of_layer(self, window: int | None) -> torch.Tensor:
        """The mask of a layer that has this window, or none."""
        return self.full if window is None or self.windowed is None else self.windowed


def cache_masks(positions: torch.Tensor, num_blocks: int, window: int | None) -> CacheMasks:
    """Both, made once for all layers; arguments as those of `cache_mask`."""
    windowed = None if window is None else cache_mask(positions, num_blocks, window)
    return CacheMasks(cache_mask(positions, num_blocks), windowed)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor,
    scaling: float | None = None,
) -> torch.Tensor:
    """One token a row.

    Args:
        query: [R, H, 1, D].
        key: [N, R, K, BLOCK, D], the whole cache, new token included.
        value: [N, R, K, BLOCK, D].
        mask: from `cache_mask`; blocks that it does not reach are not read.
        scaling: factor on the scores, 1/sqrt(D) when None.

    Returns:
        [R, 1, H, D] in the query's dtype.

    Raises:
        ValueError: more than one token a row, or a cache that is not in blocks.
    """
    R, H, num_queries, D = query.shape
    num_blocks = mask.shape[0]
    if num_queries != 1 or key.dim() != 5 or key.shape[3] != BLOCK or num_blocks > key.shape[0]:
        raise ValueError(
            f"decoding takes one token a row and a cache of blocks: got {num_queries} tokens, a "
            f"cache {tuple(key.shape)}, a mask of {num_blocks} blocks"
        )
    K = key.shape[2]
    factor = D**-0.5 if scaling is None else scaling
    if query.is_cuda and D <= _WIDEST_IN_KERNELS and triton_available():
        from mmfast.kernels.decode_attention import decode_attention as in_two_kernels

        return in_two_kernels(query[:, :, 0], key, value, mask=mask, scaling=factor)[:, None]
    q_rkgd = query.reshape(R, K, H // K, D)
    scores = torch.matmul(q_rkgd, key[:num_blocks].transpose(-1, -2)).float()
    scores = torch.add(mask, scores, alpha=factor)
    # The largest score is the same however the search for it is split up.
    weights = scores.sub_(scores.amax((0, 4), keepdim=True)).exp_()
    total = _tree_sum(weights.sum(-1, keepdim=True))
    output = _tree_sum(torch.matmul(weights.to(value.dtype), value[:num_blocks]).float())
    return (output / total).to(query.dtype).reshape(R, 1, H, D)


def _tree_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over the first axis as if zeros filled it up to a power of two: neighbours, then theirs."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        pairs = x[: 2 * half].view(half, 2, *x.shape[1:])
        summed = pairs[:, 0] + pairs[:, 1]
        x = torch.cat([summed, x[2 * half :]]) if x.shape[0] % 2 else summed
    return x[0]


def attend_to_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cache_mask: CacheMasks,
    scaling: float | None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """`decode_attention` with what the model was called with; other keywords are not used."""
    del kwargs
    mask = cache_mask.of_layer(sliding_window)
    return decode_attention(query, key, value, mask=mask, scaling=scaling)
