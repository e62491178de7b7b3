"""`SampleProcessor` in transformers' `generate`, and the stand-in for `torch.multinomial`."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmfast.sampling import SampleProcessor, multinomial, sample

VOCABULARY_SIZE, STEPS = 97, 8
PARAMETERS = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}
PROMPTS = torch.tensor([[5, 6, 7], [11, 12, 13], [21, 22, 23]])
UNCONDITIONAL = torch.tensor([[1, 1, 1]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def generate(model, prompts, processor, **arguments):
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=STEPS,
        logits_processor=[processor],
        **{"do_sample": False, **arguments},
    )
    return ids[:, prompts.shape[1] :]


@torch.no_grad()
def by_hand(model, prompts, seeds, *, unconditional=None, **parameters):
    """The same without a cache, a processor or `generate`."""
    ids, others = prompts, unconditional
    drawn = []
    for step in range(STEPS):
        uncond = None if others is None else model(others).logits[:, -1]
        tokens = sample(
            model(ids).logits[:, -1], uncond, seeds=seeds, steps=step, **parameters
        ).tokens
        drawn.append(tokens)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        others = None if others is None else torch.cat([others, tokens[:, None]], dim=1)
    return torch.stack(drawn, dim=1)


@pytest.mark.parametrize("do_sample", [False, True])
def test_generate_draws_what_a_loop_over_sample_draws(model, do_sample):
    seeds = torch.tensor([3, 4, -5])
    processor = SampleProcessor(prompt_length=3, seeds=seeds, allowed=(10, 80), **PARAMETERS)
    found = generate(model, PROMPTS, processor, do_sample=do_sample)
    expected = by_hand(model, PROMPTS, seeds, allowed=(10, 80), **PARAMETERS)
    assert torch.equal(found, expected)
    assert ((found >= 10) & (found < 80)).all()
    assert processor.last.tokens.tolist() == expected[:, -1].tolist()


@pytest.mark.parametrize("pairs", ["halves", "alternating"])
def test_both_rows_of_a_pair_get_the_guided_token(model, pairs):
    seeds = torch.tensor([3, 4, 5])
    others = UNCONDITIONAL.expand(3, -1)
    if pairs == "halves":
        prompts = torch.cat([PROMPTS, others])
    else:
        prompts = torch.stack([PROMPTS, others], dim=1).flatten(0, 1)
    scale = torch.tensor([3.0, 1.5, 0.5])
    processor = SampleProcessor(
        prompt_length=3, seeds=seeds, pairs=pairs, guidance_scale=scale, **PARAMETERS
    )
    found = generate(model, prompts, processor)
    cond, uncond = found.chunk(2) if pairs == "halves" else (found[0::2], found[1::2])
    assert torch.equal(cond, uncond)
    expected = by_hand(
        model, PROMPTS, seeds, unconditional=others, guidance_scale=scale, **PARAMETERS
    )
    assert torch.equal(cond, expected)
    assert not torch.equal(cond, by_hand(model, PROMPTS, seeds, **PARAMETERS))


def test_a_request_is_drawn_alike_in_any_batch(model):
    whole = generate(model, PROMPTS, SampleProcessor(prompt_length=3, seeds=torch.arange(3)))
    alone = generate(model, PROMPTS[1:2], SampleProcessor(prompt_length=3, seeds=1))
    assert torch.equal(whole[1:2], alone)


def test_what_cannot_be_meant_is_refused(model):
    with pytest.raises(ValueError, match="pairs"):
        SampleProcessor(prompt_length=3, seeds=0, guidance_scale=3.0)
    with pytest.raises(ValueError, match="pairs is 'both'"):
        SampleProcessor(prompt_length=3, seeds=0, pairs="both")
    with pytest.raises(ValueError, match="3 rows are not pairs"):
        generate(model, PROMPTS, SampleProcessor(prompt_length=3, seeds=0, pairs="halves"))
    with pytest.raises(ValueError, match="fewer than prompt_length 9"):
        generate(model, PROMPTS, SampleProcessor(prompt_length=9, seeds=0))
    with pytest.raises(ValueError, match="as many seeds"):
        generate(model, PROMPTS, SampleProcessor(prompt_length=3, seeds=torch.arange(2)))


def test_multinomial_draws_in_proportion():
    probabilities = torch.tensor([[1.0, 0.0, 3.0, 4.0]]).expand(40_000, -1)
    drawn = multinomial(probabilities, seeds=7, steps=torch.arange(40_000))
    assert drawn.shape == (40_000, 1)
    counts = drawn.flatten().bincount(minlength=4)
    assert counts[1] == 0
    # Within four standard deviations of a fixed seed's expectation.
    expected = torch.tensor([5_000.0, 0.0, 15_000.0, 20_000.0])
    assert ((counts - expected).abs() <= 4 * expected.sqrt()).all()


def test_multinomial_refuses_what_is_no_distribution():
    for row in ([0.0, 0.0], [1.0, -0.5], [torch.nan, torch.nan]):
        with pytest.raises(ValueError, match="entry above 0"):
            multinomial(torch.tensor([row]), seeds=0, steps=0)
