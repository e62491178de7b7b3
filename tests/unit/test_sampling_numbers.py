"""Philox and fixed-point arithmetic against known answers and arbitrary-precision integers."""

import math
import random

import pytest
import torch

from mmfast.sampling.philox import philox4x32, random_words
from mmfast.sampling.weights import (
    exponents,
    log2_fixed,
    multiply_high,
    share_of_mass,
    weights,
)


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert tuple(w.item() for w in philox4x32(words(*counter), words(*key))) == expected


def test_random_words_use_all_bits_of_seed_and_step():
    seeds = torch.tensor([0, 1 << 40, -1, 0, 0])
    steps = torch.tensor([0, 0, 0, 1, 1 << 35])
    word_0, word_1 = random_words(seeds, steps, purpose=0)
    assert len({(a.item(), b.item()) for a, b in zip(word_0, word_1, strict=True)}) == 5
    other_purpose, _ = random_words(seeds, steps, purpose=1)
    assert not torch.equal(word_0, other_purpose)


def test_weights_are_monotone_accurate_and_cut_off():
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 40 << 26, (200_000,), generator=generator).sort().values
    w = weights(q)
    assert weights(torch.tensor([0])).item() == 1 << 44
    assert weights(torch.tensor([63 << 26])).item() == 0
    assert (w.diff() <= 0).all()
    near = q < 8 << 26
    exact = 2.0 ** (44 - q[near].double() / 2**26)
    assert ((w[near] - exact).abs() / exact).max() < 4e-9


def test_known_weights_do_not_change():
    q = torch.tensor([1, 12345678, 1 << 26, 3 * (1 << 26) + 999, 30 << 26])
    assert weights(q).tolist() == [
        17592185864192,
        15486056665088,
        8796093022208,
        2199000565760,
        16384,
    ]


def test_exponents_cap_large_and_undefined_gaps():
    x = torch.tensor([0.0, 0.5, 62.999996, 63.0, 1e30, math.inf, math.nan])
    expected = [0, 1 << 25, int(62.999996185302734 * 2**26), *[63 << 26] * 4]
    assert exponents(x).tolist() == expected


def test_wide_products_equal_python_integers():
    rng = random.Random(0)
    edge = [0, 1, (1 << 32) - 1, 1 << 31]
    for _ in range(500):
        r0, r1 = (rng.choice([*edge, rng.getrandbits(32)]) for _ in range(2))
        mass = rng.choice([0, 1, (1 << 63) - 1, rng.getrandbits(63), rng.getrandbits(45)])
        p = rng.choice([0, 1, 1 << 31, rng.getrandbits(31)])
        got = multiply_high(*words(r0, r1, mass)).item()
        assert got == (((r1 << 32) | r0) * mass) >> 64
        quotient, remainder = share_of_mass(*words(mass, p))
        assert (quotient.item(), remainder.item()) == divmod(mass * p, 1 << 31)


def test_fixed_point_logarithm_is_within_two_units():
    rng = random.Random(1)
    masses = [1, 2, 3, (1 << 63) - 1, 1 << 62, *(rng.getrandbits(b) | 1 for b in range(1, 63))]
    got = log2_fixed(torch.tensor(masses)).double() / 2**26
    exact = torch.tensor([math.log2(m) for m in masses], dtype=torch.float64)
    assert (got - exact).abs().max() <= 2 / 2**26
