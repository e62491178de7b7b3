"""Document-masked causal attention, registered with transformers under the name `"mmfast"`.

A packed row holds several documents, and a token must see only earlier tokens of its own. transformers
guesses documents from `position_ids`, and only for some models and calls; where the guess fails the
documents see each other in silence. Here nothing is guessed: callers pass `document_ids`, or what
`attention_inputs` prepares from them once per forward.

Backends: variable-length flash attention on CUDA in half precision where torch has it, FlexAttention on
CUDA for layers with a sliding window (`mmfast.models.windows`), else torch's scaled dot product attention
with an explicit mask. Decoding with a cache is `mmfast.models.decode_attention`; this file only forwards to
it.

Legend: B rows, L tokens a row, H heads, K key-value heads, D head width, T = B·L tokens.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfast.errors import UsageError
from mmfast.models.decode_attention import attend_to_cache
from mmfast.models.windows import attend_to_blocks, band, block_mask

ATTENTION_NAME = "mmfast"
_HALF_TYPES = (torch.float16, torch.bfloat16)
_NOT_COMPUTED = {
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias of positions",
}
"""What layers may ask for, by transformers' keyword, that would otherwise be left out in silence."""


def register_attention() -> str:
    """Makes `"mmfast"` known to transformers and returns that name; safe to call again.

    Use it as `model.set_attn_implementation(register_attention())`.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, mmfast_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _mask_of_padding)
    return ATTENTION_NAME


def attention_inputs(
    document_ids: Tensor, *, device: torch.device, dtype: torch.dtype, window: int | None = None
) -> dict[str, Any]:
    """Keyword arguments for one forward over packed rows, made once instead of in each layer.

    Args:
        document_ids: `[B, L]` integers on the CPU (no device sync is needed then); equal neighbours
            belong together, and padding (0) is a document of its own.
        device: where the model runs.
        dtype: the type attention computes in; flash attention takes half precision only.
        window: `mmfast.models.windows.sliding_window` of the model.

    Returns:
        Arguments to pass on to `model(...)` beside `input_ids` and `position_ids`.
    """
    inputs: dict[str, Any] = {}
    ids = document_ids.to(device, non_blocking=True)
    if window is not None and window < document_ids.shape[1]:
        of_window = block_mask if device.type == "cuda" else document_mask
        inputs["window_mask"] = of_window(ids, window)
    if varlen_available(device, dtype):
        cu_seqlens, max_seqlen = padded_lengths(
            *packed_lengths(document_ids), document_ids.shape[1]
        )
        return inputs | {
            # transformers hands a 4-D mask through untouched; without one it would look for packed
            # rows in `position_ids`, which stalls the device. The varlen branch never reads it.
            "attention_mask": ids[:, None, None, :],
            "cu_seqlens": cu_seqlens.to(device, non_blocking=True),
            "max_seqlen": max_seqlen,
        }
    return inputs | {"attention_mask": document_mask(ids)}


def document_mask(document_ids: Tensor, window: int | None = None) -> Tensor:
    """Boolean mask `[B, 1, L, L]`: True where the query (third axis) may see the key (last axis).

    With `window` a query sees that many keys at most, itself included. Padding sees padding, so that no row of the mask is empty and softmax stays finite.
    """
    L = document_ids.shape[1]
    same_document = document_ids[:, :, None] == document_ids[:, None, :]
    return (same_document & band(L, L, window, document_ids.device))[:, None]


def packed_lengths(document_ids: Tensor) -> tuple[Tensor, int]:
    """Cumulative lengths int32 `[documents + 1]` over the flattened rows, and the longest length.

    Runs of equal ids within a row are documents, padding included, so the lengths add up to B·L.
    """
    B, L = document_ids.shape
    starts = torch.ones(B, L, dtype=torch.bool, device=document_ids.device)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    first = starts.flatten().nonzero().flatten()
    cu_seqlens = torch.cat([first, first.new_tensor([B * L])]).to(torch.int32)
    return cu_seqlens, int(cu_seqlens.diff().max())


def padded_lengths(cu_seqlens: Tensor, max_seqlen: int, row_tokens: int) -> tuple[Tensor, int]:
    """Both results of `packed_lengths` rounded up, so that few shapes are ever seen.

    A compiled block is compiled anew for a shape that it has not seen. The count of documents becomes a
    power of two by empty documents at the end, the longest length one too, but for `row_tokens` at most.

    Returns:
        int32 `[N + 1]` with N a power of two, and a bound on the lengths.
    """
    num_documents = len(cu_seqlens) - 1
    empty = cu_seqlens[-1:].expand(_power_of_two(num_documents) - num_documents)
    return torch.cat([cu_seqlens, empty]), min(_power_of_two(max_seqlen), row_tokens)


def _power_of_two(number: int) -> int:
    """The smallest that is not below `number`, which is positive."""
    return 1 << (number - 1).bit_length()


def varlen_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether variable-length flash attention can run there: CUDA, half precision, torch has it."""
    return device.type == "cuda" and dtype in _HALF_TYPES and _varlen_function() is not None


def mmfast_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in each layer.

    Args:
        module: the attention layer.
        query: `[B, H, L, D]`.
        key: `[B, K, L, D]`, H a multiple of K.
        value: `[B, K, L, D]`.
        attention_mask: `[B or 1, 1, L, L]`, True where attention is allowed, or None.
        scaling: factor on the scores, `1/sqrt(D)` when None.
        dropout: probability with which attention weights are dropped.
        kwargs: what the model was called with and what the layer adds; `document_ids`, `cu_seqlens`,
            `max_seqlen`, `cache_mask`, `window_mask` and `sliding_window` are read.

    Returns:
        `[B, L, H, D]`, and None for the weights that transformers may ask for.

    Raises:
        UsageError: the layer asks for what is not computed here.
    """
    del module
    for name, what in _NOT_COMPUTED.items():
        if kwargs.get(name) is not None:
            raise UsageError(f"the model has {what}, which attention here does not compute")
    if "cache_mask" in kwargs:
        return attend_to_cache(query, key, value, scaling=scaling, **kwargs), None
    window = kwargs.get("sliding_window")
    window_mask = kwargs.get("window_mask")
    if window is not None and window_mask is not None:
        if isinstance(window_mask, Tensor):
            attention_mask = window_mask
        elif dropout == 0.0:
            return attend_to_blocks(query, key, value, window_mask, scaling=scaling), None
        else:
            raise UsageError("a sliding window with dropout is not computed on CUDA; set it to 0")
    cu_seqlens = kwargs.get("cu_seqlens")
    if cu_seqlens is not None and dropout == 0.0 and varlen_available(query.device, query.dtype):
        return _varlen(query, key, value, cu_seqlens, kwargs["max_seqlen"], scaling), None
    document_ids = kwargs.get("document_ids")
    if attention_mask is None and document_ids is not None:
        attention_mask = document_mask(document_ids, window)
    num_queries, num_keys = query.shape[2], key.shape[2]
    if attention_mask is None and (1 < num_queries < num_keys or num_keys > (window or num_keys)):
        attention_mask = band(num_queries, num_keys, window, query.device)
    return _masked(query, key, value, attention_mask, scaling=scaling, dropout=dropout), None


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Scaled dot product attention; without a mask, causal for as many queries as keys, or a single one."""
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous()


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scaling: float | None,
) -> Tensor:
    attend = _varlen_function()
    assert attend is not None
    B, _, L, _ = query.shape
    q_thd, k_tkd, v_tkd = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out_thd: Tensor = attend(
        q_thd, k_tkd, v_tkd, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scaling
    )
    return out_thd.view(B, L, *out_thd.shape[1:])


@functools.cache
def _varlen_function() -> Callable[..., Tensor] | None:
    """Causal varlen attention of torch behind one signature, or None where it has none.

    The name of the causal switch changed between releases (`is_causal`, then `window_size`), and
    grouped heads became an option later; older releases get repeated heads.
    """
    try:
        varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    accepted = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    )
    has_scale, has_gqa = "scale" in accepted, "enable_gqa" in accepted

    def attend(
        q_thd: Tensor,
        k_tkd: Tensor,
        v_tkd: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        scaling: float | None,
    ) -> Tensor:
        D = q_thd.shape[-1]
        options = dict(causal)
        if has_scale:
            options["scale"] = scaling
        elif scaling is not None:
            q_thd = q_thd * (scaling * D**0.5)
        groups = q_thd.shape[1] // k_tkd.shape[1]
        if groups > 1 and has_gqa:
            options["enable_gqa"] = True
        elif groups > 1:
            k_tkd, v_tkd = (x.repeat_interleave(groups, dim=1) for x in (k_tkd, v_tkd))
        result: Tensor = varlen_attn(
            q_thd, k_tkd, v_tkd, cu_seq_q, cu_seq_k, max_q, max_k, **options
        )
        return result

    return attend


def _mask_of_padding(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask, so that attention falls to `document_ids`; a caller's 2-D padding mask is honoured."""
    if kwargs.get("attention_mask") is None:
        return None
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask
