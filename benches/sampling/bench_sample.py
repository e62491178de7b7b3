"""Guided sampling of image ids on the CPU beside transformers' processors and the best recipe in plain torch.

One step of eight requests over Emu3's vocabulary: 184,622 ids of which the last 32,768 are visual, two streams
of float32 logits, guidance 3, top-k 2048, top-p 0.9. Every contender gives one token a request, on one thread
unless its name says otherwise. What a second thread can bring at most is shown by two processes, each of which
draws half of the rows: they share nothing but a flag. Processors are transformers' own; what its `generate` does
around them is left out. The recipe in torch filters by top-p only what top-k has left, which is the cheapest exact way
known in eager torch.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ClassifierFreeGuidanceLogitsProcessor,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmfast.sampling import SamplingParams, sample, sample_prepared

NUM_ROWS, NUM_IDS = 8, 184_622
VISUAL = (151_854, 184_622)
SCALE, TOP_K, TOP_P = 3.0, 2_048, 0.9
PATIENCE = 0.0005
"""Seconds for which the other process looks out for its flag without a pause."""
NO_IDS = torch.zeros(NUM_ROWS, 0, dtype=torch.int64)

GUIDED = pytest.mark.benchmark(group="sample, 8 rows of 184,622 ids, guided, k 2048, p 0.9")
RANGE = pytest.mark.benchmark(group="sample, 8 rows, 32,768 of the ids allowed")
FILTERS = pytest.mark.benchmark(group="sample, 8 rows of 184,622 ids, other filters")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    return some_logits()


def some_logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Conditional and unconditional [8, 184622]: alike, visual ids above the others, some far above."""
    generator = torch.Generator().manual_seed(0)
    shared, cond, uncond = torch.randn(3, NUM_ROWS, NUM_IDS, generator=generator)
    shared[:, VISUAL[0] :] += 3
    shared[:, VISUAL[0] + 5_000 : VISUAL[0] + 7_000] += 3
    return shared * 1.5 + cond * 0.3, shared * 1.5 + uncond * 0.3


def prepared(num_rows: int = NUM_ROWS, **arguments: float) -> Callable[..., torch.Tensor]:
    """Our sampler with parameters derived beforehand, as a loop would have them."""
    arguments = {"guidance_scale": SCALE, "top_k": TOP_K, "top_p": TOP_P} | arguments
    params = SamplingParams.prepare(num_rows, **arguments)
    seeds, steps = torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int64)

    def draw(cond, uncond, **options) -> torch.Tensor:
        return sample_prepared(
            cond, uncond, params=params, seeds=seeds, steps=steps, backend="rust", **options
        ).tokens

    return draw


def in_torch(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    values, ids = torch.lerp(uncond, cond, SCALE).topk(TOP_K)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    drawn = probabilities.masked_fill(before >= TOP_P, 0.0).multinomial(1)
    return ids.gather(1, drawn)[:, 0]


def by_processors(guide: Callable, *warpers: Callable) -> Callable[..., torch.Tensor]:
    chain = LogitsProcessorList(warpers)

    def draw(cond, uncond) -> torch.Tensor:
        scores = chain(NO_IDS, guide(cond, uncond))
        return scores.softmax(-1).multinomial(1)[:, 0]

    return draw


def guide_logits(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """`ClassifierFreeGuidanceLogitsProcessor`, which takes both halves of a batch."""
    return ClassifierFreeGuidanceLogitsProcessor(SCALE)(NO_IDS, torch.cat([cond, uncond]))


def guide_log_probabilities(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """What `UnbatchedClassifierFreeGuidanceLogitsProcessor` does after its second forward pass."""
    scores, others = cond.log_softmax(-1), uncond.log_softmax(-1)
    return SCALE * (scores - others) + others


WARPERS = (TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P))


@GUIDED
def test_guided_mmfast(measure, logits) -> None:
    draw = prepared()
    scores = LogitsProcessorList(WARPERS)(NO_IDS, guide_logits(*logits))
    arguments = {"guidance_scale": SCALE, "top_k": TOP_K, "top_p": TOP_P, "ties": "keep"}
    num_kept = sample(*logits, seeds=0, steps=0, **arguments).num_kept
    # Nothing is timed that does not keep the same ids; float32 sums of theirs may be off by one id.
    assert (scores.isfinite().sum(-1) - num_kept).abs().max() <= 1
    measure("mmfast sample_prepared", lambda: draw(*logits), NUM_ROWS, "rows", rounds=40)


@GUIDED
def test_guided_mmfast_call(measure, logits) -> None:
    def draw() -> torch.Tensor:
        return sample(
            *logits, guidance_scale=SCALE, top_k=TOP_K, top_p=TOP_P, seeds=1, steps=0
        ).tokens

    measure("mmfast sample", draw, NUM_ROWS, "rows", rounds=40)


@GUIDED
def test_guided_mmfast_bfloat16(measure, logits) -> None:
    draw = prepared()
    half = [stream.bfloat16() for stream in logits]
    measure("mmfast sample_prepared, bfloat16", lambda: draw(*half), NUM_ROWS, "rows", rounds=40)


@GUIDED
def test_guided_torch(measure, logits) -> None:
    measure("torch lerp, topk, multinomial", lambda: in_torch(*logits), NUM_ROWS, "rows", rounds=15)


@GUIDED
def test_guided_processors(measure, logits) -> None:
    draw = by_processors(guide_logits, *WARPERS)
    measure("transformers, guided logits", lambda: draw(*logits), NUM_ROWS, "rows")


@GUIDED
def test_guided_processors_of_log_probabilities(measure, logits) -> None:
    draw = by_processors(guide_log_probabilities, *WARPERS)
    measure("transformers, guided log-probabilities", lambda: draw(*logits), NUM_ROWS, "rows")


@RANGE
def test_range_mmfast(measure, logits) -> None:
    draw = prepared()
    measure(
        "mmfast, range allowed",
        lambda: draw(*logits, allowed=VISUAL),
        NUM_ROWS,
        "rows",
        beside=lambda: draw(*logits),
        rounds=60,
    )


@RANGE
def test_range_mmfast_all(measure, logits) -> None:
    draw = prepared()
    measure("mmfast, all ids allowed", lambda: draw(*logits), NUM_ROWS, "rows", rounds=40)


@RANGE
def test_range_torch(measure, logits) -> None:
    some = [stream[:, VISUAL[0] : VISUAL[1]].contiguous() for stream in logits]
    measure("torch recipe, range cut out", lambda: in_torch(*some), NUM_ROWS, "rows", rounds=15)


@pytest.mark.parametrize("num_rows", [8, 1])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads(benchmark, measure, logits, num_threads, num_rows) -> None:
    benchmark.group = f"sample, {num_rows} x 184,622 ids, guided, by threads"
    draw = prepared(num_rows)
    streams = [stream[:num_rows] for stream in logits]

    def on_threads(number: int) -> torch.Tensor:
        torch.set_num_threads(number)
        return draw(*streams)

    try:
        measure(
            f"mmfast, threads: {num_threads}",
            lambda: on_threads(num_threads),
            num_rows,
            "rows",
            beside=(lambda: on_threads(1)) if num_threads > 1 else None,
            rounds=80,
        )
    finally:
        torch.set_num_threads(1)


def test_two_processes(benchmark, measure, logits, tmp_path) -> None:
    benchmark.group = f"sample, {NUM_ROWS} x 184,622 ids, guided, by threads"
    half = NUM_ROWS // 2
    draw, draw_half, streams = prepared(), prepared(half), [stream[:half] for stream in logits]
    np.zeros(2, np.int64).tofile(tmp_path / "flags")
    flags = np.memmap(tmp_path / "flags", np.int64)

    with subprocess.Popen([sys.executable, __file__, str(tmp_path / "flags")]) as other:

        def draw_together() -> None:
            torch.set_num_threads(1)
            flags[0] += 1
            draw_half(*streams)
            while flags[1] != flags[0]:
                assert other.poll() is None

        def draw_on_two_threads() -> None:
            torch.set_num_threads(2)
            draw(*logits)

        try:
            draw_together()
            measure(
                "mmfast, processes: 2",
                draw_together,
                NUM_ROWS,
                "rows",
                # by then the other process sleeps
                setup=lambda: time.sleep(10 * PATIENCE),
                beside=draw_on_two_threads,
                rounds=80,
            )
        finally:
            torch.set_num_threads(1)
            other.kill()


def draw_when_told(path: Path) -> None:
    """Draws the other half of the rows each time the first flag is ahead of the second; sleeps after a while."""
    torch.set_num_threads(1)
    half = NUM_ROWS // 2
    draw, streams = prepared(half), [stream[half:] for stream in some_logits()]
    draw(*streams)
    flags = np.memmap(path, np.int64)
    last = time.perf_counter()
    while True:
        if flags[1] != flags[0]:
            draw(*streams)
            flags[1] += 1
            last = time.perf_counter()
        elif time.perf_counter() > last + PATIENCE:
            time.sleep(PATIENCE)


OTHER_FILTERS = {
    "no filter": {"top_k": 0, "top_p": 1.0},
    "top-p alone": {"top_k": 0},
    "top-k alone": {"top_p": 1.0},
    "min-p alone": {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
}


@FILTERS
@pytest.mark.parametrize("name", OTHER_FILTERS)
def test_filters_mmfast(measure, logits, name) -> None:
    draw = prepared(**OTHER_FILTERS[name])
    measure(f"mmfast, {name}", lambda: draw(*logits), NUM_ROWS, "rows", rounds=15)


@FILTERS
def test_filters_torch(measure, logits) -> None:
    def draw() -> torch.Tensor:
        return torch.lerp(logits[1], logits[0], SCALE).softmax(-1).multinomial(1)

    measure("torch lerp, softmax, multinomial", draw, NUM_ROWS, "rows")


@FILTERS
def test_filters_processors(measure, logits) -> None:
    draw = by_processors(guide_logits, TopPLogitsWarper(TOP_P))
    measure("transformers, top-p alone", lambda: draw(*logits), NUM_ROWS, "rows")


if __name__ == "__main__":
    draw_when_told(Path(sys.argv[1]))
