"""From a row's logits to integer keys: what every sampling kernel does when it touches an id.

Which ids exist, the mixing of streams, contrastive decoding and the repetition penalty, in the order and with the
rounding of `mmfast.sampling.reference`. Kernels that read a row twice do this twice; mixed logits are never written.
"""

from typing import NamedTuple

import torch

from mmfast.kernels.sampling_numbers import NO_KEY, flush, key_from_logit, tl, triton

_BITS_OF_ONE = tl.constexpr(0x3F800000)


class LogitInputs(NamedTuple):
    """Logits and what decides about each id, as kernels take them; None is compiled away.

    B rows, N ids, S streams. Columns count from the start of the range that is read.

    Attributes:
        conditions: S tensors [B, N], rows contiguous.
        condition_strides: elements between rows, of each.
        base: [B, N] unconditional logits.
        base_stride: elements between its rows.
        guidance: [S, B] float32.
        num_rows: B.
        ranges: [B, 2] int64, columns that exist.
        mask: [B or 1, N] uint8, columns that exist.
        mask_stride: elements between its rows; 0 for one mask.
        bits: [B or 1, words] int32, bitmap of ids that exist.
        bits_stride: words between its rows; 0 for one bitmap.
        bits_first: bit of column 0.
        history: [B, words] int32, bitmap of ids that are penalised.
        history_stride: words between its rows.
        history_first: bit of column 0.
        penalty: [B] float32.
        offsets: [B] float32, added before the penalty.
        contrastive_k: [B] int64; rows with 0 have no contrast.
        contrast_floor: [B] int32, least key of the first stream.
        likeliest: [B] int32, column that contrast always leaves.
    """

    conditions: tuple[torch.Tensor, ...]
    condition_strides: tuple[int, ...]
    base: torch.Tensor | None
    base_stride: int | None
    guidance: torch.Tensor
    num_rows: int
    ranges: torch.Tensor | None
    mask: torch.Tensor | None
    mask_stride: int | None
    bits: torch.Tensor | None
    bits_stride: int | None
    bits_first: int | None
    history: torch.Tensor | None
    history_stride: int | None
    history_first: int | None
    penalty: torch.Tensor | None
    offsets: torch.Tensor | None
    contrastive_k: torch.Tensor | None
    contrast_floor: torch.Tensor | None
    likeliest: torch.Tensor | None


@triton.jit
def _load_bits(words, ids, is_read):
    word = tl.load(words + (ids >> 5), mask=is_read, other=0)
    return ((word >> (ids & 31)) & 1) != 0


@triton.jit
def _load_logits(pointer, is_read):
    return flush(tl.load(pointer, mask=is_read, other=0.0).to(tl.float32))


@triton.jit
def _mix(inputs, row, ids, num_ids):
    # mixed logits, the first stream's, and which ids exist and are usable
    exists = ids < num_ids
    if inputs.ranges is not None:
        low = tl.load(inputs.ranges + 2 * row)
        high = tl.load(inputs.ranges + 2 * row + 1)
        exists = exists & (ids >= low) & (ids < high)
    if inputs.mask is not None:
        mask = inputs.mask + row * inputs.mask_stride
        exists = exists & (tl.load(mask + ids, mask=exists, other=0) != 0)
    if inputs.bits is not None:
        words = inputs.bits + row * inputs.bits_stride
        exists = exists & _load_bits(words, ids + inputs.bits_first, exists)

    first_row = inputs.conditions[0] + row * inputs.condition_strides[0]
    if inputs.base is None:
        first = _load_logits(first_row + ids, exists)
        mixed = first
        usable = first > float("-inf")
    else:
        # floats compared as bits: the interpreter turns a scalar float comparison into a float
        num_used = 0
        num_ones = 0
        for s in tl.static_range(len(inputs.conditions)):
            weight_bits = tl.load(inputs.guidance + s * inputs.num_rows + row).to(
                tl.int32, bitcast=True
            )
            num_used += (weight_bits != 0).to(tl.int32)
            num_ones += (weight_bits == _BITS_OF_ONE).to(tl.int32)
        is_alone = (num_used == 1) & (num_ones == 1)
        reads_base = ~is_alone
        if inputs.contrastive_k is not None:
            is_contrastive = tl.load(inputs.contrastive_k + row) > 0
            reads_base = reads_base | is_contrastive
        base = _load_logits(inputs.base + row * inputs.base_stride + ids, exists & reads_base)
        mixed = base
        usable = base > float("-inf")
        first = base
        for s in tl.static_range(len(inputs.conditions)):
            weight = tl.load(inputs.guidance + s * inputs.num_rows + row)
            is_used = weight.to(tl.int32, bitcast=True) != 0
            stream = inputs.conditions[s] + row * inputs.condition_strides[s]
            is_read = is_used
            if s == 0:
                if inputs.contrastive_k is not None:
                    is_read = is_read | is_contrastive
            condition = _load_logits(stream + ids, exists & is_read)
            if s == 0:
                first = condition
            added = flush(mixed + flush(weight * flush(condition - base)))
            mixed = tl.where(is_used, tl.where(is_alone, condition, added), mixed)
            usable = usable & ((condition > float("-inf")) | ~is_used)
        if inputs.contrastive_k is not None:
            mixed = tl.where(is_contrastive, flush(first - base), mixed)
            both = (first > float("-inf")) & (base > float("-inf"))
            usable = tl.where(is_contrastive, both, usable)
        usable = usable & (mixed > float("-inf"))
    return mixed, first, exists, usable


@triton.jit
def load_keys(inputs, row, ids, num_ids):
    """int32 keys of some columns of a row (`NO_KEY` for none), which exist, which are NaN or -inf."""
    mixed, first, exists, usable = _mix(inputs, row, ids, num_ids)
    is_excluded = exists & ~usable
    keeps = exists & usable
    if inputs.contrastive_k is not None:
        reached = key_from_logit(first) >= tl.load(inputs.contrast_floor + row)
        keeps = keeps & (reached | (ids == tl.load(inputs.likeliest + row)))
    if inputs.history is not None:
        if inputs.offsets is not None:
            mixed = flush(mixed + tl.load(inputs.offsets + row))
        penalty = tl.load(inputs.penalty + row)
        words = inputs.history + row * inputs.history_stride
        is_seen = _load_bits(words, ids + inputs.history_first, exists)
        scaled = tl.where(mixed < 0, mixed * penalty, tl.div_rn(mixed, penalty))
        mixed = tl.where(is_seen, flush(scaled), mixed)
        is_excluded = is_excluded | (keeps & ~(mixed > float("-inf")))
        keeps = keeps & (mixed > float("-inf"))
    return tl.where(keeps, key_from_logit(mixed), NO_KEY), exists, is_excluded


@triton.jit
def load_expert_keys(inputs, row, ids, num_ids):
    """Keys of the first stream alone, `NO_KEY` where mixing leaves no id."""
    _, first, exists, usable = _mix(inputs, row, ids, num_ids)
    return tl.where(exists & usable, key_from_logit(first), NO_KEY)
