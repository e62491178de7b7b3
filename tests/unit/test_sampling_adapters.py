"""`SampleProcessor` in transformers' `generate`."""

import pytest
import torch
import transformers

from mmfast.sampling import SampleProcessor, nested_guidance, sample

VOCABULARY_SIZE, STEPS = 97, 8
PARAMETERS = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}
PROMPTS = torch.tensor([[5, 6, 7], [11, 12, 13], [21, 22, 23]])
UNCONDITIONAL = torch.tensor([[1, 1, 1]])


SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.4,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


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


ARCHITECTURES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=32,
            initializer_range=0.4, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16)
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCABULARY_SIZE, hidden_size=32, ffn_dim=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=32, word_embed_proj_dim=32,
            init_std=0.4, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=VOCABULARY_SIZE, hidden_size=32, num_hidden_layers=1, state_size=4,
            initializer_range=0.4, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_causal_model_draws_both_rows_of_a_pair_alike(name):
    torch.manual_seed(1)
    model = ARCHITECTURES[name]().eval()
    seeds = torch.tensor([3, 4, 5])
    others = UNCONDITIONAL.expand(3, -1)
    processor = SampleProcessor(
        prompt_length=3, seeds=seeds, pairs="halves", guidance_scale=2.0, **PARAMETERS
    )
    cond, uncond = generate(model, torch.cat([PROMPTS, others]), processor).chunk(2)
    assert torch.equal(cond, uncond)
    expected = by_hand(
        model, PROMPTS, seeds, unconditional=others, guidance_scale=2.0, **PARAMETERS
    )
    assert torch.equal(cond, expected)


def test_every_parameter_may_differ_by_row(model):
    seeds = torch.arange(3)
    parameters = {
        "temperature": torch.tensor([0.0, 0.7, 1.5]),
        "top_k": torch.tensor([0, 20, 5]),
        "top_p": torch.tensor([1.0, 0.9, 0.5]),
        "min_p": torch.tensor([0.0, 0.05, 0.0]),
        "order": ["hf", "vllm", "fourm"],
    }
    found = generate(model, PROMPTS, SampleProcessor(prompt_length=3, seeds=seeds, **parameters))
    for row in range(3):
        own = {name: values[row] for name, values in parameters.items()}
        alone = SampleProcessor(prompt_length=3, seeds=row, **own)
        assert torch.equal(found[row : row + 1], generate(model, PROMPTS[row : row + 1], alone))
    greedy = generate(
        model, PROMPTS[:1], SampleProcessor(prompt_length=3, seeds=9, temperature=0.0)
    )
    assert torch.equal(found[:1], greedy)


def test_three_streams_share_a_batch(model):
    """Chameleon's nested guidance: the image alone from nothing, the full prompt from the image alone."""
    full, image = PROMPTS, PROMPTS.flip(1)
    nothing = UNCONDITIONAL.expand(3, -1)
    scales = nested_guidance(1.2, 3.0)
    seeds = torch.arange(3)
    for pairs, prompts in (
        ("halves", torch.cat([image, full, nothing])),
        ("alternating", torch.stack([image, full, nothing], 1).flatten(0, 1)),
    ):
        processor = SampleProcessor(
            prompt_length=3, seeds=seeds, pairs=pairs, guidance_scale=scales, temperature=0.7
        )
        found = generate(model, prompts, processor)
        parts = found.chunk(3) if pairs == "halves" else [found[part::3] for part in range(3)]
        assert torch.equal(parts[0], parts[1])
        assert torch.equal(parts[0], parts[2])
        expected = three_streams_by_hand(model, image, full, nothing, seeds, scales)
        assert torch.equal(parts[0], expected)


@torch.no_grad()
def three_streams_by_hand(model, image, full, nothing, seeds, scales):
    drawn = []
    for step in range(STEPS):
        first, second, base = (model(ids).logits[:, -1] for ids in (image, full, nothing))
        tokens = sample(
            first, base, streams=[second], guidance_scale=scales, temperature=0.7,
            seeds=seeds, steps=step,
        ).tokens[:, None]  # fmt: skip
        image, full, nothing = (torch.cat([ids, tokens], 1) for ids in (image, full, nothing))
        drawn.append(tokens)
    return torch.cat(drawn, 1)


def test_contrast_and_penalty_inside_generate(model):
    others = UNCONDITIONAL.expand(3, -1)
    processor = SampleProcessor(
        prompt_length=3, seeds=0, pairs="halves", contrastive_alpha=0.1, contrastive_k=3
    )
    both = generate(model, torch.cat([PROMPTS, others]), processor)
    assert torch.equal(both[:3], both[3:])
    assert processor.last.num_kept.max() < VOCABULARY_SIZE

    processor = SampleProcessor(
        prompt_length=3, seeds=0, temperature=0.0, repetition_penalty=1.8, exempt=[(90, 97)]
    )
    found = generate(model, PROMPTS, processor)
    ids = PROMPTS
    for step in range(STEPS):
        with torch.no_grad():
            scores = model(ids).logits[:, -1]
        seen = torch.where(ids < 90, ids, ids[:, :1])
        scores = transformers.RepetitionPenaltyLogitsProcessor(1.8)(seen, scores)
        assert torch.equal(scores.argmax(-1), found[:, step])
        ids = torch.cat([ids, found[:, step, None]], 1)


def test_allowed_ids_may_follow_what_was_read(model):
    """A grammar as a function of the ids: even ones after odd ones, and the other way round."""
    parity = torch.arange(VOCABULARY_SIZE) % 2

    def allowed(ids: torch.Tensor) -> torch.Tensor:
        return parity[None, :] != ids[:, -1:] % 2

    found = generate(model, PROMPTS, SampleProcessor(prompt_length=3, seeds=1, allowed=allowed))
    whole = torch.cat([PROMPTS[:, -1:], found], 1)
    assert (whole[:, 1:] % 2 != whole[:, :-1] % 2).all()
    both = generate(
        model,
        torch.cat([PROMPTS, UNCONDITIONAL.expand(3, -1)]),
        SampleProcessor(
            prompt_length=3, seeds=1, allowed=allowed, pairs="halves", guidance_scale=3.0
        ),
    )
    whole = torch.cat([PROMPTS[:, -1:], both[:3]], 1)
    assert (whole[:, 1:] % 2 != whole[:, :-1] % 2).all()


def test_pairs_end_together(model):
    """The end-of-sequence token is drawn for both rows, so neither goes on alone."""
    prompts = torch.cat([PROMPTS, UNCONDITIONAL.expand(3, -1)])
    processor = SampleProcessor(
        prompt_length=3, seeds=torch.arange(3), pairs="halves", guidance_scale=2.0, allowed=(40, 46)
    )
    found = generate(model, prompts, processor, eos_token_id=43, pad_token_id=0)
    cond, uncond = found.chunk(2)
    assert torch.equal(cond, uncond)
    assert (cond == 0).any()
    ended = (cond == 43).cumsum(1).bool()
    assert ((cond == 0) == (ended & (cond != 43))).all()


def test_transformers_batched_guidance_draws_each_row_for_itself():
    """Why `pairs` exists: without it the rows of a pair drift apart from the first token on."""
    scores = torch.randn(2, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(0))
    guided = transformers.ClassifierFreeGuidanceLogitsProcessor(3.0)(PROMPTS[:1], scores)
    assert guided.shape[0] == 1
    processor = SampleProcessor(prompt_length=3, seeds=0, pairs="halves", guidance_scale=3.0)
    both = processor(PROMPTS[:1].repeat(2, 1), scores)
    assert both.shape == scores.shape
    assert (both.argmax(-1) == processor.last.tokens).all()
    assert (both.isfinite().sum(-1) == 1).all()


def test_prompts_as_embeddings(model):
    """Then `generate` counts ids from nothing, and so does the processor."""
    embeddings = model.get_input_embeddings()(PROMPTS).detach()
    processor = SampleProcessor(prompt_length=0, seeds=torch.arange(3), **PARAMETERS)
    found = model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(PROMPTS),
        max_new_tokens=STEPS,
        do_sample=False,
        logits_processor=[processor],
    )
    assert torch.equal(found, by_hand(model, PROMPTS, torch.arange(3), **PARAMETERS))


def test_what_cannot_be_meant_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="top_p is -1"):
        SampleProcessor(prompt_length=3, seeds=0, top_p=-1.0)
    with pytest.raises(TypeError, match="top_q"):
        SampleProcessor(prompt_length=3, seeds=torch.arange(2), top_q=0.5)
    with pytest.raises(ValueError, match="must be a number or have 2 rows"):
        SampleProcessor(prompt_length=3, seeds=torch.arange(2), top_k=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="4 rows are not groups of 3"):
        SampleProcessor(prompt_length=0, seeds=0, pairs="halves", guidance_scale=(1.0, 2.0))(
            torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 9)
        )
