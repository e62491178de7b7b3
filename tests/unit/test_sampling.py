"""`sample`: what it keeps, what it draws, and that a row's result is its own."""

import math
import sys

import pytest
import torch

from mmfast.sampling import (
    STATUS_EMPTY,
    STATUS_EXCLUDED,
    STATUS_INFINITE,
    SampleOutput,
    SamplingParams,
    sample,
    sample_prepared,
)
from mmfast.sampling.philox import PURPOSE_TOKEN, random_words


def random_logits(rows: int, width: int, *, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread


def kept_set(logits: torch.Tensor, *, num_draws: int = 400, **arguments) -> set[int]:
    """Ids of one row that come out in many draws: all that are kept, when none is rare."""
    steps = torch.arange(num_draws)
    tokens = sample(logits.expand(num_draws, -1), seeds=1, steps=steps, **arguments).tokens
    return set(tokens.tolist())


def assert_rows_equal(a: SampleOutput, b: SampleOutput, rows_a=slice(None), rows_b=slice(None)):
    for first, second in zip(a, b, strict=True):
        assert torch.equal(first[rows_a], second[rows_b])


def test_a_row_does_not_depend_on_the_batch():
    logits, uncond = random_logits(12, 300), random_logits(12, 300, seed=1)
    arguments = {
        "temperature": torch.linspace(0.2, 2, 12),
        "top_k": torch.arange(12) * 7,
        "top_p": torch.linspace(0.3, 1.2, 12),
        "guidance_scale": torch.linspace(-1, 5, 12),
        "seeds": torch.arange(12) - 3,
        "steps": torch.arange(12) * 5,
    }
    whole = sample(logits, uncond, **arguments)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = sample(logits[order], uncond[order], **{k: v[order] for k, v in arguments.items()})
    assert_rows_equal(whole, shuffled, order)
    for row in range(12):
        one = slice(row, row + 1)
        alone = sample(logits[one], uncond[one], **{k: v[one] for k, v in arguments.items()})
        assert_rows_equal(whole, alone, one)


def test_filters_keep_what_a_float64_sort_keeps():
    checked = 0
    for seed in range(30):
        logits = random_logits(8, 257, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        top_k = torch.randint(0, 300, (8,), generator=generator)
        top_p = torch.rand(8, generator=generator, dtype=torch.float64)
        min_p = torch.rand(8, generator=generator, dtype=torch.float64) * 0.02
        temperature = 0.3 + torch.rand(8, generator=generator, dtype=torch.float64)
        out = sample(
            logits,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seeds=seed,
            steps=0,
        )
        for row in range(8):
            z, ids = (logits[row].double() / temperature[row]).sort(descending=True, stable=True)
            k = int(top_k[row]) or 257
            probabilities = z[:k].softmax(-1)
            before = probabilities.cumsum(-1) - probabilities
            margin = (before - top_p[row]).abs().min()
            likely = probabilities / probabilities[0] >= min_p[row]
            if (
                margin < 2**-20
                or (probabilities / probabilities[0] - min_p[row]).abs().min() < 1e-6
            ):
                continue
            kept = (before < top_p[row]) & likely
            assert int(kept.sum()) == int(out.num_kept[row])
            assert int(out.tokens[row]) in ids[:k][kept].tolist()
            chosen = (ids[:k] == out.tokens[row]).nonzero()[0, 0]
            expected = (probabilities[chosen] / probabilities[kept].sum()).log()
            assert out.logprobs[row].item() == pytest.approx(expected.item(), abs=1e-5)
            checked += 1
    assert checked > 200


def test_top_k_ties_by_index_or_kept():
    logits = torch.tensor([[1.0, 5.0, 3.0, 3.0, 3.0, 0.0]])
    assert kept_set(logits, top_k=3) == {1, 2, 3}
    assert kept_set(logits, top_k=3, ties="keep") == {1, 2, 3, 4}


def test_top_p_cuts_ties_by_index_and_keeps_at_least_one():
    flat = torch.zeros(1, 8)
    assert kept_set(flat, top_p=0.5) == {0, 1, 2, 3}
    assert kept_set(flat, top_p=0.501) == {0, 1, 2, 3, 4}
    assert kept_set(flat, top_p=0.0) == {0}


def test_min_p_before_top_p_changes_the_nucleus():
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.15]]).log()
    hf = sample(logits, top_p=0.69, min_p=0.35, seeds=0, steps=0)
    vllm = sample(logits, top_p=0.69, min_p=0.35, seeds=0, steps=0, order="vllm")
    assert (hf.num_kept.item(), vllm.num_kept.item()) == (2, 1)


@pytest.mark.parametrize("top_k", [0, 1, 5, 40])
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_kept_counts_equal_transformers_processors(top_k, temperature):
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    # Coarse values make ties; the processors keep ties of top-k.
    logits = random_logits(16, 100, seed=4).mul(2).round() / 2
    steps = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(0.83), MinPLogitsWarper(0.01)]
    scores = LogitsProcessorList(steps)(None, logits.clone())
    out = sample(
        logits, temperature=temperature, top_k=top_k, top_p=0.83, min_p=0.01, ties="keep",
        seeds=0, steps=0,
    )  # fmt: skip
    assert torch.equal(torch.isfinite(scores).sum(-1), out.num_kept)


def test_guidance_gives_the_documented_logits():
    conditional = torch.tensor([[3, 2.5, 2, 0.5, -1, -3]])
    unconditional = torch.tensor([[2, 2.5, 0, 0.5, -2, -1]])
    guided = torch.tensor([[5, 2.5, 6, 0.5, 1, -7.0]])
    arguments = {"seeds": torch.tensor([3]), "steps": torch.tensor([0]), "temperature": 2.0}
    for step in range(50):
        arguments["steps"] = torch.tensor([step])
        a = sample(conditional, unconditional, guidance_scale=3.0, **arguments)
        assert_rows_equal(a, sample(guided, **arguments))


def test_streams_mix_in_listed_order_and_unread_ones_are_ignored():
    c, f, u = (random_logits(4, 50, seed=s) for s in range(3))
    arguments = {"seeds": 0, "steps": 0}
    mixed = u + torch.tensor(1.5) * (c - u)
    mixed = mixed + torch.tensor(0.5) * (f - u)
    two = sample(c, u, streams=[f], guidance_scale=(1.5, 0.5), **arguments)
    assert_rows_equal(two, sample(mixed, **arguments))
    nan = torch.full_like(u, math.nan)
    plain = sample(c, **arguments)
    assert_rows_equal(plain, sample(c, nan, guidance_scale=1.0, **arguments))
    assert_rows_equal(plain, sample(c, nan, streams=[nan], guidance_scale=(1.0, 0), **arguments))
    assert_rows_equal(sample(u, **arguments), sample(nan, u, guidance_scale=0.0, **arguments))


def test_a_sliced_range_equals_a_mask():
    logits = random_logits(6, 90)
    logits[:, :20] = 100.0
    arguments = {"top_k": 30, "top_p": 0.9, "seeds": torch.arange(6), "steps": 2}
    by_range = sample(logits, allowed=(20, 70), **arguments)
    assert by_range.tokens.min() >= 20
    mask = torch.zeros(90, dtype=torch.bool)
    mask[20:70] = True
    for allowed in (mask, mask.expand(6, 90), torch.tensor([[20, 70]]).expand(6, 2)):
        assert_rows_equal(by_range, sample(logits, allowed=allowed, **arguments))
    sliced = sample(logits[:, 20:70].contiguous(), **arguments)
    assert torch.equal(by_range.tokens, sliced.tokens + 20)


def test_unusual_values_have_defined_results_and_a_status():
    nan, inf = math.nan, math.inf
    logits = torch.tensor(
        [[nan, 1, -inf, 2], [0, inf, 5, inf], [nan, -inf, nan, -inf], [0.0, 1, 2, 3]]
    )
    out = sample(logits, top_k=2, seeds=0, steps=0)
    assert out.status.tolist() == [STATUS_EXCLUDED, STATUS_INFINITE, 5, 0]
    assert STATUS_EXCLUDED + STATUS_EMPTY == 5
    assert out.tokens[0].item() in (1, 3)
    assert out.tokens[1:3].tolist() == [1, 0]
    assert out.num_kept.tolist() == [2, 1, 0, 2]
    assert out.logprobs[2].item() == -inf
    nothing = sample(logits, allowed=torch.zeros(4, dtype=torch.bool), seeds=0, steps=0)
    assert nothing.status.tolist() == [STATUS_EMPTY] * 4


def test_greedy_takes_the_lowest_of_the_largest():
    logits = torch.tensor([[1.0, 7.0, 7.0], [-0.0, 0.0, -1.0], [1e-40, 0.0, -1.0]])
    for temperature in (0.0, 1e-45):
        out = sample(logits, temperature=temperature, seeds=0, steps=0)
        assert out.tokens.tolist() == [1, 0, 0]
        assert out.logprobs.tolist() == [0.0, 0.0, 0.0]
    near = torch.tensor([[0.0, 1e-4]])
    assert sample(near, temperature=1e-6, order="vllm", seeds=0, steps=0).tokens.item() == 1
    assert kept_set(torch.zeros(1, 3), temperature=math.inf) == {0, 1, 2}


def test_frequencies_follow_the_distribution():
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    num_draws = 40_000
    logits = probabilities.log().expand(num_draws, 6)
    tokens = sample(logits, seeds=7, steps=torch.arange(num_draws)).tokens
    counts = tokens.bincount(minlength=6).double()
    expected = probabilities.double() * num_draws
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # 5 degrees of freedom: p = 1e-3 at 20.5; the seed is fixed, so this cannot flake
    assert chi_square < 20.5


def test_ids_far_below_the_top_come_out_as_often_as_they_should():
    # 65,536 ids 19 nats below one: together 3.7e-4 of the mass, each below the grid of a float32
    # uniform or exponential number, where other samplers never draw them.
    logits = torch.full((1, 65_537), -19.0)
    logits[0, 0] = 0.0
    num_draws, seed = 100_000, 11
    tail = 65_536 * math.exp(-19)
    steps = torch.arange(num_draws)
    _, high_words = random_words(torch.full_like(steps, seed), steps, purpose=PURPOSE_TOKEN)
    # The head comes first in id order, so the tail is drawn by the largest random numbers.
    hits = steps[high_words.double() / 2**32 > 1 / (1 + tail)]
    assert abs(len(hits) - num_draws * tail) < 4 * math.sqrt(num_draws * tail)
    seeds = torch.full_like(hits, seed)
    tokens = sample(logits.expand(len(hits), -1), seeds=seeds, steps=hits).tokens
    assert (tokens > 0).all()
    assert len(set(tokens.tolist())) > 0.9 * len(hits)
    others = steps[:20][high_words[:20].double() / 2**32 < 0.999]
    seeds = torch.full_like(others, seed)
    assert (sample(logits.expand(len(others), -1), seeds=seeds, steps=others).tokens == 0).all()


def test_flush_to_zero_hardware_gives_the_same():
    logits = random_logits(8, 200) * 1e-38
    arguments = {"guidance_scale": 3.0, "temperature": 1e-38, "seeds": torch.arange(8), "steps": 0}
    uncond = random_logits(8, 200, seed=3) * 1e-38
    expected = sample(logits, uncond, **arguments)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        found = sample(logits, uncond, **arguments)
    finally:
        torch.set_flush_denormal(False)
    assert_rows_equal(expected, found)


def test_prepared_parameters_can_be_joined():
    logits = random_logits(2, 40)
    parts = [SamplingParams.prepare(1, temperature=0.5), SamplingParams.prepare(1, top_k=3)]
    seeds, steps = torch.tensor([1, 2]), torch.tensor([0, 0])
    joined = sample_prepared(
        logits, params=SamplingParams.concatenate(parts), seeds=seeds, steps=steps
    )
    direct = sample(
        logits, temperature=torch.tensor([0.5, 1]), top_k=torch.tensor([0, 3]), seeds=seeds, steps=0
    )
    assert_rows_equal(direct, joined)


def test_repeated_settings_are_read_anew_where_they_may_have_changed():
    logits = random_logits(4, 300)

    def kept(**settings) -> list[int]:
        return sample(logits, seeds=1, steps=0, **settings).num_kept.tolist()

    temperature, scales = torch.ones(4), [torch.ones(4)]
    before = kept(temperature=temperature, top_p=0.9)
    assert before == kept(temperature=1.0, top_p=0.9) == kept(temperature=1, top_p=0.9)
    temperature.fill_(0.2)
    assert kept(temperature=temperature, top_p=0.9) == kept(temperature=0.2, top_p=0.9) != before
    assert kept(guidance_scale=scales, top_p=0.9) == before
    with torch.inference_mode():
        inside = kept(temperature=0.7, top_p=0.8)
    assert kept(temperature=0.7, top_p=0.8) == inside
    two = sample(logits[:2], seeds=1, steps=0, temperature=0.7, top_p=0.8)
    assert two.num_kept.tolist() == inside[:2]
    for _ in range(2):
        with pytest.raises(ValueError, match="top_p is -1"):
            kept(top_p=-1)


def test_an_empty_batch_gives_an_empty_result():
    assert sample(torch.zeros(0, 5), seeds=0, steps=0).tokens.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "whole number"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"guidance_scale": 2.0}, "needs? the unconditional"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
        ({"top_k": torch.tensor([1, 2, 3])}, "must be a number or have 2 rows"),
        ({"allowed": (3, 3)}, "empty or outside"),
        ({"allowed": (0, 11)}, "empty or outside"),
        ({"allowed": torch.ones(3, dtype=torch.bool)}, "allowed is"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, "seeds is"),
        ({"order": "alphabetical"}, "order is"),
        ({"backend": "abacus"}, "backend is"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 10), **({"seeds": 0, "steps": 0} | arguments))


def test_logits_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="float32"):
        sample(torch.zeros(2, 3, dtype=torch.int64), seeds=0, steps=0)
    with pytest.raises(ValueError, match="524287"):
        sample(torch.zeros(1, 2**19), seeds=0, steps=0)


def test_the_triton_backend_says_what_it_cannot_do(monkeypatch):
    arguments = {"seeds": 0, "steps": 0, "backend": "triton"}
    with pytest.raises(ValueError, match="need CUDA tensors"):
        sample(torch.zeros(1, 9), **arguments)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("mmfast.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="comes with CUDA builds of torch"):
        sample(torch.zeros(1, 9), **arguments)
