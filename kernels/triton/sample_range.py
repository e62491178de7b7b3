"""Sampling in one kernel for a small range of ids: one program a row, one read of the logits.

Does what `mmfast.sampling.reference.draw` defines, bit for bit: mixing of a conditional and an
unconditional stream, temperature, integer weights, top-k, top-p, min-p, and a Philox draw in id order.
B rows, N <= `MAX_RANGE` ids. The row's logits are read once and stay in registers; the k-th largest
logit and the edge of the nucleus are found by 32 rounds of bisection on the logit's bits. Each round is
a sum of integers, so the result is that of a sort, ties included. NaN, -inf and +inf as in the reference.

Launches pass `enable_fp_fusion=False`, since a fused multiply-add rounds differently; the power of two
is an integer polynomial, so no `exp` is involved. Memory traffic: the allowed logits, once.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "mmfast.kernels.sample_range needs Triton, which comes with CUDA builds of torch "
        "(`pip install triton` adds it); sampling with backend='torch' needs none"
    ) from error

from mmfast.kernels import MAX_RANGE

STATUS_EXCLUDED = tl.constexpr(1)
STATUS_INFINITE = tl.constexpr(2)
STATUS_EMPTY = tl.constexpr(4)
_NUM_ROUNDS = tl.constexpr(32)
_KEY_OF_INFINITY = tl.constexpr(0x7F800000)
_SIGN_BIT = tl.constexpr(-(1 << 31))
_BITS_OF_ONE = tl.constexpr(0x3F800000)
_PROBABILITY_ONE = tl.constexpr(1 << 31)
_TOP_WEIGHT_LOG2 = tl.constexpr(44 << 26)

AOT_SIGNATURES = [
    {
        "name": f"{dtype}_{'guided' if has_base else 'plain'}_{block}",
        "dtype": dtype,
        "HAS_BASE": has_base,
        "HAS_SUPPORT": has_support,
        "KEEP_TIES": keep_ties,
        "MIN_P_FIRST": False,
        "BLOCK": block,
    }
    for dtype, has_base, has_support, keep_ties, block in (
        ("fp32", True, False, False, 256),
        ("bf16", True, False, False, 8192),
        ("fp16", False, True, True, 2048),
    )
]
"""Variants that the ahead-of-time compile test builds for every supported architecture."""


@triton.jit
def _flush(x):
    # subnormals and -0 become +0, by bits
    bits = x.to(tl.int32, bitcast=True)
    return tl.where((bits & 0x7FFFFFFF) < 0x00800000, 0.0, x)


@triton.jit
def _exponents(top, logits, bits_per_logit):
    # how far below the top, in bits, with 26 fractional bits; 63 at most
    gap_bits = _flush(_flush(top - logits) * bits_per_logit)
    gap_bits = tl.where(gap_bits < 63.0, gap_bits, 63.0)
    return (gap_bits * 67108864.0).to(tl.int64)


@triton.jit
def _weights(q):
    # 2**(44 - q / 2**26), the polynomial of mmfast.sampling.weights
    fraction = q & 0x3FFFFFF
    acc = 5480344 - ((469888 * fraction) >> 26)
    acc = 41148708 - ((acc * fraction) >> 26)
    acc = 238334497 - ((acc * fraction) >> 26)
    acc = 1031756634 - ((acc * fraction) >> 26)
    acc = 2977044036 - ((acc * fraction) >> 26)
    mantissa = 4294967296 - ((acc * fraction) >> 26)
    return (mantissa << 12) >> (q >> 26)


@triton.jit
def _log2_fixed(mass):
    # scalar int64 mass >= 1; 26 fractional bits by squaring of the leading 31 bits
    whole = mass * 0
    rest = mass
    for i in tl.static_range(6):
        shift = 32 >> i
        is_large = rest >= (tl.full((), 1, tl.int64) << shift)
        whole = tl.where(is_large, whole + shift, whole)
        rest = tl.where(is_large, rest >> shift, rest)
    up = tl.where(whole < 30, 30 - whole, 0)
    down = tl.where(whole > 30, whole - 30, 0)
    mantissa = (mass << up) >> down
    result = whole
    for _ in range(26):
        square = mantissa * mantissa
        bit = square >> 61
        mantissa = square >> (30 + bit)
        result = (result << 1) | bit
    return result


@triton.jit
def _sample_range_kernel(
    tokens_ptr,
    num_kept_ptr,
    log2_probabilities_ptr,
    status_ptr,
    logits_ptr,
    base_ptr,
    support_ptr,
    guidance_ptr,
    bits_per_logit_ptr,
    greedy_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    steps_ptr,
    logits_stride,
    base_stride,
    support_stride,
    num_ids,
    HAS_BASE: tl.constexpr,
    HAS_SUPPORT: tl.constexpr,
    KEEP_TIES: tl.constexpr,
    MIN_P_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK)
    exists = ids < num_ids
    if HAS_SUPPORT:
        exists = exists & (
            tl.load(support_ptr + row * support_stride + ids, mask=exists, other=0) != 0
        )

    # streams of weight 0 are not read, one of weight 1 is taken as it is
    if HAS_BASE:
        guidance = tl.load(guidance_ptr + row)
        # compared as bits: the interpreter turns a scalar float comparison into a float
        guidance_bits = guidance.to(tl.int32, bitcast=True)
        reads_condition = guidance_bits != 0
        reads_base = guidance_bits != _BITS_OF_ONE
        condition = _flush(
            tl.load(
                logits_ptr + row * logits_stride + ids, mask=exists & reads_condition, other=0.0
            ).to(tl.float32)
        )
        base = _flush(
            tl.load(base_ptr + row * base_stride + ids, mask=exists & reads_base, other=0.0).to(
                tl.float32
            )
        )
        mixed = _flush(base + _flush(guidance * _flush(condition - base)))
        mixed = tl.where(reads_base, tl.where(reads_condition, mixed, base), condition)
        usable = (condition > float("-inf")) & (base > float("-inf")) & (mixed > float("-inf"))
    else:
        mixed = _flush(
            tl.load(logits_ptr + row * logits_stride + ids, mask=exists, other=0.0).to(tl.float32)
        )
        usable = mixed > float("-inf")
    num_excluded = tl.sum((exists & ~usable).to(tl.int32), axis=0)
    keep = exists & usable
    mixed = tl.where(keep, mixed, float("-inf"))
    top = tl.max(mixed, axis=0)
    highest = tl.min(tl.where((mixed == top) & exists, ids, BLOCK), axis=0)
    highest = tl.where(highest < num_ids, highest, 0)

    bits_per_logit = tl.load(bits_per_logit_ptr + row)
    weights = tl.where(keep, _weights(_exponents(top, mixed, bits_per_logit)), 0)

    least_weight = tl.load(min_p_ptr + row) << 13
    if MIN_P_FIRST:
        keep = keep & (weights >= least_weight)

    # integers in the order of the logits; what is not kept sorts below everything
    bits = mixed.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    key = tl.where(keep, key, -_KEY_OF_INFINITY - 1)

    top_k = tl.load(top_k_ptr + row)
    num_left = tl.sum(keep.to(tl.int64), axis=0)
    if (top_k > 0) & (top_k < num_left):
        # the k-th largest key is the largest v with at least k keys >= v
        low = tl.full((), -_KEY_OF_INFINITY, tl.int64)
        high = tl.full((), _KEY_OF_INFINITY + 1, tl.int64)
        for _ in range(_NUM_ROUNDS):
            middle = (low + high) >> 1
            enough = tl.sum((key >= middle.to(tl.int32)).to(tl.int64), axis=0) >= top_k
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        kth = low.to(tl.int32)
        if KEEP_TIES:
            inside = key >= kth
        else:
            is_tie = (key == kth).to(tl.int32)
            room = (top_k - tl.sum((key > kth).to(tl.int64), axis=0)).to(tl.int32)
            inside = (key > kth) | ((is_tie > 0) & (tl.cumsum(is_tie, axis=0) <= room))
        keep = keep & inside
        key = tl.where(keep, key, -_KEY_OF_INFINITY - 1)

    top_p = tl.load(top_p_ptr + row)
    if top_p < _PROBABILITY_ONE:
        # keep an id while the mass before it is below ceil(P * mass / 2**31); one id always stays
        mass = tl.sum(tl.where(keep, weights, 0), axis=0)
        low_product = (mass & 0x7FFFFFFF) * top_p
        needed = (mass >> 31) * top_p + (low_product >> 31)
        needed = tl.where((low_product & 0x7FFFFFFF) != 0, needed + 1, needed)
        needed = tl.where(needed < 1, 1, needed)
        # the edge is the smallest v with less than that mass above v
        low = tl.full((), -_KEY_OF_INFINITY - 1, tl.int64)
        high = tl.full((), _KEY_OF_INFINITY, tl.int64)
        for _ in range(_NUM_ROUNDS):
            middle = (low + high) >> 1
            above = tl.sum(tl.where(key > middle.to(tl.int32), weights, 0), axis=0)
            high = tl.where(above < needed, middle, high)
            low = tl.where(above < needed, low, middle)
        edge = high.to(tl.int32)
        above = tl.sum(tl.where(key > edge, weights, 0), axis=0)
        edge_weight = tl.max(tl.where(key == edge, weights, 0), axis=0)
        is_tie = (key == edge).to(tl.int32)
        mass_before_tie = (tl.cumsum(is_tie, axis=0) - is_tie).to(tl.int64) * edge_weight
        keep = keep & ((key > edge) | ((is_tie > 0) & (mass_before_tie < needed - above)))
    keep = keep & (weights >= least_weight)

    # one random number a row, Philox4x32-10: key = seed, counter = (0, step low, step high, 0)
    step = tl.load(steps_ptr + row)
    zero = tl.full((), 0, tl.uint32)
    word_0, word_1, _, _ = tl.philox(
        tl.load(seeds_ptr + row),
        zero,
        (step & 0xFFFFFFFF).to(tl.uint32),
        ((step >> 32) & 0xFFFFFFFF).to(tl.uint32),
        zero,
    )
    kept_weights = tl.where(keep, weights, 0)
    mass = tl.sum(kept_weights, axis=0)
    random = (word_1.to(tl.uint64) << 32) | word_0.to(tl.uint64)
    target = tl.umulhi(random, mass.to(tl.uint64)).to(tl.int64)
    passed = tl.cumsum(kept_weights, axis=0) <= target
    drawn = tl.minimum(tl.sum(passed.to(tl.int32), axis=0), num_ids - 1)
    # the drawn id's exponent anew from its key, so that neither logits nor exponents stay in registers
    drawn_key = tl.max(tl.where(ids == drawn, key, -_KEY_OF_INFINITY - 1), axis=0)
    drawn_bits = tl.where(drawn_key < 0, _SIGN_BIT - drawn_key, drawn_key).to(tl.int32)
    drawn_q = _exponents(top, drawn_bits.to(tl.float32, bitcast=True), bits_per_logit)
    log2_probability = _TOP_WEIGHT_LOG2 - drawn_q - _log2_fixed(tl.where(mass < 1, 1, mass))

    is_infinite = top == float("inf")
    is_empty = top == float("-inf")
    is_certain = (tl.load(greedy_ptr + row) != 0) | is_infinite | is_empty
    num_kept = tl.sum(keep.to(tl.int64), axis=0)
    num_kept = tl.where(is_empty, 0, tl.where(is_certain, 1, num_kept))
    status = tl.where(num_excluded > 0, STATUS_EXCLUDED, 0)
    status = status + tl.where(is_infinite, STATUS_INFINITE, 0)
    status = status + tl.where(is_empty, STATUS_EMPTY, 0)

    tl.store(tokens_ptr + row, tl.where(is_certain, highest, drawn).to(tl.int64))
    tl.store(num_kept_ptr + row, num_kept)
    tl.store(log2_probabilities_ptr + row, tl.where(is_certain, 0, log2_probability))
    tl.store(status_ptr + row, status.to(tl.uint8))


def sample_range(
    logits: torch.Tensor,
    base: torch.Tensor | None,
    *,
    support: torch.Tensor | None,
    guidance: torch.Tensor,
    bits_per_logit: torch.Tensor,
    greedy: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    steps: torch.Tensor,
    keep_ties: bool,
    min_p_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws one id a row; the [B] parameters are those of `mmfast.sampling.SamplingParams`.

    Args:
        logits: [B, N] conditional logits, float32, float16 or bfloat16, any row stride.
        base: [B, N] unconditional logits of the same dtype, or None.
        support: [B, N] or [1, N] bool, ids that exist; None for all.
        guidance: [B] float32 weight of `logits` against `base`.
        bits_per_logit: [B] float32.
        greedy: [B] bool.
        top_k: [B] int64.
        top_p: [B] int64.
        min_p: [B] int64.
        seeds: [B] int64.
        steps: [B] int64.
        keep_ties: top-k keeps every id equal to the k-th.
        min_p_first: min-p comes before top-k and top-p.

    Returns:
        Tokens counted from the range's start, kept counts and log2-probabilities with 26 fractional
        bits (int64 [B]), status (uint8 [B]).

    Raises:
        ValueError: more than `MAX_RANGE` ids.
    """
    num_rows, num_ids = logits.shape
    if num_ids > MAX_RANGE:
        raise ValueError(f"{num_ids} ids are more than the {MAX_RANGE} that one program holds")
    logits = _rows_contiguous(logits)
    base_rows = logits if base is None else _rows_contiguous(base)
    mask = logits if support is None else _rows_contiguous(support).view(torch.uint8)
    tokens, num_kept, log2_probabilities = (
        torch.empty(num_rows, dtype=torch.int64, device=logits.device) for _ in range(3)
    )
    status = torch.empty(num_rows, dtype=torch.uint8, device=logits.device)
    if num_rows == 0:
        return tokens, num_kept, log2_probabilities, status
    block = max(triton.next_power_of_2(num_ids), 32)
    _sample_range_kernel[(num_rows,)](
        tokens,
        num_kept,
        log2_probabilities,
        status,
        logits,
        base_rows,
        mask,
        guidance,
        bits_per_logit,
        greedy.view(torch.uint8),
        top_k,
        top_p,
        min_p,
        seeds,
        steps,
        logits.stride(0),
        base_rows.stride(0),
        0 if support is None or support.shape[0] == 1 else mask.stride(0),
        num_ids,
        HAS_BASE=base is not None,
        HAS_SUPPORT=support is not None,
        KEEP_TIES=keep_ties,
        MIN_P_FIRST=min_p_first,
        BLOCK=block,
        num_warps=num_warps(block),
        enable_fp_fusion=False,
    )
    return tokens, num_kept, log2_probabilities, status


def num_warps(block: int) -> int:
    """Warps of one program: at most 16 ids a thread, which fit its registers."""
    return min(max(block // 512, 1), 16)


def _rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
