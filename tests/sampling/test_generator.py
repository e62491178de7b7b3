"""The random numbers: Philox's published answers, and no pattern over seeds, steps and draws.

A token is drawn with a 64-bit number that is a pure function of seed, step and purpose. Neighbouring seeds and
steps are the ones that users choose, so these are what is tested. Bounds are in standard deviations of
fixed experiments.
"""

import functools
import math

import numpy as np
import pytest
import torch
from tests.sampling.oracle import philox, uniforms

from mmfast.sampling import sample
from mmfast.sampling.philox import PURPOSE_TOKEN, random_words

SIZE = 1 << 17


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_oracle_gives_the_published_answers(counter, key, answer):
    """Of Random123's `kat_vectors`."""
    words = philox(tuple(counter), tuple(key))
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def sequences() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Seeds and steps that loops really use."""
    count = torch.arange(SIZE)
    return {
        "steps of one seed": (torch.zeros_like(count), count),
        "seeds from 0": (count, torch.zeros_like(count)),
        "seeds down from 0": (-count, torch.ones_like(count)),
        "seed + step": (count, count),
        "high steps": (torch.full_like(count, 5), count << 32),
        "high seeds": (count << 32, torch.zeros_like(count)),
        "seeds apart by a Weyl constant": (count * -7046029254386353131, torch.zeros_like(count)),
    }


@functools.cache
def numbers(name: str, purpose: int = PURPOSE_TOKEN) -> np.ndarray:
    low, high = random_words(*sequences()[name], purpose=purpose)
    return (high.numpy().astype(np.uint64) << np.uint64(32)) | low.numpy().astype(np.uint64)


@pytest.mark.parametrize("name", sequences())
def test_sequences_equal_the_oracle(name):
    seeds, steps = (values.numpy() for values in sequences()[name])
    found = numbers(name)
    assert (found / 2.0**64 == uniforms(seeds, steps)).mean() == 1.0


@pytest.mark.parametrize("name", sequences())
def test_bits_and_bytes_are_balanced(name):
    values = numbers(name)
    ones = np.array([((values >> np.uint64(bit)) & np.uint64(1)).sum() for bit in range(64)])
    assert np.abs((ones - SIZE / 2) / math.sqrt(SIZE / 4)).max() < 4.5
    counts = values.view(np.uint8).reshape(-1, 8)
    for place in range(8):
        seen = np.bincount(counts[:, place], minlength=256)
        statistic = ((seen - SIZE / 256) ** 2 / (SIZE / 256)).sum()
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("name", sequences())
def test_neighbours_are_not_correlated(name):
    values = numbers(name) / 2.0**64 - 0.5
    for lag in (1, 2, 3, 4, 8, 64, 1_024):
        correlation = (values[lag:] * values[:-lag]).mean() * 12
        assert abs(correlation) < 4.5 / math.sqrt(SIZE - lag)
    bits = numbers(name)
    flips = np.bitwise_count(bits[1:] ^ bits[:-1]) if hasattr(np, "bitwise_count") else None
    if flips is not None:
        assert abs(flips.mean() - 32) < 4.5 * 4 / math.sqrt(SIZE)
    assert len(np.unique(bits)) == SIZE


def test_sequences_and_purposes_share_nothing():
    seen = [numbers(name) for name in sequences()]
    seen += [numbers("steps of one seed", purpose) for purpose in (1, 2)]
    for index, first in enumerate(seen):
        for second in seen[index + 1 :]:
            # Two sequences share their very first (seed, step) at most.
            assert np.isin(first[:5_000], second).sum() <= 1
            product = ((first / 2.0**64 - 0.5) * (second / 2.0**64 - 0.5))[1:].mean() * 12
            assert abs(product) < 4.5 / math.sqrt(SIZE)


@pytest.mark.parametrize("backend", ["torch", "rust"])
def test_tokens_follow_the_numbers_of_their_own_seed_and_step(backend):
    """A flat row of 1,000 ids shows the leading digits of each row's number."""
    generator = np.random.default_rng(0)
    seeds = generator.integers(-(2**63), 2**63, 3_000)
    steps = generator.integers(0, 2**62, 3_000)
    out = sample(
        torch.zeros(3_000, 1_000),
        seeds=torch.from_numpy(seeds),
        steps=torch.from_numpy(steps),
        backend=backend,
    )
    assert (out.tokens.numpy() == np.floor(uniforms(seeds, steps) * 1_000)).all()


@pytest.mark.parametrize("backend", ["torch", "rust"])
def test_a_seed_gives_the_same_tokens_in_any_row(backend):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    steps = torch.arange(20)
    alone = sample(logits.expand(20, -1), seeds=9, steps=steps, backend=backend).tokens
    for place in range(7):
        rows = torch.randn(7, 50, generator=torch.Generator().manual_seed(place + 5))
        rows[place] = logits
        seeds = torch.arange(100, 107)
        seeds[place] = 9
        for step in range(20):
            together = sample(rows, seeds=seeds, steps=step, backend=backend).tokens
            assert together[place] == alone[step]


def test_signed_and_unsigned_seeds_are_the_same_bits():
    rows = torch.zeros(1, 5_000)
    for seed in (-1, -(2**63), -12_345):
        signed = sample(rows, seeds=seed, steps=3).tokens
        assert torch.equal(signed, sample(rows, seeds=seed + 2**64, steps=3).tokens)
