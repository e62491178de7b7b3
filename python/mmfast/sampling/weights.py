"""Fixed-point probabilities: integer weights, their wide products and their logarithm.

A weight is 2**(44 - x) as an integer, where x >= 0 is how far a logit lies below the row's largest,
in bits. Sums of integers do not depend on order, so neither does anything decided from them: the
same logits give the same token in any batch, split or backend. All functions take and return int64
tensors unless they say otherwise, and no product in them exceeds 63 bits.
"""

import torch

EXPONENT_BITS = 26
"""Fractional bits of an exponent and of a logarithm."""
WEIGHT_BITS = 44
"""The largest weight is 2**WEIGHT_BITS."""
PROBABILITY_BITS = 31
"""A probability p is held as the integer floor(p * 2**PROBABILITY_BITS)."""
MAX_EXPONENT = 63.0
MAX_ALLOWED_IDS = 2**19 - 1
"""With more ids than this their weights could sum to 2**63 or more."""

_POLYNOMIAL = (5480344, 41148708, 238334497, 1031756634, 2977044036)
_POLYNOMIAL_START = 469888
_MANTISSA_BITS = 31


def exponents(gap_bits: torch.Tensor) -> torch.Tensor:
    """Exponents q = floor(x * 2**26) of fp32 x; what is not below 63, NaN included, counts as 63."""
    capped = torch.where(gap_bits < MAX_EXPONENT, gap_bits, MAX_EXPONENT)
    return (capped * float(1 << EXPONENT_BITS)).to(torch.int64)


def weights(q: torch.Tensor) -> torch.Tensor:
    """floor-like 2**(44 - q / 2**26): exactly 2**44 at q = 0, never increasing in q, 0 for large q.

    The fraction's power of two is a degree-6 polynomial in Horner form on 32-bit words; each step
    keeps the high half of a product. Relative error 3.6e-9.
    """
    fraction = q & ((1 << EXPONENT_BITS) - 1)
    acc = torch.full_like(q, _POLYNOMIAL_START)
    for coefficient in _POLYNOMIAL:
        acc = coefficient - ((acc * fraction) >> EXPONENT_BITS)
    mantissa = (1 << 32) - ((acc * fraction) >> EXPONENT_BITS)
    return (mantissa << (WEIGHT_BITS - 32)) >> (q >> EXPONENT_BITS)


def share_of_mass(
    mass: torch.Tensor, probability: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotient and remainder of mass * probability / 2**31, the product taken in full.

    Args:
        mass: in [0, 2**63).
        probability: in [0, 2**31].
    """
    low_mask = (1 << PROBABILITY_BITS) - 1
    low_product = (mass & low_mask) * probability
    quotient = (mass >> PROBABILITY_BITS) * probability + (low_product >> PROBABILITY_BITS)
    return quotient, low_product & low_mask


def multiply_high(word_0: torch.Tensor, word_1: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """High 64 bits of (word_1 * 2**32 + word_0) * mass: a uniform number scaled to [0, mass).

    Args:
        word_0: low random word, in [0, 2**32).
        word_1: high random word, in [0, 2**32).
        mass: in [0, 2**63).
    """
    mass_low, mass_high = mass & 0xFFFFFFFF, mass >> 32
    carry = _product_high(word_0, mass_low)
    high_10, low_10 = _wide_product(word_1, mass_low)
    high_01, low_01 = _wide_product(word_0, mass_high)
    middle = carry + low_10 + low_01
    return word_1 * mass_high + high_10 + high_01 + (middle >> 32)


def log2_fixed(mass: torch.Tensor) -> torch.Tensor:
    """log2 of mass >= 1 with 26 fractional bits, by repeated squaring of its leading 31 bits.

    Bit by bit from integers, so that every backend gives the same; error below 2**-25.
    """
    whole = torch.zeros_like(mass)
    rest = mass
    for shift in (32, 16, 8, 4, 2, 1):
        large = rest >= (1 << shift)
        whole = torch.where(large, whole + shift, whole)
        rest = torch.where(large, rest >> shift, rest)
    # The leading 31 bits, as a number in [2**30, 2**31).
    up = (_MANTISSA_BITS - 1 - whole).clamp(min=0)
    down = (whole - (_MANTISSA_BITS - 1)).clamp(min=0)
    mantissa = (mass << up) >> down
    result = whole
    for _ in range(EXPONENT_BITS):
        square = mantissa * mantissa
        bit = square >> (2 * _MANTISSA_BITS - 1)
        mantissa = square >> (_MANTISSA_BITS - 1 + bit)
        result = (result << 1) | bit
    return result


def _wide_product(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the product of two 32-bit words."""
    low_part = (a & 0xFFFF) * b
    high_part = (a >> 16) * b
    high = (high_part + (low_part >> 16)) >> 16
    low = (low_part + ((high_part & 0xFFFF) << 16)) & 0xFFFFFFFF
    return high, low


def _product_high(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _wide_product(a, b)[0]
