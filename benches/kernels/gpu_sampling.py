"""Sampling kernels on one GPU: equality with the reference, then times under graph replay beside the peers.

Needs torch and Triton only, not the native extension: `PYTHONPATH=python python benches/kernels/gpu_sampling.py`
(`make gpu-kernels`). Each line is printed as soon as it is measured; the last writes JSON. `--dry-run` goes through
all of it on a CPU in Triton's interpreter, with shapes of no interest.

A time is that of one replay of a captured graph, which also advances the steps on the device, as a generation loop
does: over many replays, so with logits in the L2 cache where they fit (`warm`), and after a write of four times that
cache (`cold`, the write's own time subtracted). The floor is the bytes of the logits over the measured bandwidth
of a copy.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dry-run", action="store_true", help="tiny shapes in the interpreter")
parser.add_argument("--output", type=Path, default=Path("benches/results/gpu_kernels.json"))
ARGUMENTS = parser.parse_args()
if ARGUMENTS.dry_run:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
import triton  # noqa: E402

from mmfast.kernels.draw_rows import LaunchShape, Workspace, draw_rows  # noqa: E402
from mmfast.sampling import reference  # noqa: E402
from mmfast.sampling.inputs import DrawInputs, resolve  # noqa: E402
from mmfast.sampling.params import SamplingParams  # noqa: E402

DRY = ARGUMENTS.dry_run
DEVICE = torch.device("cpu" if DRY else "cuda")
GUIDANCE, TOP_K, TOP_P = 3.0, 16 if DRY else 2048, 0.9
VOCABULARY, RANGE = (300, 64) if DRY else (184_622, 32_768)
BATCHES = (1,) if DRY else (1, 8, 64, 512)
DTYPE = torch.bfloat16


class Timing(NamedTuple):
    """Microseconds of one call."""

    warm: float
    cold: float


def say(line: str) -> None:
    """Prints at once: a run that is cut off has still told what it knew."""
    print(line, flush=True)


def inputs_of(
    num_rows: int, num_ids: int, *, device: torch.device, spread: float = 3.0, **parameters
) -> DrawInputs:
    """Random guided logits; equal on every device."""
    generator = torch.Generator().manual_seed(num_rows * 1_000_003 + num_ids)
    logits = torch.randn(2, num_rows, num_ids, generator=generator).mul_(spread).to(DTYPE)
    params = SamplingParams.prepare(num_rows, guidance_scale=GUIDANCE, device=device, **parameters)
    return resolve(
        logits[0].to(device),
        logits[1].to(device),
        streams=(),
        params=params,
        seeds=torch.arange(num_rows, device=device),
        steps=torch.zeros(num_rows, dtype=torch.int64, device=device),
        positions=None,
        num_draws=1,
        allowed=None,
        history=None,
        exempt=(),
    )


def check() -> int:
    """How many cases differ from the reference on the CPU."""
    whole = {"top_k": TOP_K, "top_p": TOP_P}
    cases = [
        ("whole, k and p", 4, VOCABULARY, whole),
        ("whole, constant rows", 2, VOCABULARY, {**whole, "spread": 0.0}),
        ("whole, greedy", 2, VOCABULARY, {**whole, "temperature": 0.0}),
        ("whole, p alone", 2, VOCABULARY, {"top_p": TOP_P}),
        ("whole, no filter", 2, VOCABULARY, {}),
        ("range, k and p", 4, RANGE, whole),
        ("small range, k and p", 4, min(RANGE, 8192), whole),
    ]
    num_different = 0
    for name, num_rows, num_ids, parameters in cases:
        found = draw_rows(
            inputs_of(num_rows, num_ids, device=DEVICE, **parameters), shape=forced(num_ids)
        )
        expected = reference.draw(
            inputs_of(num_rows, num_ids, device=torch.device("cpu"), **parameters)
        )
        is_equal = all(
            torch.equal(getattr(expected, field), getattr(found, field).cpu())
            for field in reference.Draw._fields
        )
        num_different += not is_equal
        say(
            f"{'equal    ' if is_equal else 'DIFFERENT'}  {name}, {num_rows} rows of {num_ids:,} ids"
        )
    is_equal = replays_equal()
    say(
        f"{'equal    ' if is_equal else 'DIFFERENT'}  20 replays of a graph, steps counted on the device"
    )
    return num_different + (not is_equal)


def replays_equal() -> bool:
    """Whether a captured graph draws at every replay what single calls draw at that step."""
    inputs = inputs_of(2, VOCABULARY, device=DEVICE, top_k=TOP_K)
    expected = []
    for _ in range(2 if DRY else 20):
        expected.append(draw_rows(inputs, shape=forced(VOCABULARY)).tokens.clone())
        inputs.steps.add_(1)
    found = torch.empty_like(expected[0])
    replay = captured(mmfast_call(inputs, found))
    inputs.steps.zero_()
    for tokens in expected:
        replay()
        if not torch.equal(found, tokens):
            return False
    return True


def forced(num_ids: int) -> LaunchShape | None:
    """On a dry run a shape small enough that whole rows take the path of large ones."""
    if DRY and num_ids == VOCABULARY:
        return LaunchShape(num_splits=2, tile=256, num_groups=64, max_candidates=64, max_range=0)
    return None


def per_call(call: Callable[[], object], num_calls: int) -> float:
    """Microseconds, median of five runs of many calls."""
    times = []
    for _ in range(5):
        if DRY:
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
            break
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(num_calls):
            call()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / num_calls)
    return sorted(times)[len(times) // 2]


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """A replay of the call, warmed up first."""
    if DRY:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(call: Callable[[], object], flush: Callable[[], object], flush_us: float) -> Timing:
    """Both times of a call."""
    warm = per_call(captured(call), 200)

    def after_flush() -> None:
        flush()
        call()

    return Timing(warm, per_call(captured(after_flush), 50) - flush_us)


def copy_bandwidth() -> float:
    """Bytes a second of a copy much larger than the cache, read and written."""
    source = torch.empty(1 << (16 if DRY else 30), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / (per_call(captured(lambda: target.copy_(source)), 10) / 1e6)


def mmfast_call(inputs: DrawInputs, tokens: torch.Tensor | None = None) -> Callable[[], object]:
    workspace = Workspace()
    shape = forced(inputs.num_ids)

    def call() -> None:
        drawn = draw_rows(inputs, shape=shape, workspace=workspace)
        inputs.steps.add_(1)
        if tokens is not None:
            tokens.copy_(drawn.tokens)

    return call


def flashinfer_call(inputs: DrawInputs) -> Callable[[], object]:
    from flashinfer.sampling import top_k_top_p_sampling_from_logits

    conditional, unconditional = inputs.conditions[0], inputs.unconditional
    seeds = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    offsets = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def call() -> None:
        mixed = torch.lerp(unconditional.float(), conditional.float(), GUIDANCE)
        top_k_top_p_sampling_from_logits(
            mixed, TOP_K, TOP_P, filter_apply_order="top_k_first", seed=seeds, offset=offsets
        )
        offsets.add_(32 * inputs.num_rows)

    return call


def recipe(conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    """Top-k, then top-p of what is left, then a draw by exponential noise: the best recipe without a kernel."""
    mixed = torch.lerp(unconditional.float(), conditional.float(), GUIDANCE)
    values, ids = mixed.topk(TOP_K, dim=-1)
    shares = values.softmax(-1)
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= TOP_P, 0.0)
    noise = torch.empty_like(shares).exponential_()
    return ids.gather(-1, (shares / noise).argmax(-1, keepdim=True))


def compiled_call(inputs: DrawInputs) -> Callable[[], object]:
    function = recipe if DRY else torch.compile(recipe, dynamic=False)
    return lambda: function(inputs.conditions[0], inputs.unconditional)


CONTENDERS = {
    "mmfast": mmfast_call,
    "flashinfer, torch guidance": flashinfer_call,
    "torch.compile": compiled_call,
}


def versions() -> dict[str, str]:
    """What was measured, on what."""
    return {
        "device": "interpreter" if DRY else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def bench() -> dict[str, object]:
    """All rows, printed as they come."""
    bandwidth = copy_bandwidth()
    say(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    cache = 1024 if DRY else torch.cuda.get_device_properties(0).L2_cache_size
    scratch = torch.empty(4 * cache, dtype=torch.uint8, device=DEVICE)
    flush_us = per_call(captured(scratch.zero_), 50)
    rows = []
    for num_ids in (VOCABULARY, RANGE):
        for num_rows in BATCHES:
            inputs = inputs_of(num_rows, num_ids, device=DEVICE, top_k=TOP_K, top_p=TOP_P)
            floor = 1e6 * num_rows * num_ids * 2 * DTYPE.itemsize / bandwidth
            for name, make in CONTENDERS.items():
                row = {"ids": num_ids, "rows": num_rows, "contender": name, "floor_us": floor}
                rows.append(row)
                if name.startswith("flashinfer") and importlib.util.find_spec("flashinfer") is None:
                    row["problem"] = "not installed"
                else:
                    try:
                        row |= measure(make(inputs), scratch.zero_, flush_us)._asdict()
                    except Exception as error:
                        if name == "mmfast":
                            raise
                        row["problem"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                say(line_of(row))
    return {"versions": versions(), "copy_bytes_per_second": bandwidth, "rows": rows}


def line_of(row: dict) -> str:
    """A row for people."""
    head = f"{row['ids']:>8,} ids  B {row['rows']:>4}  {row['contender']:<28}"
    if "problem" in row:
        return f"{head} {row['problem']}"
    return f"{head} {row['warm']:>9.1f} us warm {row['cold']:>9.1f} us cold   floor {row['floor_us']:>6.1f} us"


def main() -> None:
    if not DRY and not torch.cuda.is_available():
        sys.exit("no CUDA device on this machine; --dry-run goes through the motions without one")
    say(json.dumps(versions()))
    if num_different := check():
        sys.exit(f"{num_different} cases differ from the reference; nothing was timed")
    results = bench()
    ARGUMENTS.output.parent.mkdir(parents=True, exist_ok=True)
    ARGUMENTS.output.write_text(json.dumps(results, indent=1) + "\n")
    say(f"wrote {ARGUMENTS.output}")


if __name__ == "__main__":
    main()
