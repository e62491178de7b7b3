"""Contrastive decoding's condition on the first stream (CD-K), found before the keys are: one program a row.

A column stays if the first stream's logit reaches its k-th largest plus ln(alpha), or is the lowest column of its
largest one.
"""

from mmfast.kernels.sampling_keys import load_expert_keys
from mmfast.kernels.sampling_numbers import (
    NO_KEY,
    flush,
    key_from_logit,
    logit_from_key,
    tl,
    triton,
)


@triton.jit(do_not_specialize=["num_ids"])
def contrast_floor_kernel(inputs, log_alpha_ptr, num_ids, TILE: tl.constexpr):
    """Grid (rows,); fills `inputs.contrast_floor` and `inputs.likeliest`."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.load(inputs.contrastive_k + row)
    floor = tl.full((), NO_KEY, tl.int32)
    likeliest = tl.full((), 0, tl.int32)
    if k > 0:
        lanes = tl.arange(0, TILE)
        top_keys = tl.full((TILE,), NO_KEY, tl.int32)
        low_keys = tl.full((TILE,), 0x7FFFFFFF, tl.int32)
        firsts = tl.zeros((TILE,), tl.int32)
        nums = tl.zeros((TILE,), tl.int32)
        for start in range(0, num_ids, TILE):
            key = load_expert_keys(inputs, row, start + lanes, num_ids)
            firsts = tl.where(key > top_keys, start + lanes, firsts)
            top_keys = tl.maximum(top_keys, key)
            low_keys = tl.minimum(low_keys, tl.where(key > NO_KEY, key, 0x7FFFFFFF))
            nums += (key > NO_KEY).to(tl.int32)
        top_key = tl.max(top_keys, axis=0)
        likeliest = tl.min(tl.where(top_keys == top_key, firsts, 0x7FFFFFFF), axis=0)
        num_left = tl.sum(nums, axis=0)
        if num_left > 0:
            k = tl.minimum(k, num_left.to(tl.int64))
            low = tl.min(low_keys, axis=0).to(tl.int64)
            high = top_key.to(tl.int64) + 1
            if k == 1:
                low = top_key.to(tl.int64)
            while high - low > 1:
                middle = (low + high) >> 1
                counts = tl.zeros((TILE,), tl.int32)
                for start in range(0, num_ids, TILE):
                    key = load_expert_keys(inputs, row, start + lanes, num_ids)
                    counts += (key >= middle).to(tl.int32)
                enough = tl.sum(counts, axis=0) >= k
                low = tl.where(enough, middle, low)
                high = tl.where(enough, high, middle)
            kth = logit_from_key(low.to(tl.int32))
            floor = key_from_logit(flush(kth + tl.load(log_alpha_ptr + row)))
    tl.store(inputs.contrast_floor + row, floor)
    tl.store(inputs.likeliest + row, likeliest)
