"""Philox4x32-10, the one source of randomness in sampling, in torch int64 arithmetic.

A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four
output words are a pure function of a 128-bit counter and a 64-bit key, so a draw depends on its seed
and step and on nothing else. Words are unsigned 32-bit values held in int64; no product exceeds 49
bits, so nothing here relies on overflow.
"""

import torch

WORD = 0xFFFFFFFF
PURPOSE_TOKEN = 0
"""Fourth counter word of the draw that picks a token."""

_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_KEY_STEP_0 = 0x9E3779B9
_KEY_STEP_1 = 0xBB67AE85
_NUM_ROUNDS = 10


def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four output words for each counter and key.

    Args:
        counter: words 0..3, int64 tensors of one shape, values in [0, 2**32).
        key: low and high word, same shape and range.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        high_0, low_0 = _multiply(_MULTIPLIER_0, c0)
        high_1, low_1 = _multiply(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 = (k0 + _KEY_STEP_0) & WORD
        k1 = (k1 + _KEY_STEP_1) & WORD
    return c0, c1, c2, c3


def random_words(
    seeds: torch.Tensor,
    steps: torch.Tensor,
    *,
    purpose: int,
    draws: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high word of a uniform 64-bit number for each (seed, step, draw).

    Key is the seed, counter is (draw, step low, step high, purpose). Shapes broadcast.

    Args:
        seeds: int64, all 64 bits used.
        steps: int64, index of the step within its request, all 64 bits used.
        purpose: what the number is for, so that two uses never share one.
        draws: int64, number of the draw or position within the step, 32 bits used; None is 0.
    """
    if draws is None:
        draws = torch.zeros_like(seeds)
    zeros = torch.zeros_like(seeds + steps + draws)
    word_0, word_1, _, _ = philox4x32(
        (
            zeros + (draws & WORD),
            zeros + (steps & WORD),
            zeros + (steps >> 32 & WORD),
            zeros + purpose,
        ),
        (zeros + (seeds & WORD), zeros + (seeds >> 32 & WORD)),
    )
    return word_0, word_1


def _multiply(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32x32-bit product."""
    low_part = word * (multiplier & 0xFFFF)
    high_part = word * (multiplier >> 16)
    high = (high_part + (low_part >> 16)) >> 16
    low = (low_part + ((high_part & 0xFFFF) << 16)) & WORD
    return high, low
