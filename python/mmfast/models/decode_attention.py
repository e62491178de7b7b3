"""Attention of one new token a row against a cache in which every row has its own length.

The cache is walked in blocks of fixed size with a running maximum, as flash attention does. A block that
lies wholly beyond a row's length changes nothing, not even a bit: its weights are 0 and its rescaling
factor is 1. So a row's result depends neither on how far the longest row has come nor on the size of the
cache, only on its own keys and values.

Legend: R rows, H heads, K key-value heads, G = H / K, P cache positions, D head width.
"""

import math
from typing import Any

import torch

BLOCK = 64
"""Cache positions per block; a cache holds a multiple of it."""


def decode_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cache_positions: torch.Tensor,
    cache_length: int,
    scaling: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """One token a row.

    Args:
        module: the attention layer, not used.
        query: [R, H, 1, D].
        key: [R, K, P, D], the whole cache, new token included.
        value: [R, K, P, D].
        attention_mask: not used; a row sees its positions 0..cache_positions.
        cache_positions: [R] int64, position of each row's new token.
        cache_length: largest of them plus one, known on the host; later blocks are not walked.
        scaling: factor on the scores, 1/sqrt(D) when None.
        kwargs: what else the model was called with, not used.

    Returns:
        [R, 1, H, D] in the query's dtype.

    Raises:
        ValueError: more than one token a row, or a cache that is not a multiple of `BLOCK`.
    """
    del module, attention_mask, kwargs
    R, H, num_queries, D = query.shape
    K, P = key.shape[1:3]
    if num_queries != 1 or P % BLOCK or not 0 < cache_length <= P:
        raise ValueError(
            f"decoding takes one token a row and a cache of whole blocks: got {num_queries} tokens, "
            f"{P} positions, length {cache_length}"
        )
    q_rkgd = query.reshape(R, K, H // K, D)
    factor = D**-0.5 if scaling is None else scaling
    # position of each key minus that of the row's token: > 0 is not written yet
    ahead_rp = torch.arange(P, device=query.device) - cache_positions[:, None]
    top = total = output = None
    for start in range(0, cache_length, BLOCK):
        block = slice(start, start + BLOCK)
        scores = torch.matmul(q_rkgd, key[:, :, block].transpose(-1, -2)).float() * factor
        scores.masked_fill_(ahead_rp[:, None, None, block] > 0, -math.inf)
        block_top = scores.amax(-1, keepdim=True)
        new_top = block_top if top is None else torch.maximum(top, block_top)
        weights = torch.exp(scores - new_top)
        block_total = weights.sum(-1, keepdim=True)
        block_output = torch.matmul(weights.to(value.dtype), value[:, :, block]).float()
        if top is None or total is None or output is None:
            total, output = block_total, block_output
        else:
            rescale = torch.exp(top - new_top)
            total = total * rescale + block_total
            output = output * rescale + block_output
        top = new_top
    assert output is not None
    assert total is not None
    return (output / total).to(query.dtype).reshape(R, 1, H, D)
