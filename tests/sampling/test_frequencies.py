"""Tokens come out as often as they should: chi-square on a grid of configurations, and very rare ids.

Seeds are fixed, so nothing here is a matter of luck; the bound is 1e-4 for the whole grid.
"""

import math

import numpy as np
import pytest
import torch
from tests.sampling.oracle import Kept, kept, uniforms

from mmfast.sampling import sample

NUM_DRAWS = 1 << 21
NUM_STEPS = 1 << 16
DRAWS_A_CALL = 1 << 18
LEAST_EXPECTED = 25
BOUND = 1e-4


def peaked(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2.5


ROWS = {
    "peaked": peaked(14),
    "flat": torch.zeros(13),
    "ramp": torch.linspace(-6, 3, 16),
    "two tops": torch.tensor([4.0, 0, 1, 2, 0, 4, -3, 2, 2, 0, -8]),
    "holes": torch.where(torch.arange(15) % 3 == 0, -torch.inf, peaked(15)),
}
STAGES = (
    {},
    {"temperature": 0.6},
    {"temperature": 1.9},
    {"top_k": 5},
    {"top_p": 0.7},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.85},
    {"temperature": 1.5, "top_k": 7, "top_p": 0.95, "min_p": 0.1},
    {"min_p": 0.15},
)
GRID = [(name, stages) for name in ROWS for stages in STAGES]


def chi_square_tail(counts: np.ndarray, expected: np.ndarray) -> float:
    """Probability of frequencies as far from the expected ones, those expected below 25 times pooled."""
    order = np.argsort(expected)
    pooled = np.searchsorted(expected[order].cumsum(), LEAST_EXPECTED) + 1
    seen = np.append(counts[order][pooled:], counts[order][:pooled].sum())
    wanted = np.append(expected[order][pooled:], expected[order][:pooled].sum())
    if len(seen) == 1:
        return 1.0
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    half = torch.tensor([(len(seen) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def counts_of_steps(row: torch.Tensor, seed: int, stages: dict) -> np.ndarray:
    """Of one draw a step."""
    tokens = sample(
        row.expand(NUM_STEPS, -1), seeds=seed, steps=torch.arange(NUM_STEPS), **stages
    ).tokens
    return np.bincount(tokens.numpy(), minlength=len(row))


def counts_of_positions(row: torch.Tensor, seed: int, stages: dict) -> np.ndarray:
    """Of many draws of each of eight steps."""
    steps = torch.arange(NUM_DRAWS // DRAWS_A_CALL)
    tokens = torch.cat(
        [
            sample(row[None], seeds=seed, steps=step, num_draws=DRAWS_A_CALL, **stages).tokens
            for step in steps[:, None]
        ]
    )
    return np.bincount(tokens.flatten().numpy(), minlength=len(row))


def assert_fits(counts: np.ndarray, distribution: Kept, what: object) -> None:
    num_draws = counts.sum()
    assert counts[distribution.ids].sum() == num_draws, what
    tail = chi_square_tail(counts[distribution.ids], distribution.probabilities * num_draws)
    assert tail > BOUND / len(GRID), (what, tail)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_two_million_draws_fit_each_of_forty_distributions(part):
    assert len(GRID) == 40
    for number in range(part, len(GRID), 8):
        name, stages = GRID[number]
        counts = counts_of_positions(ROWS[name], 100 + number, stages)
        assert counts.sum() == NUM_DRAWS
        assert_fits(counts, kept(ROWS[name], **stages), (name, stages))


@pytest.mark.parametrize("name", ROWS)
def test_draws_of_many_steps_fit_too(name):
    for number, stages in enumerate(STAGES):
        counts = counts_of_steps(ROWS[name], 500 + number, stages)
        assert_fits(counts, kept(ROWS[name], **stages), stages)


def test_the_measure_notices_a_small_bias():
    """One and a half percent on two of thirteen ids."""
    expected = np.full(13, NUM_DRAWS / 13)
    counts = expected.copy()
    counts[0] *= 1.015
    counts[1] *= 0.985
    assert chi_square_tail(counts, expected) < BOUND / len(GRID)
    assert chi_square_tail(expected + 1, expected) > 0.99


@pytest.mark.parametrize(("gap", "num_steps"), [(20.5, 1_000_000), (28.0, 20_000_000)])
def test_rare_ids_come_out_as_often_as_they_should(gap, num_steps):
    """262,144 ids far below one: float32 Gumbel noise never draws any at 20.5 nats (vLLM issue #43150).

    Each id is below 1e-9. The random numbers of all steps are computed here; those that belong to the tail
    are as many as its mass asks for, and at each of them, and at no other, a tail token must be drawn.
    """
    num_tail, head = 1 << 18, 100_000
    row = torch.full((num_tail + 1,), -gap)
    row[head] = 0.0
    # A weight is a whole number of 2**-44: 28 nats below the top that is coarse, and part of the contract.
    each = math.floor(2 ** (44 - gap * math.log2(math.e))) / 2**44
    assert each == pytest.approx(math.exp(-gap), rel=0.02)
    mass = 1 + num_tail * each
    numbers = uniforms(7, np.arange(num_steps)) * mass
    below, above = numbers < head * each, numbers >= head * each + 1
    hits = np.flatnonzero(below | above)
    expected = num_steps * num_tail * each / mass
    assert abs(len(hits) - expected) < 4 * math.sqrt(expected)
    assert len(hits) > 0

    place = np.where(
        numbers[hits] < head * each,
        numbers[hits] / each,
        head + 1 + (numbers[hits] - head * each - 1) / each,
    )
    # float64 places a number of this size within 1e-6 of an id's width.
    clear = np.abs(place % 1 - 0.5) < 0.499
    assert clear.mean() > 0.99
    others = np.setdiff1d(np.arange(20), hits)
    for backend, some in (("rust", len(hits)), ("torch", 12)):
        tokens = draw_at(row, hits[:some], backend)
        assert (tokens != head).all()
        assert (tokens == np.floor(place[:some]))[clear[:some]].all()
        assert (draw_at(row, others[:6], backend) == head).all()


def test_the_tail_appears_among_half_a_million_draws():
    """The same row drawn from in earnest: float32 samplers give no tail token in as many draws."""
    num_draws, num_tail, gap = 500_000, 1 << 18, 20.5
    row = torch.full((1, num_tail + 1), -gap)
    row[0, 5] = 0.0
    tokens = sample(row, seeds=1, steps=0, num_draws=num_draws).tokens[0]
    tail = tokens[tokens != 5]
    expected = num_draws * num_tail * math.exp(-gap)
    assert expected > 160
    assert abs(len(tail) - expected) < 4 * math.sqrt(expected)
    # Spread over all of it: neither a block of ids nor one residue is preferred.
    for groups in (tail * 8 // (num_tail + 1), tail % 8):
        assert chi_square_tail(groups.bincount().numpy(), np.full(8, len(tail) / 8)) > 1e-3


def draw_at(row: torch.Tensor, steps: np.ndarray, backend: str) -> np.ndarray:
    rows = row.expand(len(steps), -1)
    return sample(rows, seeds=7, steps=torch.from_numpy(steps), backend=backend).tokens.numpy()
