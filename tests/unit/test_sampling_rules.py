"""Contrastive decoding, repetition penalty, published orders and their rules: what each keeps and draws."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmfast.sampling import (
    SamplingParams,
    add_to_history,
    history_bitmap,
    nested_guidance,
    pack_mask,
    sample,
)
from mmfast.sampling.bitmap import Bits

EXPERT = torch.tensor([[3, 2.5, 2, 0.5, -1, -3]])
AMATEUR = torch.tensor([[2, 2.5, 0, 0.5, -2, -1]])


def random_logits(rows: int, width: int, *, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread


def distribution(logits, uncond=None, *, num_draws=300, **arguments) -> dict[int, float]:
    """Probability of every id that comes out in many draws of one row."""
    out = sample(logits, uncond, seeds=1, steps=0, num_draws=num_draws, **arguments)
    return dict(zip(out.tokens[0].tolist(), out.logprobs[0].exp().tolist(), strict=True))


@pytest.mark.parametrize(
    ("k", "alpha", "expected"),
    [
        (1, 0.5, {0: 0.7311, 1: 0.2689}),
        (2, 0.5, {0: 0.2447, 1: 0.0900, 2: 0.6652}),
        (2, 0.1, {0: 0.2245, 1: 0.0826, 2: 0.6103, 3: 0.0826}),
        (3, 1.0, {0: 0.2447, 1: 0.0900, 2: 0.6652}),
    ],
)
def test_contrastive_decoding_gives_the_golden_vectors(k, alpha, expected):
    found = distribution(EXPERT, AMATEUR, contrastive_alpha=alpha, contrastive_k=k)
    assert found.keys() == expected.keys()
    for token, probability in expected.items():
        assert found[token] == pytest.approx(probability, abs=5e-5)


def test_a_contrast_that_nobody_reaches_keeps_the_likeliest():
    assert distribution(EXPERT, AMATEUR, contrastive_alpha=50.0, contrastive_k=3).keys() == {0}
    tied = torch.tensor([[1.0, 4.0, 4.0]])
    assert distribution(tied, torch.zeros(1, 3), contrastive_alpha=2.0).keys() == {1}


def test_contrast_and_guidance_share_a_batch():
    logits, uncond = random_logits(4, 50), random_logits(4, 50, seed=1)
    alpha = torch.tensor([0.0, 0.1, 0.0, 0.3])
    arguments = {"seeds": torch.arange(4), "steps": 0, "guidance_scale": 3.0}
    both = sample(logits, uncond, contrastive_alpha=alpha, contrastive_k=2, **arguments)
    guided = sample(logits, uncond, **arguments)
    contrastive = sample(logits, uncond, contrastive_alpha=0.1, contrastive_k=2, **arguments)
    assert both.tokens[0] == guided.tokens[0]
    assert both.num_kept[0] == 50
    assert both.tokens[1] == contrastive.tokens[1]
    assert both.num_kept[1] == contrastive.num_kept[1]
    assert both.num_kept[3] < 50


def test_the_penalty_is_that_of_transformers():
    logits = random_logits(8, 60)
    seen = torch.randint(0, 60, (8, 20), generator=torch.Generator().manual_seed(1))
    penalised = RepetitionPenaltyLogitsProcessor(1.3)(seen, logits.clone())
    arguments = {"seeds": torch.arange(8), "steps": 0, "top_k": 7}
    expected = sample(penalised, **arguments)
    for history in (seen, history_bitmap(seen, 60)):
        found = sample(logits, repetition_penalty=1.3, history=history, **arguments)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.logprobs, expected.logprobs)


def test_exempt_ids_are_not_penalised():
    logits = random_logits(3, 70, seed=5)
    seen = torch.arange(70).expand(3, 70)
    arguments = {"seeds": 4, "steps": torch.arange(3)}
    mask = torch.zeros(70, dtype=torch.bool)
    mask[33:70] = True
    expected = sample(
        logits, repetition_penalty=1.7, history=seen[:, :33].contiguous(), **arguments
    )
    for exempt in ([(33, 60), (60, 70)], mask, pack_mask(mask)):
        found = sample(logits, repetition_penalty=1.7, history=seen, exempt=exempt, **arguments)
        assert torch.equal(found.logprobs, expected.logprobs)
    # inside a range that does not begin at a word's first id
    part = sample(
        logits, repetition_penalty=1.7, history=seen, exempt=mask, allowed=(5, 40), **arguments
    )
    by_hand = sample(
        logits[:, 5:40].contiguous(),
        repetition_penalty=1.7,
        history=torch.arange(28).expand(3, 28),
        **arguments,
    )
    assert torch.equal(part.tokens, by_hand.tokens + 5)
    assert torch.equal(part.logprobs, by_hand.logprobs)


def test_penalised_log_probabilities_are_those_of_guided_generation():
    cond, uncond = random_logits(5, 40, seed=2), random_logits(5, 40, seed=3)
    seen = torch.randint(0, 40, (5, 9), generator=torch.Generator().manual_seed(0))
    log_cond, log_uncond = cond.double().log_softmax(-1), uncond.double().log_softmax(-1)
    scores = 3.0 * (log_cond - log_uncond) + log_uncond
    scores = RepetitionPenaltyLogitsProcessor(1.5)(seen, scores).log_softmax(-1)
    out = sample(
        cond, uncond, guidance_scale=3.0, repetition_penalty=1.5, history=seen,
        penalty_space="logprobs", seeds=0, steps=0,
    )  # fmt: skip
    expected = scores.gather(1, out.tokens[:, None])[:, 0].float()
    assert torch.allclose(out.logprobs, expected, atol=2e-5)


def test_nested_guidance_is_that_of_chameleon():
    full, image, nothing = (random_logits(6, 80, seed=s) for s in range(3))
    nested = nothing + 1.2 * (image - nothing) + 3.0 * (full - image)
    out = sample(
        image, nothing, streams=[full], guidance_scale=nested_guidance(1.2, 3.0),
        seeds=torch.arange(6), steps=0,
    )  # fmt: skip
    expected = nested.double().log_softmax(-1).gather(1, out.tokens[:, None])[:, 0]
    assert torch.allclose(out.logprobs.double(), expected, atol=1e-5)
    assert nested_guidance(2.0) == (2.0,)
    # equal scales leave the middle stream out, unread
    assert nested_guidance(3.0, 3.0)[0] == 0


@pytest.mark.parametrize(
    ("top_p", "reach", "exclusive"), [(0.5, 1, 2), (0.75, 2, 3), (0.8, 3, 3), (0.0, 1, 1)]
)
def test_the_first_id_that_top_p_drops(top_p, reach, exclusive):
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log2() * math.log(2)
    arguments = {"top_p": top_p, "seeds": 0, "steps": 0}
    assert sample(logits, **arguments).num_kept.item() == reach
    assert sample(logits, top_p_rule="exclusive", **arguments).num_kept.item() == exclusive


def test_top_p_of_the_full_mass_keeps_more_of_what_top_k_left():
    # FlashInfer's "joint" filters: on [.5, .25, .125, .125], top-k 3 and p .8 keep 3 either way,
    # p .6 of the survivors' .875 keeps 2, and so does p .6 of all; p .55 keeps 1 and 2.
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    arguments = {"top_k": 3, "top_p": 0.55, "seeds": 0, "steps": 0}
    assert sample(logits, **arguments).num_kept.item() == 1
    assert sample(logits, top_p_base="full", **arguments).num_kept.item() == 2


def four_m(logits: torch.Tensor, top_k: float, top_p: float, temperature: float) -> torch.Tensor:
    """Probabilities of apple/ml-4m's `top_k_top_p_filtering` and softmax, from its description."""
    logits = logits.double()
    if top_k > 0:
        k = min(int(top_k * logits.shape[-1]) if top_k < 1 else int(top_k), logits.shape[-1])
        logits = logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)
    if top_p > 0:
        ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
        before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(1, ids, before > top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return (logits / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 6.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 0.0), (0.3, 0.9), (0.1, 0.5), (9, 1.0)])
def test_order_fourm_filters_before_the_temperature(temperature, top_k, top_p):
    logits = random_logits(6, 50, seed=8)
    expected = four_m(logits, top_k, top_p, temperature)
    out = sample(
        logits, order="fourm", temperature=temperature, top_k=top_k, top_p=top_p,
        seeds=torch.arange(6), steps=0,
    )  # fmt: skip
    assert out.num_kept.tolist() == (expected > 0).sum(-1).tolist()
    found = expected.gather(1, out.tokens[:, None])[:, 0].log()
    assert torch.allclose(out.logprobs.double(), found, atol=1e-5)


@pytest.mark.parametrize("order", ["emu3", "chameleon"])
def test_orders_on_transformers_processors_keep_their_ties(order):
    logits = random_logits(8, 64, seed=3).round()
    warpers = [TemperatureLogitsWarper(0.7), TopKLogitsWarper(9)]
    scores = LogitsProcessorList(warpers)(None, logits.clone())
    out = sample(logits, order=order, temperature=0.7, top_k=9, seeds=0, steps=0)
    assert torch.equal(out.num_kept, scores.isfinite().sum(-1))
    assert sample(logits, top_k=9, seeds=0, steps=0).num_kept.tolist() == [9] * 8
    scores = TopPLogitsWarper(0.6)(None, logits.clone())
    out = sample(logits, order=order, top_p=0.6, seeds=0, steps=0)
    assert torch.equal(out.num_kept, scores.isfinite().sum(-1))


def test_greedy_thresholds_are_those_of_the_orders():
    near = torch.tensor([[0.0, 1e-3]])
    for order, coldest in {"hf": 0.0, "vllm": 1e-5, "fourm": 1e-10, "emu3": 0.0}.items():
        params = SamplingParams.prepare(
            3, order=order, temperature=torch.tensor([coldest * 0.9, coldest * 1.1, 1.0]).double()
        )
        assert params.greedy.tolist() == [True, coldest == 0.0, False]
    assert SamplingParams.prepare(1, order="fourm", temperature=1e-10).greedy.item()
    assert not SamplingParams.prepare(1, order="vllm", temperature=1e-5).greedy.item()
    assert sample(near, temperature=0.5, greedy_below=0.6, seeds=0, steps=0).tokens.item() == 1


def test_rows_of_one_batch_may_follow_different_orders():
    logits, orders = (
        random_logits(5, 60, seed=6).round(),
        ["hf", "emu3", "vllm", "fourm", "chameleon"],
    )
    arguments = {"temperature": 2.0, "top_k": 11, "top_p": 0.8, "min_p": 0.05}
    together = sample(logits, order=orders, seeds=torch.arange(5), steps=0, **arguments)
    parts = [SamplingParams.prepare(1, order=order, **arguments) for order in orders]
    joined = SamplingParams.concatenate(parts)
    prepared = SamplingParams.prepare(5, order=orders, **arguments)
    assert joined.rule_sets == prepared.rule_sets
    assert torch.equal(joined.rules, prepared.rules)
    for row, order in enumerate(orders):
        alone = sample(logits[row : row + 1], order=order, seeds=row, steps=0, **arguments)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.num_kept[0] == together.num_kept[row]


def test_several_draws_are_those_of_their_positions():
    logits = random_logits(3, 30)
    arguments = {"seeds": torch.arange(3), "steps": 4, "top_p": 0.9}
    positions = torch.tensor([0, 7, 2**32 - 2])
    many = sample(logits, num_draws=5, positions=positions, **arguments)
    assert many.tokens.shape == many.logprobs.shape == (3, 5)
    for draw in range(5):
        one = sample(logits, positions=(positions + draw) % 2**32, **arguments)
        assert torch.equal(one.tokens, many.tokens[:, draw])
        assert torch.equal(one.logprobs, many.logprobs[:, draw])
        assert torch.equal(one.num_kept, many.num_kept)
    assert len(set(map(tuple, many.tokens.T.tolist()))) > 1


def test_a_share_of_the_ids_counts_the_allowed_ones():
    logits = random_logits(2, 100)
    mask = torch.zeros(2, 100, dtype=torch.bool)
    mask[0, 10:30] = True
    mask[1, :70] = True
    arguments = {"top_k": 0.1, "seeds": 0, "steps": 0}
    assert sample(logits, **arguments).num_kept.tolist() == [10, 10]
    for allowed in (mask, pack_mask(mask), torch.tensor([[10, 30], [0, 70]])):
        assert sample(logits, allowed=allowed, **arguments).num_kept.tolist() == [2, 7]
    assert sample(logits, allowed=(3, 8), **arguments).num_kept.tolist() == [1, 1]


def test_bitmaps_say_what_masks_say():
    generator = torch.Generator().manual_seed(0)
    for width in (1, 31, 32, 33, 100):
        mask = torch.rand(3, width, generator=generator) < 0.5
        bits = pack_mask(mask)
        assert bits.shape == (3, -(-width // 32))
        assert bits.dtype == torch.int32
        assert torch.equal(Bits(bits, 0).unpacked(width), mask)
        first = width // 3
        assert torch.equal(Bits(bits, first).unpacked(width - first), mask[:, first:])
        logits = random_logits(3, width, seed=width)
        for packed, plain in ((bits, mask), (bits[0], mask[0])):
            a, b = (
                sample(logits, allowed=allowed, seeds=1, steps=0) for allowed in (packed, plain)
            )
            assert torch.equal(a.tokens, b.tokens)
            assert torch.equal(a.status, b.status)


def test_a_history_grows_by_the_tokens_drawn():
    history = history_bitmap(torch.tensor([[3, -1], [63, 64]]), 100)
    add_to_history(history, torch.tensor([31, 63]))
    add_to_history(history, torch.tensor([3, 99]))
    expected = history_bitmap(torch.tensor([[3, 31, -1], [63, 64, 99]]), 100)
    assert torch.equal(history, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contrastive_alpha": 0.1}, "need the unconditional"),
        ({"contrastive_alpha": -0.1}, "contrastive_alpha is -0.1"),
        ({"contrastive_k": 0}, "contrastive_k is 0"),
        ({"contrastive_k": 1.5}, "whole number"),
        ({"repetition_penalty": 1.2}, "needs the `history`"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        (
            {"repetition_penalty": 1.2, "history": torch.zeros(2, 9, dtype=torch.int32)},
            "history is",
        ),
        ({"repetition_penalty": 1.2, "history": torch.full((2, 1), 10)}, "holds id 10"),
        (
            {"repetition_penalty": 1.2, "history": torch.zeros(2, 1).long(), "exempt": [(5, 11)]},
            "outside of 0..10",
        ),
        ({"order": ["hf", "hf", "vllm"]}, "order has 3 names"),
        ({"ties": "random"}, "ties is 'random'"),
        ({"top_p_rule": "until"}, "top_p_rule is"),
        ({"top_p_base": ["full", "empty"]}, "top_p_base is 'empty'"),
        ({"penalty_space": "nats"}, "penalty_space is"),
        ({"filter_temperature": 0.0}, "filter_temperature is 0"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, "positions is"),
        ({"allowed": torch.zeros(2, dtype=torch.int32)}, "allowed is"),
    ],
)
def test_bad_rules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 10), **({"seeds": 0, "steps": 0} | arguments))
