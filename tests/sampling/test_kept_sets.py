"""Kept sets are those of a full sort in float64: exactly where values tie, within 2^-20 of p elsewhere."""

import math

import numpy as np
import pytest
import torch
from tests.sampling.oracle import BOUNDARY, assert_kept, kept

from mmfast.sampling import sample


@pytest.fixture(params=["torch", "auto"])
def backend(request) -> str:
    return request.param


ONE_BIT = math.log2(math.e)
"""The temperature at which a unit of logit is one bit: whole logits have exact weights."""


def noise(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def grids(seed: int) -> dict[str, torch.Tensor]:
    """Rows of few different values, most of them often."""
    two_levels = (noise(1_000, seed) > 0.5).float() * 3 - 1
    return {
        "whole numbers": (noise(700, seed) * 2).round().clamp(-4, 4),
        "two levels": two_levels,
        "all equal": torch.full((257 + seed,), -2.0),
        "one above equals": torch.zeros(513).index_fill(0, torch.tensor([200 + seed]), 6.0),
        "bfloat16": (noise(600, seed) * 1.5).to(torch.bfloat16),
        "float16, coarse": (noise(600, seed) * 4).round().div(4).to(torch.float16),
        "signed zeros": torch.tensor([0.0, -0.0, -1.0]).repeat(40 + seed),
    }


@pytest.mark.parametrize("ties", ["index", "keep"])
@pytest.mark.parametrize("name", grids(0))
def test_ties_are_cut_where_a_sort_cuts_them(name, ties, backend):
    for seed in range(3):
        row = grids(seed)[name]
        for top_k, top_p in [
            (0, 0.5),
            (1, 1.0),
            (40, 1.0),
            (200, 0.75),
            (len(row), 0.625),
            (0, 1.0),
        ]:
            stages = {"temperature": ONE_BIT, "top_k": top_k, "top_p": top_p}
            expected = kept(row, ties=ties, **stages)
            assert_kept(expected, row, ties=ties, backend=backend, **stages)


@pytest.mark.parametrize("name", ["whole numbers", "two levels"])
def test_min_p_cuts_at_the_exact_share_of_the_top(name, backend):
    row = grids(5)[name]
    for min_p in (0.5, 0.25, 0.125, 2.0**-4 + 2.0**-20, 1.0):
        stages = {"temperature": ONE_BIT, "top_p": 0.875, "min_p": min_p}
        assert_kept(kept(row, **stages), row, backend=backend, **stages)
        first = {"temperature": ONE_BIT, "min_p": min_p, "top_k": 50, "top_p": 0.5}
        assert_kept(kept(row, **first), row, backend=backend, order="vllm", **first)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 2.0**-31, 1 - 2.0**-31])
def test_equal_ids_fill_a_nucleus_by_whole_number_arithmetic(top_p, backend):
    for size in (1, 2, 10, 1_000, 65_537):
        share = math.floor(top_p * 2**31)
        expected = max(1, -(-share * size // 2**31))
        out = sample(torch.zeros(1, size), top_p=top_p, seeds=0, steps=0, backend=backend)
        assert out.num_kept.item() == expected


@pytest.mark.parametrize(("backend", "most"), [("torch", 6), ("rust", 150)])
def test_a_hundred_thousand_duplicates(backend, most):
    row = noise(131_072, 1).round() - 4
    row[torch.randperm(131_072, generator=torch.Generator().manual_seed(2))[:100_000]] = 5.0
    row[77], row[99_000] = 7.0, 6.0
    for stages in (
        {"top_k": 30_000},
        {"top_k": 100_001, "top_p": 0.5},
        {"top_p": 0.25},
        {"top_p": 0.99999},
    ):
        for ties in ("index", "keep"):
            expected = kept(row, ties=ties, temperature=ONE_BIT, **stages)
            assert_kept(
                expected, row, temperature=ONE_BIT, ties=ties, rare=True, most=most,
                backend=backend, **stages,
            )  # fmt: skip


CONTINUOUS = 120


@pytest.mark.parametrize("order", ["hf", "vllm"])
def test_continuous_logits_differ_at_most_next_to_p(order, backend):
    generator = np.random.default_rng(3)
    decided = 0
    for number in range(CONTINUOUS):
        size = int(generator.integers(2, 900))
        row = noise(size, number) * float(generator.choice([0.3, 1.0, 3.0]))
        temperature = float(generator.uniform(0.4, 2.0))
        top_k = int(generator.choice([0, 3, 50, size // 2, size]))
        top_p = float(generator.choice([1.0, generator.uniform(0.05, 1), 0.999]))
        min_p = float(generator.choice([0.0, generator.uniform(0, 0.1)]))
        stages = {"temperature": temperature}
        stages |= {"top_k": top_k, "top_p": top_p, "min_p": min_p} if order == "hf" else {}
        stages |= {"min_p": min_p, "top_k": top_k, "top_p": top_p} if order == "vllm" else {}
        least, most = kept(row, slack=-BOUNDARY, **stages), kept(row, slack=BOUNDARY, **stages)
        if len(least.ids) == len(most.ids):
            assert_kept(most, row, rare=True, order=order, backend=backend, **stages)
            decided += 1
        else:
            out = sample(row[None], seeds=0, steps=0, order=order, backend=backend, **stages)
            assert len(least.ids) <= out.num_kept.item() <= len(most.ids)
    assert decided > 0.9 * CONTINUOUS


def test_a_vocabulary_of_184622_ids(backend):
    """Likely ids as neighbours, as image ids are, and as a ramp, where every block of ids is sorted."""
    clustered = noise(184_622, 4)
    clustered[40_000:72_768] += 3
    ramp = torch.linspace(-8, 4, 184_622)
    for row in (clustered, ramp):
        for stages in ({"top_k": 2_048, "top_p": 0.9}, {"top_p": 0.3}, {"top_k": 6_144}):
            least = kept(row, slack=-BOUNDARY, temperature=1.0, **stages)
            most = kept(row, slack=BOUNDARY, temperature=1.0, **stages)
            out = sample(row[None], seeds=0, steps=0, backend=backend, **stages)
            assert len(least.ids) <= out.num_kept.item() <= len(most.ids)
            if len(least.ids) == len(most.ids):
                assert_kept(most, row, rare=True, most=8, backend=backend, **stages)


RULES = [
    {"rule": "exclusive"},
    {"base": "full"},
    {"rule": "exclusive", "base": "full", "ties": "keep"},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("name", ["whole numbers", "two levels", "all equal", "bfloat16"])
def test_other_rules_of_top_p_cut_where_they_say(name, rules, backend):
    """Halves and quarters of whole-number rows fall on edges exactly, where the rules differ."""
    names = {"rule": "top_p_rule", "base": "top_p_base", "ties": "ties"}
    for seed in range(2):
        row = grids(seed)[name]
        for top_k, top_p in [(0, 0.5), (40, 0.25), (200, 0.75), (3, 0.875)]:
            stages = {"temperature": ONE_BIT, "top_k": top_k, "top_p": top_p}
            expected = kept(row, **rules, **stages)
            arguments = {names[rule]: value for rule, value in rules.items()}
            assert_kept(expected, row, backend=backend, **arguments, **stages)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 8.0, math.inf])
def test_order_fourm_filters_at_temperature_1(temperature, backend):
    """Hot rows show the whole kept set: every id of it is about as likely as any other."""
    for seed in range(6):
        row = noise(400, seed) * 2
        for stages in ({"top_k": 37}, {"top_p": 0.9}, {"top_k": 100, "top_p": 0.8}):
            least, most = (
                kept(
                    row,
                    ties="keep",
                    rule="exclusive",
                    slack=slack,
                    **stages,
                    temperature=temperature,
                )
                for slack in (-BOUNDARY, BOUNDARY)
            )
            assert len(least.ids) == len(most.ids)
            assert_kept(
                most, row, rare=temperature < 1, order="fourm", temperature=temperature,
                backend=backend, **stages,
            )  # fmt: skip
