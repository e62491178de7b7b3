"""The native sampler against the reference: the same numbers for every configuration.

Configurations are drawn at random, with the cases that tend to go wrong made frequent: ties, logits that
are NaN or infinite, rows of one value, filters at their limits, 16-bit formats, distant rows.
"""

import dataclasses
import multiprocessing

import pytest
import torch

from mmfast.sampling import SampleOutput, SamplingParams, sample_prepared

NUM_CONFIGURATIONS = 800
LARGEST = 30_000


class Draws:
    """Random choices of one configuration."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, end: int, start: int = 0) -> int:
        return int(torch.randint(start, end, (1,), generator=self.generator))

    def one_of(self, values):
        return values[self.below(len(values))]

    def per_row(self, values, num_rows: int) -> torch.Tensor:
        drawn = [self.one_of(values) for _ in range(num_rows)]
        return torch.tensor(drawn, dtype=torch.float64)

    def chance(self, shape, probability: float) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator) < probability

    def logits(self, num_rows: int, num_ids: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, N], its rows further apart than they are long."""
        shape = (num_rows, num_ids + self.below(5))
        logits = torch.randn(shape, generator=self.generator) * self.one_of((0.01, 1, 4, 20))
        match self.one_of(("smooth", "smooth", "tied", "holes", "broken", "constant")):
            case "tied":
                logits = logits.round()
            case "holes":
                logits[self.chance(shape, 0.1)] = -torch.inf
            case "broken":
                logits[self.chance(shape, 0.02)] = torch.nan
                if self.below(3) == 0:
                    logits[self.chance(shape, 0.01)] = torch.inf
            case "constant":
                logits[:] = self.one_of((-torch.inf, torch.nan, 0.0, 1e-40, -1e30))
        return logits.to(dtype)[:, :num_ids]


def configuration(seed: int) -> tuple[tuple, dict]:
    """Arguments of `sample_prepared`."""
    draws = Draws(seed)
    num_rows = draws.below(5, 1)
    smallest, end = draws.one_of(((1, 40), (40, 600), (600, 3_000)))
    num_ids = LARGEST if seed % 50 == 0 else draws.below(end, smallest)
    dtype = draws.one_of((torch.float32, torch.float16, torch.bfloat16))
    num_streams = draws.one_of((1, 1, 1, 2, 3))
    conditions = [draws.logits(num_rows, num_ids, dtype) for _ in range(num_streams)]
    uncond = None
    if num_streams > 1 or draws.below(2):
        uncond = draws.logits(num_rows, num_ids, dtype)
    scales = [draws.per_row((0, 1, 3, -1, 7.5, 100), num_rows) for _ in range(num_streams)]
    params = SamplingParams.prepare(
        num_rows,
        guidance_scale=1.0 if uncond is None else scales,
        temperature=draws.per_row((0, 1e-6, 0.3, 1, 1, 2, 1e4, torch.inf), num_rows),
        top_k=draws.per_row((0, 0, 1, 2, 5, 50, num_ids // 3 + 1, num_ids, 2_048), num_rows),
        top_p=draws.per_row((1, 1, 0.9, 0.5, 0, 0.1, 0.9999999), num_rows),
        min_p=draws.per_row((0, 0, 0.1, 0.5, 1, 1e-9), num_rows),
        order=draws.one_of(("hf", "vllm")),
        ties=draws.one_of(("index", "keep")),
    )
    low = torch.randint(0, num_ids, (num_rows,), generator=draws.generator)
    high = torch.tensor([draws.below(num_ids + 1, int(start) + 1) for start in low])
    allowed = draws.one_of(
        (
            None,
            (int(low[0]), int(high[0])),
            draws.chance((num_rows, num_ids), 0.5),
            draws.chance((num_ids,), 0.3),
            torch.stack([low, high], dim=1),
        )
    )
    whole = (-(2**63), 2**63 - 1)
    arguments = {
        "params": params,
        "seeds": torch.randint(*whole, (num_rows,), generator=draws.generator),
        "steps": torch.randint(0, 2**40, (num_rows,), generator=draws.generator),
        "streams": conditions[1:],
        "allowed": allowed,
    }
    return (conditions[0], uncond), arguments


def differing_field(first: SampleOutput, second: SampleOutput) -> str | None:
    for field in dataclasses.fields(SampleOutput):
        if not torch.equal(getattr(first, field.name), getattr(second, field.name)):
            return field.name
    return None


def assert_equal_on(seeds: range) -> None:
    for seed in seeds:
        streams, arguments = configuration(seed)
        expected = sample_prepared(*streams, backend="torch", **arguments)
        found = sample_prepared(*streams, backend="rust", **arguments)
        differing = differing_field(expected, found)
        assert differing is None, f"configuration {seed}: {differing}: {expected} {found}"


@pytest.mark.parametrize("part", range(4))
def test_the_native_sampler_draws_what_the_reference_draws(part):
    size = NUM_CONFIGURATIONS // 4
    assert_equal_on(range(part * size, (part + 1) * size))


def test_flushing_subnormals_in_hardware_changes_nothing():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert_equal_on(range(10_000, 10_060))
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def large_batch() -> tuple[tuple, dict]:
    """Eight rows of a real vocabulary's size, with guidance."""
    generator = torch.Generator().manual_seed(3)
    cond, uncond = torch.randn(2, 8, 184_622, generator=generator).unbind()
    cond[:, :4_096] += 3  # likely ids are neighbours, as image ids are
    params = SamplingParams.prepare(8, guidance_scale=3.0, top_k=2_048, top_p=0.9)
    return (cond, uncond), {
        "params": params,
        "seeds": torch.arange(8),
        "steps": torch.zeros(8, dtype=torch.int64),
    }


def test_the_number_of_threads_changes_nothing(threads):
    streams, arguments = large_batch()
    results = []
    for num_threads in (1, 2, 3, 8):
        threads(num_threads)
        results.append(sample_prepared(*streams, backend="rust", **arguments))
    assert all(differing_field(results[0], result) is None for result in results[1:])
    expected = sample_prepared(*streams, backend="torch", **arguments)
    assert differing_field(expected, results[0]) is None


def draw_in_child(connection) -> None:
    streams, arguments = large_batch()
    connection.send(sample_prepared(*streams, backend="rust", **arguments).tokens.tolist())


def test_a_process_may_fork_after_it_has_drawn(threads):
    threads(2)
    streams, arguments = large_batch()
    expected = sample_prepared(*streams, backend="rust", **arguments).tokens.tolist()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # torch's own thread pool does not survive a fork; one thread in the child needs none of it.
    threads(1)
    child = multiprocessing.get_context("fork").Process(target=draw_in_child, args=(sender,))
    child.start()
    assert receiver.poll(120), "the child gave no answer"
    assert receiver.recv() == expected
    child.join()
    assert child.exitcode == 0


def test_the_cpu_uses_the_native_sampler():
    logits = torch.zeros(1, 3)
    arguments = {
        "seeds": torch.zeros(1, dtype=torch.int64),
        "steps": torch.zeros(1, dtype=torch.int64),
    }
    params = SamplingParams.prepare(1)
    with pytest.raises(ValueError, match="needs CPU tensors"):
        sample_prepared(
            logits.to("meta"),
            params=params,
            backend="rust",
            seeds=arguments["seeds"],
            steps=arguments["steps"],
        )
    assert sample_prepared(logits, params=params, **arguments).num_kept.tolist() == [3]
