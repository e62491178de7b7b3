"""The native sampler against the reference: the same numbers for every configuration.

A configuration is one row: its own logits, parameters, rules, seed, step and position, drawn at random, with the
cases that tend to go wrong made frequent: ties, logits that are NaN, infinite or subnormal, rows of one value,
filters at their limits. Rows are checked many in a call; number format, width, streams, and how allowed ids
and history are given differ from call to call, and so do permutations and parts of the batch.
"""

import dataclasses
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmfast.sampling import (
    SampleOutput,
    SamplingParams,
    history_bitmap,
    pack_mask,
    sample,
    sample_prepared,
)

NUM_CALLS, ROWS_PER_CALL = 424, 48
NUM_PARTS = 8
NUM_FLUSHED_CALLS = 32
LARGE_WIDTHS = (30_000, 65_536, 184_622, 282_624)


class Draws:
    """Random choices of one call."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, end: int, start: int = 0) -> int:
        return int(torch.randint(start, end, (1,), generator=self.generator))

    def one_of(self, values):
        return values[self.below(len(values))]

    def indices(self, end: int, num_rows: int) -> torch.Tensor:
        return torch.randint(0, end, (num_rows,), generator=self.generator)

    def per_row(self, values, num_rows: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)[self.indices(len(values), num_rows)]

    def names(self, values, num_rows: int) -> list:
        return [values[i] for i in self.indices(len(values), num_rows)]

    def chance(self, shape, probability: float) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator) < probability

    def integers(self, num_rows: int, low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (num_rows,), generator=self.generator)

    def logits(self, num_rows: int, num_ids: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, N], its rows further apart than they are long, each of another kind."""
        shape = (num_rows, num_ids + self.below(5))
        spreads = self.per_row((0.01, 1, 4, 20, 1e-38, 1e38), num_rows).float()
        logits = torch.randn(shape, generator=self.generator) * spreads[:, None]
        kinds = self.indices(8, num_rows)
        tied = kinds == 0
        logits[tied] = logits[tied].round()
        logits[(kinds == 1)[:, None] & self.chance(shape, 0.1)] = -torch.inf
        logits[(kinds == 2)[:, None] & self.chance(shape, 0.02)] = torch.nan
        logits[(kinds == 3)[:, None] & self.chance(shape, 0.01)] = torch.inf
        constants = self.per_row((-torch.inf, torch.nan, 0.0, 1e-40, -1e30, 2.5), num_rows).float()
        logits = torch.where((kinds == 4)[:, None], constants[:, None], logits)
        return logits.to(dtype)[:, :num_ids]

    def params(
        self, num_rows: int, num_ids: int, num_streams: int, *, guided: bool
    ) -> SamplingParams:
        """Every parameter of every row on or off."""
        scales = [self.per_row((0, 1, 1, 3, -1, 7.5, 100), num_rows) for _ in range(num_streams)]
        top_k = self.per_row(
            (0, 0, 1, 2, 5, 50, num_ids // 3 + 1, num_ids, num_ids + 7, 2_048, 0.1, 0.5, 0.999),
            num_rows,
        )
        off = self.below(4) == 0
        return SamplingParams.prepare(
            num_rows,
            guidance_scale=scales if guided else 1.0,
            temperature=self.per_row((0, 1e-38, 1e-6, 0.3, 1, 1, 2, 1e4, torch.inf), num_rows),
            top_k=top_k,
            top_p=self.per_row((1, 1, 0.9, 0.5, 0, 0.1, 1e-7, 0.9999999), num_rows),
            min_p=self.per_row((0, 0, 0, 0.1, 0.5, 1, 1e-9), num_rows),
            contrastive_alpha=self.per_row((0, 0, 0.1, 0.5, 1, 40, 1e-9), num_rows)
            if guided
            else 0,
            contrastive_k=self.per_row((1, 2, 3, num_ids // 2 + 1, num_ids + 3), num_rows),
            repetition_penalty=1.0 if off else self.per_row((1, 1.2, 0.5, 1e10, 1e-20), num_rows),
            order=self.names(("hf", "emu3", "vllm", "fourm", "chameleon"), num_rows),
            ties=self.one_of((None, self.names(("index", "keep"), num_rows))),
            top_p_rule=self.one_of((None, self.names(("reach", "exclusive"), num_rows))),
            top_p_base=self.one_of((None, self.names(("survivors", "full"), num_rows))),
            penalty_space=self.one_of((None, self.names(("logits", "logprobs"), num_rows))),
            min_p_first=self.one_of((None, self.chance((num_rows,), 0.5))),
            filter_temperature=self.one_of(
                (None, None, self.per_row((1e-30, 0.5, 1, 9), num_rows))
            ),
            greedy_below=self.one_of((None, None, self.per_row((0, 0.5), num_rows))),
        )

    def allowed(self, num_rows: int, num_ids: int):
        """Ids that exist, in each of the forms that say so."""
        low = self.indices(num_ids, num_rows)
        high = low + 1 + (num_ids - 1 - low) // (1 + self.indices(3, num_rows))
        mask = self.chance((num_rows, num_ids), 0.5)
        return self.one_of(
            (
                None,
                (int(low[0]), int(high[0])),
                torch.stack([low, high], dim=1),
                mask,
                mask[0],
                pack_mask(mask),
                pack_mask(mask[0]),
            )
        )


def call(seed: int, num_rows: int, num_ids: int) -> tuple[tuple, dict]:
    """Arguments of one `sample_prepared`."""
    draws = Draws(seed)
    dtype = draws.one_of((torch.float32, torch.float16, torch.bfloat16))
    num_streams = draws.one_of((1, 1, 1, 2, 3))
    conditions = [draws.logits(num_rows, num_ids, dtype) for _ in range(num_streams)]
    guided = num_streams > 1 or draws.below(3) > 0
    history = torch.randint(-1, num_ids, (num_rows, 1 + num_ids // 4), generator=draws.generator)
    return (conditions[0], draws.logits(num_rows, num_ids, dtype) if guided else None), {
        "params": draws.params(num_rows, num_ids, num_streams, guided=guided),
        "seeds": draws.integers(num_rows, -(2**63), 2**63 - 1),
        "steps": draws.integers(num_rows, 0, 2**40),
        "positions": draws.one_of((None, draws.integers(num_rows, 0, 2**32))),
        "num_draws": draws.one_of((None, None, 1, 3)),
        "streams": conditions[1:],
        "allowed": draws.allowed(num_rows, num_ids),
        "history": draws.one_of((history, history_bitmap(history, num_ids))),
        "exempt": draws.one_of(((), ((0, num_ids // 2),))),
    }


def rows_of(arguments: tuple[tuple, dict], rows: torch.Tensor) -> tuple[tuple, dict]:
    """The same call about these rows only."""
    streams, keywords = arguments
    num_rows = streams[0].shape[0]

    def part(value):
        if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == num_rows:
            return value[rows]
        return value

    params = keywords["params"]
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    guidance = fields.pop("guidance")
    params = SamplingParams(guidance=guidance[:, rows], **{k: part(v) for k, v in fields.items()})
    fixed = {"params": params, "streams": [part(stream) for stream in keywords["streams"]]}
    allowed = keywords.get("allowed")
    if isinstance(allowed, torch.Tensor) and allowed.dim() == 1:
        fixed["allowed"] = allowed  # for all rows, however many ids there are
    return tuple(map(part, streams)), {k: part(v) for k, v in keywords.items()} | fixed


def differing_field(first: SampleOutput, second: SampleOutput) -> str | None:
    for field, a, b in zip(SampleOutput._fields, first, second, strict=True):
        if not torch.equal(a, b):
            return field
    return None


def draw(arguments: tuple[tuple, dict], backend: str) -> SampleOutput:
    return sample_prepared(*arguments[0], backend=backend, **arguments[1])


def check(seed: int, num_rows: int, num_ids: int) -> int:
    """Holds one call against the reference, and a shuffled part of it against the call; counts its rows."""
    arguments = call(seed, num_rows, num_ids)
    expected, found = draw(arguments, "torch"), draw(arguments, "rust")
    differing = differing_field(expected, found)
    assert differing is None, f"call {seed}, width {num_ids}: {differing}: {expected} {found}"
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(num_rows, generator=generator)[: 1 + seed % num_rows]
    part = draw(rows_of(arguments, rows), "rust")
    for field, whole, some in zip(SampleOutput._fields, found, part, strict=True):
        assert torch.equal(whole[rows], some), f"call {seed}: rows {rows}: {field}"
    return num_rows


def check_small(calls: range) -> int:
    num_rows = 0
    for seed in calls:
        draws = Draws(~seed)
        smallest, end = draws.one_of(((1, 4), (1, 40), (1, 40), (40, 200), (200, 500)))
        num_rows += check(seed, ROWS_PER_CALL, draws.below(end, smallest))
    return num_rows


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_the_native_sampler_draws_what_the_reference_draws(part):
    size = NUM_CALLS // NUM_PARTS
    # eight parts of this size: 20,352 configurations
    assert check_small(range(part * size, (part + 1) * size)) == 2_544


@pytest.mark.parametrize("width", [1_500, 4_000, 9_000, *LARGE_WIDTHS])
def test_wide_rows_are_drawn_as_the_reference_draws_them(width):
    for seed in range(3):
        check(50_000 + width + seed, 12 if width < 10_000 else 3, width)


def test_flushing_subnormals_in_hardware_changes_nothing():
    seeds = range(10_000, 10_000 + NUM_FLUSHED_CALLS)
    calls = [call(seed, ROWS_PER_CALL, 1 + seed % 97) for seed in seeds]
    expected = [draw(arguments, "torch") for arguments in calls]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        found = [[draw(arguments, name) for arguments in calls] for name in ("torch", "rust")]
    finally:
        torch.set_flush_denormal(False)
    for seed, *outputs in zip(seeds, expected, *found, strict=True):
        for output in outputs[1:]:
            differing = differing_field(outputs[0], output)
            assert differing is None, f"call {seed}: {differing}"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def large_batch() -> tuple[tuple, dict]:
    """Nine rows of a real vocabulary's size, with guidance, contrast, and filters of every kind."""
    generator = torch.Generator().manual_seed(3)
    cond, uncond = torch.randn(2, 9, 184_622, generator=generator).unbind()
    cond[:, :4_096] += 3  # likely ids are neighbours, as image ids are
    params = SamplingParams.prepare(
        9,
        guidance_scale=3.0,
        top_k=torch.tensor([2_048, 2_048, 0, 0, 50, 0, 2_048, 90_000, 300]),
        top_p=torch.tensor([0.9, 0.9, 0.9, 1, 1, 0.99, 0.5, 0.9, 1]).double(),
        min_p=torch.tensor([0, 0.001, 0, 0.01, 0, 0, 0, 0, 0]).double(),
        contrastive_alpha=torch.tensor([0, 0, 0, 0, 0, 0, 0.01, 0, 0]).double(),
        contrastive_k=500,
        repetition_penalty=torch.tensor([1, 1, 1, 1, 1, 1.3, 1, 1, 1.1]).double(),
    )
    return (cond, uncond), {
        "params": params,
        "seeds": torch.arange(9),
        "steps": torch.zeros(9, dtype=torch.int64),
        "streams": (),
        "history": torch.arange(0, 184_622, 7).expand(9, -1).contiguous(),
    }


def test_the_number_of_threads_changes_nothing(threads):
    arguments = large_batch()
    threads(1)
    whole = draw(arguments, "rust")
    assert differing_field(draw(arguments, "torch"), whole) is None
    for num_threads, num_rows in ((2, 9), (3, 9), (8, 9), (2, 1), (5, 1), (4, 3), (7, 5)):
        threads(num_threads)
        rows = torch.arange(9 - num_rows, 9)
        part = draw(rows_of(arguments, rows), "rust")
        for all_rows, some in zip(whole, part, strict=True):
            assert torch.equal(all_rows[rows], some)


@pytest.fixture
def drawing(threads):
    """Draws on two threads. No operator of torch works on them for long, as its own do not survive a fork."""
    threads(2)
    cond, uncond = torch.randn(2, 3, 100_000, generator=torch.Generator().manual_seed(5)).unbind()
    counts = torch.arange(3)
    params = SamplingParams.prepare(3, guidance_scale=3.0, top_k=200, top_p=0.9)

    def tokens() -> list[int]:
        return sample_prepared(
            cond, uncond, params=params, seeds=counts, steps=counts
        ).tokens.tolist()

    return tokens


def test_processes_forked_amid_draws_draw_on_threads_of_their_own(drawing):
    expected = drawing()
    stopped = threading.Event()

    def keep_drawing() -> None:
        while not stopped.is_set():
            assert drawing() == expected

    def draw_in_child(connection) -> None:
        connection.send([drawing() for _ in range(3)])

    # one of these has the native threads in most moments, and a child inherits that state
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(keep_drawing) for _ in range(2)]
        try:
            for _ in range(5):
                receiver, sender = multiprocessing.Pipe(duplex=False)
                context = multiprocessing.get_context("fork")
                child = context.Process(target=draw_in_child, args=(sender,))
                child.start()
                assert receiver.poll(120), "the child gave no answer"
                assert receiver.recv() == [expected] * 3
                child.join()
                assert child.exitcode == 0
        finally:
            stopped.set()
        for future in busy:
            future.result()


def test_the_cpu_uses_the_native_sampler():
    logits = torch.zeros(1, 3)
    arguments = {
        "seeds": torch.zeros(1, dtype=torch.int64),
        "steps": torch.zeros(1, dtype=torch.int64),
    }
    params = SamplingParams.prepare(1)
    with pytest.raises(ValueError, match="needs CPU tensors"):
        sample_prepared(logits.to("meta"), params=params, backend="rust", **arguments)
    assert sample_prepared(logits, params=params, **arguments).num_kept.tolist() == [3]


def test_the_native_sampler_reads_tensors_however_they_lie():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2, 4, 999, generator=generator)
    counts = torch.arange(8).reshape(4, 2)
    params = SamplingParams.prepare(4, guidance_scale=torch.rand(4, 2)[:, 1], top_k=30)
    arguments = {"params": params, "seeds": counts[:, 1], "steps": counts[:, 0]}
    expected = sample_prepared(*logits, backend="torch", **arguments)
    in_columns = logits.transpose(1, 2).contiguous().transpose(1, 2)
    memory = bytearray(b"\0" + logits.numpy().tobytes())
    odd = torch.frombuffer(memory, dtype=torch.float32, offset=1)
    for cond, uncond in (
        logits,
        in_columns,
        torch.cat([logits, logits], dim=-1)[:, :, :999],
        (torch.nn.Parameter(logits[0]), logits[1].clone().requires_grad_()),
        (logits[0], torch._neg_view(-logits[1])),
        odd.reshape(2, 4, 999),
    ):
        found = sample_prepared(cond, uncond, backend="rust", **arguments)
        assert differing_field(expected, found) is None


def test_a_tensor_without_numbers_of_its_own_is_an_error():
    class Other(torch.Tensor):
        pass

    logits = torch.zeros(2, 9).as_subclass(Other)
    with pytest.raises(ValueError, match="logits cannot be read"):
        sample(logits, seeds=0, steps=0, backend="rust")
