"""Bugs that other engines' users have met, one test each: none of them is here.

Where a bug is of a GPU kernel or of a Gumbel sampler, the test states what its user expected to hold.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.sampling.oracle import SEED, assert_kept, kept, uniforms

from mmfast.sampling import STATUS_EXCLUDED, SamplingParams, sample, sample_prepared
from mmfast.sampling.weights import multiply_high


@pytest.fixture(params=["torch", "auto"])
def backend(request) -> str:
    return request.param


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_top_k_1_is_argmax_even_with_ties(backend):
    """FlashInfer kept all ids equal to the top, so greedy runs differed (mstar-project/mstar #254)."""
    rows = noise(200, 40).round()
    out = sample(rows, top_k=1, seeds=torch.arange(200), steps=0, backend=backend)
    first = (rows == rows.amax(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(out.tokens, first)
    assert out.num_kept.tolist() == [1] * 200


def test_ties_at_the_cut_do_not_widen_the_set(backend):
    """FlashInfer's filters compare values alone and accept every tie (flashinfer PR #3774)."""
    row = torch.zeros(4_000)
    for stages, size in (({"top_k": 50}, 50), ({"top_p": 0.5}, 2_000)):
        out = sample(row[None], seeds=0, steps=0, backend=backend, **stages)
        assert out.num_kept.item() == size


def test_ids_within_1e9_of_each_other_are_ranked(backend):
    """Values within 1e-9 are equal to vLLM's split top-k kernels."""
    row = torch.arange(100).float() * 1e-10
    assert_kept(kept(row, top_k=7), row, top_k=7, backend=backend)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9, 0.999])
def test_a_filter_ends_exactly_on_geometric_rows(backend, ratio):
    """A limit of rounds (18 for top-k, 32 for top-p) leaves vLLM's Triton kernel with a pivot near the answer."""
    row = torch.arange(400) * math.log(ratio)
    for stages in ({"top_k": 5}, {"top_k": 399}, {"top_p": 0.9}, {"top_p": 0.9999}):
        expected = kept(row, **stages)
        out = assert_kept(expected, row, rare=True, backend=backend, **stages)
        assert out.num_kept[0] == len(expected.ids)


def test_every_row_reads_its_own_seed(backend):
    """FlashInfer took a tensor of seeds and read element 0 (flashinfer #2078, PR #4861)."""
    rows = torch.zeros(64, 30_000)
    tokens = sample(rows, seeds=torch.arange(64), steps=0, backend=backend).tokens
    assert len(set(tokens.tolist())) > 60
    same = sample(rows, seeds=torch.full((64,), 5), steps=0, backend=backend).tokens
    assert len(set(same.tolist())) == 1


def test_a_seed_alone_decides_in_any_row(backend):
    """The batch row is a part of FlashInfer's random stream: the same seed elsewhere, another token."""
    rows = torch.zeros(16, 100_000)
    seeds = torch.arange(16)
    tokens = sample(rows, seeds=seeds, steps=3, backend=backend).tokens
    for shift in (1, 5):
        rolled = sample(rows, seeds=seeds.roll(shift), steps=3, backend=backend).tokens
        assert torch.equal(rolled, tokens.roll(shift))


def test_a_replayed_step_moves_on(backend):
    """Random state frozen at graph capture repeated its draws (Megatron-LM #5697, #5791).

    Nothing lives outside the tensors: the same call on a step counter that was counted up in place draws
    anew, and counted back draws the same.
    """
    rows, steps, seeds = torch.zeros(4, 50_000), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    params = SamplingParams.prepare(4)
    drawn = []
    for _ in range(20):
        out = sample_prepared(rows, params=params, seeds=seeds, steps=steps, backend=backend)
        drawn.append(out.tokens)
        steps += 1
    assert len(torch.stack(drawn).unique()) > 70
    steps.zero_()
    again = sample_prepared(rows, params=params, seeds=seeds, steps=steps, backend=backend)
    assert torch.equal(again.tokens, drawn[0])


def test_a_seed_is_not_dropped_and_global_state_is_not_read(backend):
    """SGLang's default path did not hand the seed on to FlashInfer (sglang-omni #415)."""
    rows = torch.zeros(3, 10_000)
    for filters in ({}, {"top_k": 9_000}, {"top_p": 0.9}, {"min_p": 0.5}):
        torch.manual_seed(1)
        first = sample(rows, seeds=11, steps=0, backend=backend, **filters).tokens
        torch.manual_seed(2)
        second = sample(rows, seeds=11, steps=0, backend=backend, **filters).tokens
        other = sample(rows, seeds=12, steps=0, backend=backend, **filters).tokens
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


def test_nan_neither_crashes_nor_repeats(backend):
    """NaN logits read out of bounds, and high temperatures repeated ids, in FlashInfer (vLLM #26859)."""
    row = noise(2_000)
    row[::7] = torch.nan
    steps = torch.arange(300)
    out = sample(
        row.expand(300, -1), temperature=50.0, top_k=1_500, top_p=0.99, seeds=0, steps=steps,
        backend=backend,
    )  # fmt: skip
    assert set(out.status.tolist()) == {STATUS_EXCLUDED}
    assert (out.tokens % 7 != 0).all()
    assert len(set(out.tokens.tolist())) > 250


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 0.01, 0.1])
def test_no_probability_exceeds_one_at_low_temperature(backend, temperature):
    """Contracted multiplications let a softmax exceed 1 (flashinfer PR #5088)."""
    rows = noise(300, 500) * 8
    rows[::3, 1] = rows[::3].amax(-1)
    for filters in ({}, {"top_k": 20, "top_p": 0.95}):
        out = sample(
            rows, temperature=temperature, seeds=torch.arange(300), steps=0, backend=backend,
            **filters,
        )  # fmt: skip
        assert (out.logprobs <= 0).all()
        assert out.logprobs.exp().max() <= 1


@pytest.mark.parametrize("uncond", [-math.inf, math.inf, math.nan])
def test_a_masked_id_is_never_drawn_whatever_is_added(backend, uncond):
    """-inf + inf gave NaN, and NaN an id beyond the vocabulary (vLLM PR #43249)."""
    rows, others = noise(50, 60), noise(50, 60, seed=1)
    rows[:, ::2] = -math.inf
    others[:, ::4] = uncond
    out = sample(rows, others, guidance_scale=3.0, seeds=torch.arange(50), steps=0, backend=backend)
    assert (out.tokens % 2 == 1).all()
    masked = sample(
        others.nan_to_num(), seeds=torch.arange(50), steps=0, backend=backend,
        allowed=torch.arange(60) % 2 == 1,
    )  # fmt: skip
    assert (masked.tokens % 2 == 1).all()


def test_the_ends_of_the_unit_interval(backend):
    """A hash of 0xFFFFFFFF made u = 1, infinite noise, and let masked ids win (SGLang #33423)."""
    numbers = uniforms(SEED, np.arange(1 << 21))
    ends = torch.tensor([int(numbers.argmin()), int(numbers.argmax())])
    row = torch.full((900,), -math.inf)
    row[10:800] = -25.0
    row[[10, 799]] = 0.0
    out = sample(row.expand(2, -1), seeds=SEED, steps=ends, backend=backend)
    assert out.tokens.tolist() == [10, 799]


@pytest.mark.parametrize("mass", [1, 2, 3, 1 << 44, (1 << 63) - 1])
def test_the_largest_random_number_stays_inside_the_mass(mass):
    """As above: a target equal to the mass would fall behind the last id."""
    words = torch.tensor([0, 0xFFFFFFFF])
    target = multiply_high(words, words, torch.tensor([mass, mass]))
    assert target.tolist() == [0, mass - 1]


def test_all_64_random_bits_are_used():
    """A 2^-31 or 2^-24 grid of uniforms never reaches rare ids (vLLM PR #47524, #45996)."""
    mass = torch.tensor([1 << 62])
    low, high = torch.tensor([1 << 31]), torch.tensor([0])
    assert multiply_high(low, high, mass).item() == 1 << 29
    assert multiply_high(torch.tensor([4]), high, mass).item() == 1


def test_half_a_million_equal_ids_are_equally_likely(backend):
    """Truncating a hash to 24 bits shifts frequencies (vLLM PR #51367, z = -5.9).

    Here every id has its own stretch of the unit interval, exact to the last one.
    """
    num_ids = (1 << 19) - 1
    steps = np.arange(12 if backend == "torch" else 300)
    rows = torch.zeros(1, num_ids).expand(len(steps), -1)
    out = sample(rows, seeds=4, steps=torch.from_numpy(steps), backend=backend)
    assert (out.tokens.numpy() == np.floor(uniforms(4, steps) * num_ids)).all()


def test_a_neighbours_top_k_does_not_change_a_token(backend):
    """Noise was keyed by rank where any row of the batch had filters, by id elsewhere (SGLang #35697)."""
    rows = noise(8, 700)
    seeds = torch.arange(8)
    plain = sample(rows, seeds=seeds, steps=0, backend=backend)
    top_k = torch.tensor([0, 5, 0, 700, 0, 1, 800, 0])
    top_p = torch.tensor([1, 1, 1, 1, 1, 0.3, 1, 1])
    mixed = sample(rows, seeds=seeds, steps=0, top_k=top_k, top_p=top_p, backend=backend)
    for row in (0, 2, 3, 4, 6, 7):
        assert mixed.tokens[row] == plain.tokens[row]
        assert mixed.logprobs[row] == plain.logprobs[row]


def test_a_seed_goes_with_min_p(backend):
    """A seed beside min_p failed an assertion (SGLang #33695)."""
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert_kept(kept(row, min_p=0.2), row, min_p=0.2, backend=backend)


def test_top_k_beyond_the_vocabulary(backend):
    """Crashed or was undefined in several engines (CTranslate2 PR #586, onnxruntime-genai PR #2224)."""
    row = noise(20)
    for top_k in (20, 21, 1 << 20, 1 << 33):
        assert_kept(kept(row, top_k=0), row, top_k=top_k, backend=backend)


def test_row_offsets_do_not_wrap_at_32_bits(backend, tmp_path: Path):
    """Offsets in int32 read elsewhere (vLLM PR #46560, #48055, SGLang PR #35571, flashinfer PR #2937).

    15,000 rows of 151,936 ids as one tensor, in a file with holes; the rows on both sides of 2^31 are drawn.
    """
    num_rows, num_ids = 15_000, 151_936
    file = torch.from_file(
        str(tmp_path / "logits"), shared=True, size=num_rows * num_ids, dtype=torch.bfloat16
    ).reshape(num_rows, num_ids)
    border = (1 << 31) // num_ids
    rows = [0, border, border + 1, num_rows - 1]
    for row in rows:
        file[row, 1_000:1_050] = noise(50, seed=row) + 40
    for row in rows:
        one = file[row : row + 1]
        out = sample(one, top_k=20, seeds=row, steps=0, backend=backend)
        again = sample(one.clone(), top_k=20, seeds=row, steps=0, backend=backend)
        assert torch.equal(out.tokens, again.tokens)
        assert 1_000 <= out.tokens.item() < 1_050
    every = file[:: num_rows - 1, 1_000:1_050]
    tokens = sample(every, top_k=1, seeds=0, steps=0, backend=backend).tokens
    assert torch.equal(tokens, every.float().argmax(-1))


def test_bfloat16_does_not_saturate_a_nucleus(backend):
    """A cumulative sum in bfloat16 stops growing over 131k ids (Megatron-LM PR #7182)."""
    row = torch.zeros(131_072, dtype=torch.bfloat16)
    for top_p in (0.25, 0.5, 0.75, 0.96875):
        out = sample(row[None], top_p=top_p, seeds=0, steps=0, backend=backend)
        assert out.num_kept.item() == int(top_p * 131_072)


def test_bfloat16_streams_mix_in_float32(backend):
    """The unconditional log-softmax is bfloat16 in transformers: of top-k 2048, 2,067 ids stay."""
    cond, uncond = noise(8_192, seed=1).bfloat16(), noise(8_192, seed=2).bfloat16()
    out = sample(
        cond[None], uncond[None], guidance_scale=3.0, top_k=2_048, seeds=0, steps=0, backend=backend
    )
    assert out.num_kept.item() == 2_048
    # Exact in float64: differences of bfloat16 numbers, times 3.
    mixed = uncond.double() + 3 * (cond.double() - uncond.double())
    assert out.tokens.item() in mixed.topk(2_048).indices.tolist()
