"""Numbers that decide a draw, as Triton device functions: the integers of `mmfast.sampling.weights`.

A logit becomes an int32 *key* in the order of the logits, so that finding the k-th largest or the edge
of the nucleus is a search over integers. `NO_KEY` is below every key and stands for an id that does not
exist or is excluded. Nothing here is fused or flushed: launches pass `enable_fp_fusion=False`, and powers
of two are an integer polynomial.
"""

import os

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "the sampling kernels need Triton, which comes with CUDA builds of torch (`pip install triton` "
        "adds it); sampling with backend='torch' needs none"
    ) from error

if os.environ.get("TRITON_INTERPRET") == "1":
    from mmfast.kernels.old_interpreter import repair_loop_bounds

    repair_loop_bounds()

KEY_OF_INFINITY = tl.constexpr(0x7F800000)
NO_KEY = tl.constexpr(-0x7F800000 - 1)
PROBABILITY_ONE = tl.constexpr(1 << 31)
_SIGN_BIT = tl.constexpr(-(1 << 31))
_TOP_WEIGHT_LOG2 = tl.constexpr(44 << 26)


@triton.jit
def flush(x):
    """Subnormals and -0 become +0, by a test of the bits."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where((bits & 0x7FFFFFFF) < 0x00800000, 0.0, x)


@triton.jit
def key_from_logit(logit):
    """int32 in the order of flushed float32 logits."""
    bits = logit.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def logit_from_key(key):
    """The inverse of `key_from_logit`; NaN for `NO_KEY`."""
    bits = tl.where(key < 0, -key + _SIGN_BIT, key).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def exponents(top_key, key, bits_per_logit):
    """How far a key lies below the top one, in bits with 26 fractional ones; 63 bits at most."""
    gap = flush(logit_from_key(top_key) - logit_from_key(key))
    gap_bits = flush(gap * bits_per_logit)
    gap_bits = tl.where(gap_bits < 63.0, gap_bits, 63.0)
    return (gap_bits * 67108864.0).to(tl.int64)


@triton.jit
def weights(q):
    """2**(44 - q / 2**26), the polynomial of `mmfast.sampling.weights`."""
    fraction = q & 0x3FFFFFF
    acc = 5480344 - ((469888 * fraction) >> 26)
    acc = 41148708 - ((acc * fraction) >> 26)
    acc = 238334497 - ((acc * fraction) >> 26)
    acc = 1031756634 - ((acc * fraction) >> 26)
    acc = 2977044036 - ((acc * fraction) >> 26)
    mantissa = 4294967296 - ((acc * fraction) >> 26)
    return (mantissa << 12) >> (q >> 26)


@triton.jit
def key_weights(top_key, key, bits_per_logit):
    """Weights of keys; 0 for `NO_KEY`."""
    return tl.where(key > NO_KEY, weights(exponents(top_key, key, bits_per_logit)), 0)


@triton.jit
def log2_probability(top_key, key, bits_per_logit, mass):
    """log2(weight / mass) of one key with 26 fractional bits, by squaring of the mass's leading bits."""
    mass = tl.where(mass < 1, 1, mass)
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
    log2_mass = whole
    for _ in range(26):
        square = mantissa * mantissa
        bit = square >> 61
        mantissa = square >> (30 + bit)
        log2_mass = (log2_mass << 1) | bit
    return -(exponents(top_key, key, bits_per_logit) + log2_mass) + _TOP_WEIGHT_LOG2


@triton.jit
def needed_mass(mass, top_p, is_exclusive):
    """The mass at which top-p has enough: ids stay while the mass before them is below it; at least 1.

    ceil(mass * top_p / 2**31), or where ids stay up to p's share itself, the next integer above that.
    """
    low_product = (mass & 0x7FFFFFFF) * top_p
    needed = (mass >> 31) * top_p + (low_product >> 31)
    rounds_up = ((low_product & 0x7FFFFFFF) != 0) | (is_exclusive != 0)
    needed = tl.where(rounds_up, needed + 1, needed)
    return tl.where(needed < 1, 1, needed)


@triton.jit
def random_target(seed, step, draw, mass):
    """A uniform number scaled to [0, mass): one Philox4x32-10 call with key the seed, counter (draw, step, 0)."""
    word_0, word_1, _, _ = tl.philox(
        seed,
        (draw & 0xFFFFFFFF).to(tl.uint32),
        (step & 0xFFFFFFFF).to(tl.uint32),
        ((step >> 32) & 0xFFFFFFFF).to(tl.uint32),
        tl.full((), 0, tl.uint32),
    )
    random = (word_1.to(tl.uint64) << 32) | word_0.to(tl.uint64)
    return tl.umulhi(random, mass.to(tl.uint64)).to(tl.int64)
