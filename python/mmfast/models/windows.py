"""Attention within a sliding window: a token sees the W latest of its document, itself included.

Some models have it in all layers (Mistral 7B 0.1, Phi-3, Starcoder2), some in most (Gemma 3, Olmo 3). Such a mask is
not made of blocks of whole documents, so on CUDA these layers run FlexAttention over the blocks that the mask leaves;
elsewhere they take an explicit mask.

Legend: B rows, L tokens a row, H heads, K key-value heads, D head width, W tokens of the window.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmfast.errors import UsageError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def sliding_window(config: Any) -> int | None:
    """W of the layers that have a window, None if no layer has one; the others see all of their document.

    Args:
        config: a model's transformers configuration.

    Raises:
        UsageError: layers that attend in yet another way.
    """
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return window if getattr(config, "use_sliding_window", True) else None
    if unknown := set(layer_types) - {"full_attention", "sliding_attention"}:
        raise UsageError(
            f"a model of type {config.model_type} has layers of kind {', '.join(sorted(unknown))}; full and "
            "sliding attention are what is computed here"
        )
    return window if "sliding_attention" in layer_types else None


def band(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Bool `[num_queries, num_keys]`: what queries at the keys' end see, themselves included."""
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    mask = mask.tril_(num_keys - num_queries)
    return mask if window is None else mask.triu_(num_keys - num_queries + 1 - window)


def block_mask(document_ids: Tensor, window: int) -> "BlockMask":
    """FlexAttention's mask of packed rows `[B, L]`: the blocks of it that are not empty, made once a forward."""
    B, L = document_ids.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        is_in_window = (key <= query) & (query - key < window)
        return is_in_window & (document_ids[row, query] == document_ids[row, key])

    mask: BlockMask = _flex("create_block_mask", document_ids.device.type)(
        sees, B, None, L, L, device=document_ids.device
    )
    return mask


def attend_to_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: "BlockMask", *, scaling: float | None
) -> Tensor:
    """FlexAttention; on the CPU, which has no backward of it, forward only and without its kernels.

    Args:
        query: `[B, H, L, D]`.
        key: `[B, K, L, D]`, H a multiple of K.
        value: `[B, K, L, D]`.
        mask: from `block_mask`.
        scaling: factor on the scores, `1/sqrt(D)` when None.

    Returns:
        `[B, L, H, D]`.
    """
    H, K = query.shape[1], key.shape[1]
    if (H // K) & (H // K - 1):
        # its kernels share a key among a power of two of heads
        key, value = (x.repeat_interleave(H // K, dim=1) for x in (key, value))
    output: Tensor = _flex("flex_attention", query.device.type)(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=key.shape[1] != H
    )
    return output.transpose(1, 2).contiguous()


@functools.cache
def _flex(name: str, device_type: str) -> Callable[..., Any]:
    """A function of FlexAttention, which is imported when it is used: that takes a second."""
    function: Callable[..., Any] = getattr(import_module("torch.nn.attention.flex_attention"), name)
    # it is a kernel only where it is compiled
    return torch.compile(function) if device_type == "cuda" else function
