"""`multinomial` does what `torch.multinomial` does, but for a row alike in any batch."""

import itertools
import math

import pytest
import torch

from mmfast.sampling import RowGenerator, multinomial

ROWS = torch.tensor([[1.0, 0.0, 3.0, 4.0], [0.5, 0.5, 0.0, 1e-3]])


def frequencies(drawn: torch.Tensor, size: int) -> torch.Tensor:
    return drawn.flatten().bincount(minlength=size).double() / drawn.numel()


def test_draws_come_in_proportion():
    num_draws = 40_000
    drawn = multinomial(ROWS[:1].expand(num_draws, -1), seeds=7, steps=torch.arange(num_draws))
    assert drawn.shape == (num_draws, 1)
    expected = ROWS[0].double() / 8
    # Within four standard deviations of a fixed seed's expectation.
    assert ((frequencies(drawn, 4) - expected).abs() <= 4 * (expected / num_draws).sqrt()).all()


def test_several_draws_with_replacement():
    drawn = multinomial(ROWS, 60_000, replacement=True, seeds=torch.arange(2), steps=0)
    assert drawn.shape == (2, 60_000)
    for row, probabilities in zip(drawn, ROWS.double(), strict=True):
        expected = probabilities / probabilities.sum()
        assert ((frequencies(row, 4) - expected).abs() <= 4 * (expected / 60_000).sqrt()).all()
    assert torch.equal(drawn, multinomial(ROWS, 60_000, True, seeds=torch.arange(2), steps=0))


def test_draws_without_replacement_follow_successive_draws():
    """Every ordered pair as often as drawing, taking out and drawing again gives it."""
    weights = [0.5, 0.25, 0.2, 0.05]
    num_rows = 40_000
    rows = torch.tensor(weights).expand(num_rows, -1)
    drawn = multinomial(rows, 2, seeds=5, steps=torch.arange(num_rows))
    counts = (drawn[:, 0] * 4 + drawn[:, 1]).bincount(minlength=16)
    for first, second in itertools.product(range(4), repeat=2):
        expected = 0.0
        if first != second:
            expected = num_rows * weights[first] * weights[second] / (1 - weights[first])
        assert abs(counts[4 * first + second] - expected) <= 4 * math.sqrt(expected)


@pytest.mark.parametrize("num_samples", [2, 7, 300])
def test_without_replacement_each_id_comes_once(num_samples):
    """Peaked rows too, where many rounds are needed; a row is the same by itself."""
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(6, 300, generator=generator) * 4).exp()
    arguments = {"seeds": torch.arange(6), "steps": torch.arange(6) * 3}
    drawn = multinomial(rows, num_samples, **arguments)
    assert drawn.shape == (6, num_samples)
    assert all(len(set(row.tolist())) == num_samples for row in drawn)
    for row in range(6):
        alone = multinomial(rows[row], num_samples, seeds=row, steps=row * 3)
        assert torch.equal(alone, drawn[row])
    first = multinomial(rows, 1, **arguments)
    assert torch.equal(drawn[:, :1], first)


def test_ids_of_probability_0_never_come():
    rows = torch.zeros(200, 50)
    rows[:, 10:20] = 1e-30
    drawn = multinomial(rows, 10, seeds=torch.arange(200), steps=0)
    assert torch.equal(drawn.sort().values, torch.arange(10, 20).expand(200, -1))


def test_shapes_and_dtypes_are_those_of_torch():
    for probabilities in (ROWS[0], ROWS, ROWS.half(), ROWS.bfloat16(), ROWS.double()):
        for num_samples, replacement in ((1, False), (2, False), (5, True)):
            theirs = torch.multinomial(probabilities, num_samples, replacement)
            ours = multinomial(probabilities, num_samples, replacement, seeds=0, steps=0)
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert multinomial(torch.zeros(0, 4), 3, seeds=0, steps=0).shape == (0, 3)


def test_tiny_and_huge_probabilities_keep_their_ratio():
    """float64 rows are not rounded to float32 before their logarithm."""
    rows = torch.tensor([1e-200, 3e-200, 0.0], dtype=torch.float64).expand(4_000, -1)
    drawn = multinomial(rows, seeds=1, steps=torch.arange(4_000))
    assert abs(drawn.double().mean() - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4_000)


def test_a_generator_moves_on_by_one_step_a_call():
    seeds = torch.tensor([3, 4])
    flat = torch.ones(2, 1_000)
    generator = RowGenerator(seeds)
    drawn = [multinomial(flat, num_samples=1, generator=generator) for _ in range(5)]
    for step, tokens in enumerate(drawn):
        assert torch.equal(tokens, multinomial(flat, seeds=seeds, steps=step))
    resumed = RowGenerator(seeds, steps=3)
    assert torch.equal(multinomial(flat, generator=resumed), drawn[3])
    own = RowGenerator(seeds, steps=torch.tensor([1, 4]))
    both = multinomial(flat, generator=own)
    assert both[:, 0].tolist() == [drawn[1][0].item(), drawn[4][1].item()]
    assert own.steps.tolist() == [2, 5]


def test_a_refused_call_does_not_move_the_generator():
    generator = RowGenerator(0)
    with pytest.raises(ValueError, match="not negative"):
        multinomial(torch.tensor([1.0, -1.0]), generator=generator)
    assert generator.steps == 0


@pytest.mark.parametrize(
    ("row", "num_samples", "message"),
    [
        ([0.0, 0.0], 1, "an entry above 0, found 0"),
        ([1.0, 0.0], 2, "2 entries above 0, found 1"),
        ([1.0, -0.5], 1, "finite and not negative"),
        ([math.nan, 1.0], 1, "finite and not negative"),
        ([math.inf, 1.0], 1, "finite and not negative"),
        ([1.0, 1.0], 0, "num_samples is 0"),
    ],
)
def test_what_is_no_distribution_is_refused(row, num_samples, message):
    with pytest.raises(ValueError, match=message):
        multinomial(torch.tensor([row]), num_samples, seeds=0, steps=0)


def test_a_place_in_the_stream_is_needed_once():
    for arguments in ({}, {"seeds": 0}, {"generator": RowGenerator(0), "steps": 1}):
        with pytest.raises(ValueError, match="a generator, or seeds and steps"):
            multinomial(ROWS, **arguments)
    with pytest.raises(ValueError, match="must be floating-point"):
        multinomial(torch.ones(2, 2, dtype=torch.int64), seeds=0, steps=0)
