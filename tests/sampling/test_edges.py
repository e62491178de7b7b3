"""Values at the limits of every parameter and of float32 have defined results on every backend."""

import math
from pathlib import Path

import pytest
import torch
from tests.sampling.oracle import assert_kept, kept

from mmfast.sampling import STATUS_EMPTY, STATUS_EXCLUDED, STATUS_INFINITE, SampleOutput, sample

NAN, INF = math.nan, math.inf
TILE = 1_024


@pytest.fixture(params=["torch", "auto"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def draw(backend):
    """`draw(rows, uncond=None, **arguments)`: the first step of seed 0."""

    def run(rows, uncond=None, **arguments) -> SampleOutput:
        rows, uncond = (
            torch.tensor(value) if isinstance(value, list) else value for value in (rows, uncond)
        )
        return sample(rows, uncond, **{"seeds": 0, "steps": 0, "backend": backend} | arguments)

    return run


def noise(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


FILTERS = ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.0})


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_one_nan_is_left_out_and_noted(backend, filters):
    row = noise(40)
    row[17] = NAN
    for stray in (row, row.clone().index_fill(0, torch.tensor([3]), -INF)):
        usable = torch.where(stray.isnan(), -INF, stray)
        if "temperature" in filters:
            out = sample(stray[None], seeds=0, steps=0, backend=backend, **filters)
            assert out.tokens.item() == usable.argmax()
        else:
            expected = kept(usable, **filters)
            out = assert_kept(expected, stray, rare=True, backend=backend, **filters)
        assert set(out.status.tolist()) == {STATUS_EXCLUDED}


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("value", [NAN, -INF])
def test_a_row_of_nothing_usable_is_empty(draw, value, filters):
    out = draw([[value] * 9, [0.0] * 9], **filters)
    assert out.status.tolist() == [STATUS_EXCLUDED | STATUS_EMPTY, 0]
    assert (out.tokens[0], out.num_kept[0], out.logprobs[0]) == (0, 0, -INF)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_infinity_wins_and_the_lowest_of_several(draw, filters):
    out = draw([[0.0, 1.0, INF, 2.0], [INF, 9.0, 1.0, INF], [NAN, -INF, INF, INF]], **filters)
    assert out.tokens.tolist() == [2, 0, 2]
    assert out.num_kept.tolist() == [1, 1, 1]
    assert out.logprobs.tolist() == [0.0, 0.0, 0.0]
    assert out.status.tolist() == [STATUS_INFINITE] * 2 + [STATUS_INFINITE | STATUS_EXCLUDED]


def test_no_allowed_id_gives_the_lowest_of_the_range(draw):
    rows = noise(24).reshape(2, 12)
    nothing = torch.zeros(2, 12, dtype=torch.bool)
    nothing[0, 5] = True
    out = draw(rows, allowed=nothing)
    assert out.status.tolist() == [0, STATUS_EMPTY]
    assert out.tokens.tolist() == [5, 0]
    excluded = draw(torch.full((1, 12), -INF), allowed=(4, 9))
    assert (excluded.tokens.item(), excluded.status.item()) == (4, STATUS_EXCLUDED | STATUS_EMPTY)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_one_allowed_id_is_forced(draw, filters):
    rows = noise(3 * 50).reshape(3, 50)
    ranges = torch.tensor([[0, 1], [20, 21], [49, 50]])
    mask = torch.zeros(3, 50, dtype=torch.bool)
    mask[torch.arange(3), ranges[:, 0]] = True
    for allowed in (ranges, mask):
        out = draw(rows, allowed=allowed, **filters)
        assert out.tokens.tolist() == [0, 20, 49]
        assert out.num_kept.tolist() == [1, 1, 1]
        assert out.logprobs.tolist() == [0.0, 0.0, 0.0]
    assert draw(rows, allowed=(7, 8), **filters).tokens.tolist() == [7, 7, 7]


@pytest.mark.parametrize("ties", ["index", "keep"])
def test_top_k_of_0_1_all_and_more(backend, ties):
    row = noise(90).round()
    for top_k in (0, 1, 89, 90, 91, 2**31, 2**40):
        expected = kept(row, top_k=top_k, ties=ties)
        assert_kept(expected, row, backend=backend, ties=ties, top_k=top_k)


def test_top_k_off_and_all_ids_take_the_same_path(draw):
    rows = noise(6 * 3_000).reshape(6, 3_000)
    seeds = torch.arange(6)
    off = draw(rows, seeds=seeds)
    for same in ({"top_k": 3_000}, {"top_k": 9_999}, {"top_p": 1.0}, {"top_p": 5.0, "min_p": 0.0}):
        other = draw(rows, seeds=seeds, **same)
        assert torch.equal(off.tokens, other.tokens)
        assert torch.equal(off.logprobs, other.logprobs)


def test_top_p_of_0_tiny_and_1(backend, draw):
    row = noise(70)
    for top_p, size in ((0.0, 1), (1e-7, 1), (1e-12, 1), (1.0, 70)):
        out = draw(row[None], top_p=top_p)
        assert out.num_kept.item() == size
        if size == 1:
            assert out.tokens.item() == row.argmax()
    flat = draw(torch.zeros(1, 70), top_p=1e-7)
    assert (flat.tokens.item(), flat.num_kept.item()) == (0, 1)


def test_temperatures_from_0_to_infinity(backend, draw):
    row = noise(33)
    for temperature in (0.0, 1e-45, 1e-30, 1e-6):
        out = draw(row.expand(5, -1), temperature=temperature, steps=torch.arange(5))
        assert out.tokens.tolist() == [row.argmax().item()] * 5
        assert out.logprobs.tolist() == [0.0] * 5
    for temperature in (1e4, 1e30, INF):
        # So hot that float32 cannot tell the weights from equal ones by more than 1e-3.
        expected = kept(row, temperature=min(temperature, 1e12))
        assert_kept(expected, row, backend=backend, temperature=temperature)
    near = torch.tensor([0.0, 1e-6, 2e-6])
    assert_kept(kept(near, temperature=1e-6), near, backend=backend, temperature=1e-6)


def test_infinite_temperature_keeps_filters(backend):
    """Weights are equal, so top-k still ranks by logit and top-p counts ids."""
    row = noise(64, 2)
    for stages in ({"top_k": 10}, {"top_p": 0.25}):
        expected = kept(row, temperature=INF, **stages)
        assert len(expected.ids) == (10 if "top_k" in stages else 16)
        assert_kept(expected, row, backend=backend, temperature=INF, **stages)


@pytest.mark.parametrize("scale", [0.0, 1.0, -1.0, 0.5, 100.0])
def test_guidance_at_its_limits(backend, scale):
    """Whole numbers, so that float32 and float64 mix to the same."""
    cond, uncond = noise(60).mul(3).round() / 4, noise(60, 1).mul(3).round() / 4
    mixed = uncond + scale * (cond - uncond)
    temperature = 25.0 if scale == 100 else 1.0
    expected = kept(mixed, temperature=temperature, top_k=20)
    assert_kept(
        expected, cond, uncond, rare=True, guidance_scale=scale, temperature=temperature,
        top_k=20, backend=backend,
    )  # fmt: skip


def test_guidance_reads_no_stream_it_does_not_need(draw):
    row, broken = noise(30)[None], torch.full((1, 30), NAN)
    assert draw(row, broken, guidance_scale=1.0).status.item() == 0
    assert draw(broken, row, guidance_scale=0.0).status.item() == 0
    assert draw(row, broken, guidance_scale=2.0).status.item() == STATUS_EXCLUDED | STATUS_EMPTY


def test_subnormals_and_negative_zero_are_zero(backend):
    zeros = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 2.0**-127, -(2.0**-149), -1.0])
    flat = torch.tensor([0.0] * 6 + [-1.0])
    for stages in ({"top_k": 3}, {"top_p": 0.5}, {"temperature": 1e-38}):
        assert_kept(kept(flat, **stages), zeros, rare=True, backend=backend, **stages)
    greedy = sample(zeros[None, [3, 2, 0]], temperature=0.0, seeds=0, steps=0, backend=backend)
    assert greedy.tokens.item() == 0


def test_logits_of_1e30(backend, draw):
    row = torch.tensor([1e30, -1e30, 1e30, 0.0])
    assert_kept(kept(row), row, rare=True, backend=backend)
    assert_kept(kept(row, top_k=2), row, top_k=2, backend=backend)
    low = draw([[-1e30, -1e30, -2e30]])
    assert low.tokens.item() in (0, 1)
    # A difference beyond float32 counts as +inf, and so does what it is scaled to.
    out = draw([[3e38, -3e38, 0.0]], [[-3e38, 3e38, 0.0]], guidance_scale=2.0)
    assert (out.tokens.item(), out.status.item()) == (0, STATUS_INFINITE | STATUS_EXCLUDED)
    hot = draw([[1e30, 0.0]], temperature=1e30)
    assert hot.num_kept.item() == 2


@pytest.mark.parametrize("size", [1, 2, 31, TILE - 1, TILE, TILE + 1, 3 * TILE + 7, 8_191, 8_193])
def test_any_number_of_ids(backend, size):
    row = noise(size, size) * 0.5
    for stages in ({}, {"top_k": 17}, {"temperature": 0.9, "top_p": 0.4}):
        # Whether the last id is found matters here, not what happens next to p.
        expected = kept(row, **stages)
        assert_kept(expected, row, rare=True, most=60, backend=backend, **stages)
    last = torch.full((1, size), -INF)
    last[0, -1] = 0.0
    assert sample(last, seeds=0, steps=0, backend=backend).tokens.item() == size - 1


def test_no_rows(draw):
    for arguments in ({}, {"top_k": 4}, {"allowed": (2, 5)}, {"temperature": torch.ones(0)}):
        out = draw(torch.zeros(0, 9), **arguments)
        assert [len(field) for field in out] == [0] * len(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_further_apart_than_2_31_elements(draw, dtype, tmp_path: Path):
    """Offsets beyond 32 bits, in a file with holes, so that only a few pages exist."""
    width, distance, num_rows = 300, (1 << 31) + 17, 3
    size = distance * (num_rows - 1) + width
    file = torch.from_file(str(tmp_path / "logits"), shared=True, size=size, dtype=dtype)
    far = file.as_strided((num_rows, width), (distance, 1))
    near = (noise(num_rows * width).reshape(num_rows, width) * 2).to(dtype)
    far.copy_(near)
    for arguments in ({"top_k": 40}, {"top_p": 0.9}, {"allowed": (100, 290)}):
        seeds = torch.arange(num_rows)
        expected, found = (draw(rows, seeds=seeds, **arguments) for rows in (near, far))
        assert torch.equal(expected.tokens, found.tokens)
        assert torch.equal(expected.logprobs, found.logprobs)
        guided = draw(near, far.flip(0), guidance_scale=2.0, seeds=seeds, **arguments)
        again = draw(near, near.flip(0), guidance_scale=2.0, seeds=seeds, **arguments)
        assert torch.equal(guided.tokens, again.tokens)


def test_rows_may_share_memory_or_lie_in_columns(draw):
    flat = noise(500)
    windows = flat.as_strided((20, 100), (13, 1))
    columns = flat[:400].reshape(100, 4).T
    every_other = flat[:400].reshape(2, 200)[:, ::2]
    for view in (windows, columns, every_other, flat[:50].expand(9, -1)):
        seeds = torch.arange(len(view))
        found = draw(view, seeds=seeds, top_p=0.8)
        assert torch.equal(found.tokens, draw(view.contiguous(), seeds=seeds, top_p=0.8).tokens)


def test_contrast_with_values_that_are_none(draw):
    """An id that is NaN or -inf in either stream is out; +inf in the conditional one wins."""
    cond, uncond = noise(40).unsqueeze(0).clone(), noise(40, 1).unsqueeze(0).clone()
    cond[0, 3], cond[0, 4], uncond[0, 5], uncond[0, 6] = NAN, -INF, NAN, -INF
    for alpha, k in ((1e-9, 1), (0.1, 3), (1.0, 40), (100.0, 5)):
        arguments = {"contrastive_alpha": alpha, "contrastive_k": k, "num_draws": 500}
        out = draw(cond, uncond, **arguments)
        assert not {3, 4, 5, 6} & set(out.tokens[0].tolist())
        assert out.status.item() == STATUS_EXCLUDED
        assert 1 <= out.num_kept.item() <= 36
    nothing = draw(cond, torch.full((1, 40), NAN), contrastive_alpha=0.1)
    assert nothing.status.item() == STATUS_EXCLUDED | STATUS_EMPTY
    cond[0, 9] = INF
    certain = draw(cond, uncond, contrastive_alpha=0.1)
    assert (certain.tokens.item(), certain.num_kept.item()) == (9, 1)


def test_contrast_keeps_the_likeliest_and_counts_beyond_the_ids(draw):
    cond, uncond = noise(25)[None], noise(25, 1)[None]
    alone = draw(cond, uncond, contrastive_alpha=1e300, contrastive_k=25)
    assert (alone.tokens.item(), alone.num_kept.item()) == (cond.argmax(), 1)
    every = draw(cond, uncond, contrastive_alpha=1.0, contrastive_k=25)
    more = draw(cond, uncond, contrastive_alpha=1.0, contrastive_k=10**9)
    assert every.num_kept.item() == more.num_kept.item() == 25
    assert torch.equal(every.tokens, more.tokens)
    off = draw(cond, uncond, contrastive_alpha=0.0, guidance_scale=2.0)
    assert torch.equal(off.tokens, draw(cond, uncond, guidance_scale=2.0).tokens)
    forced = draw(cond, uncond, contrastive_alpha=0.5, allowed=(11, 12))
    assert (forced.tokens.item(), forced.logprobs.item()) == (11, 0.0)


def test_penalties_at_their_limits(draw):
    rows = noise(60).reshape(2, 30)
    rows[:, 7], rows[:, 8] = 0.0, -0.0
    every = torch.arange(30).expand(2, -1)
    none = torch.full((2, 4), -1)
    plain = draw(rows, num_draws=50)
    for arguments in (
        {"repetition_penalty": 1.0, "history": every},
        {"repetition_penalty": 1e30, "history": none},
        {"repetition_penalty": 9.0, "history": torch.zeros(2, 0, dtype=torch.int64)},
        {"repetition_penalty": 9.0, "history": every, "exempt": [(0, 30)]},
    ):
        assert torch.equal(draw(rows, num_draws=50, **arguments).tokens, plain.tokens)
    # So strong that of the penalised ids only those at 0 are left beside the others.
    some = torch.arange(20).expand(2, -1)
    strong = draw(rows, repetition_penalty=1e30, history=some, num_draws=2_000)
    scores = torch.where(torch.arange(30) < 20, torch.where(rows < 0, -INF, 0.0), rows)
    likely = scores.softmax(-1) > 0
    for row in range(2):
        assert set(strong.tokens[row].tolist()) <= set(likely[row].nonzero()[:, 0].tolist())
    twice = draw(rows, repetition_penalty=1.5, history=some.repeat(1, 3), num_draws=50)
    once = draw(rows, repetition_penalty=1.5, history=some, num_draws=50)
    assert torch.equal(once.tokens, twice.tokens)


def test_many_draws_of_rows_that_have_no_choice(draw):
    rows = torch.stack([torch.full((5,), NAN), torch.tensor([0, INF, 1, INF, 0]), noise(5)])
    out = draw(rows, num_draws=7, temperature=torch.tensor([1.0, 1.0, 0.0]))
    assert out.tokens.tolist() == [[0] * 7, [1] * 7, [int(rows[2].argmax())] * 7]
    assert out.logprobs.tolist() == [[-INF] * 7, [0.0] * 7, [0.0] * 7]
    assert out.num_kept.tolist() == [0, 1, 1]


def test_positions_run_up_to_32_bits(draw):
    row = torch.zeros(1, 5_000)
    last = (1 << 32) - 1
    ends = torch.tensor([last - 2])
    three = draw(row, num_draws=3, positions=ends).tokens[0].tolist()
    assert three == [draw(row, positions=last - back).tokens.item() for back in (2, 1, 0)]
    assert len({*three, *draw(row, num_draws=3).tokens[0].tolist()}) == 6
