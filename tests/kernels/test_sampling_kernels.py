"""Gates of the sampling kernels: interpreter against reference, ahead-of-time compile, GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.reliability.figures import is_long, report, scaled

pytest.importorskip("triton", reason="Triton is not installed; it comes with CUDA builds of torch")

HERE = Path(__file__).parent
# The first configurations of each path, which the oldest Triton runs as well.
FEW = {"range": 20, "bounded": 4, "masses": 4, "streaming": 2}

# What `make kernel-resources` writes.
RECORD = HERE.parents[1] / "benches/results/kernel_resources.json"
BENCH = HERE.parents[1] / "benches/kernels/gpu_sampling.py"


def run_script(name: str, *arguments: str, cache: Path, interpret: bool) -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_kernels_and_reference_import_without_the_native_extension():
    code = (
        "import sys; sys.modules['mmfast._mmfast'] = None; "
        "import mmfast.kernels.draw_rows, mmfast.sampling.reference, mmfast.sampling.inputs"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def interpreted(path: str, first: int, end: int, *arguments: str, cache: Path) -> dict:
    return run_script(
        "interpret_sampling.py",
        path,
        str(first),
        str(end),
        *arguments,
        cache=cache,
        interpret=True,
    )


@pytest.mark.parametrize("path", FEW)
def test_interpreter_equals_the_reference_on_a_few_configurations(path, tmp_path):
    outcome = interpreted(path, 0, FEW[path], cache=tmp_path)
    assert outcome["num_configurations"] == FEW[path]
    assert outcome["different"] == []
    report(count=FEW[path], unit="configurations", seed=0, result="0 differ")


@pytest.mark.slow
def test_no_row_notices_its_neighbours_its_place_or_how_work_is_shared_out(tmp_path):
    outcome = run_script("interpret_sampling_batches.py", cache=tmp_path, interpret=True)
    # 3 sets of 4 rows, 5 shapes, batches of 4, 1 and 2 rows
    assert outcome["num_rows"] == 3 * 5 * (4 + 1 + 2)
    assert outcome["num_tokens"] >= 12
    assert outcome["different"] == []


@pytest.mark.slow
@pytest.mark.timeout(14_400 if is_long() else 900)
@pytest.mark.parametrize(
    ("path", "short", "long"),
    [
        ("range", 205, 3_700),
        ("bounded", 45, 600),
        ("masses", 40, 500),
        ("streaming", 15, 200),
    ],
)
def test_interpreter_equals_the_reference_on_random_configurations(path, short, long, tmp_path):
    count = scaled(short, long) - FEW[path]
    largest = ["8192"] if is_long() else []
    outcome = interpreted(path, FEW[path], FEW[path] + count, *largest, cache=tmp_path)
    assert outcome["num_configurations"] == count
    assert outcome["num_rows"] >= count
    assert outcome["different"] == []
    report(count=count, unit="configurations", seed=0, result="0 differ")


def assert_exact(row: dict) -> None:
    """That a compiled kernel keeps to its registers and rounds each operation by itself."""
    assert row["registers"] <= 255, row
    assert row["stack_bytes"] == row["local_bytes"] == 0, f"registers spilled: {row}"
    assert row["shared_bytes"] <= 99 * 1024, row
    assert row["num_fused_ptx"] == 0, f"a fused multiply-add: {row}"
    assert row["num_flushing_ptx"] == row["num_flushing"] == 0, f"flushes subnormals: {row}"
    # the repetition penalty's correctly rounded division is made of these, and nothing else is
    divisions = row["num_divisions"]
    assert divisions == row["num_divisions_ptx"], f"a division that is not div.rn.f32: {row}"
    assert row["num_fused"] == 5 * divisions, f"a fused multiply-add: {row}"
    assert row["num_fused_in_routine"] == (12 if divisions else 0), f"a fused multiply-add: {row}"


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_without_spills_or_inexact_instructions(capability, tmp_path):
    found = run_script("compile_sampling.py", str(capability), cache=tmp_path, interpret=False)
    assert len({row["kernel"] for row in found["kernels"]}) >= 8
    for row in found["kernels"]:
        assert_exact(row)
    record = json.loads(RECORD.read_text())
    if found["triton"] == record["triton"]:
        new = [row for row in found["kernels"] if row not in record["kernels"]]
        assert new == [], "not as recorded: run `make kernel-resources`"


def test_the_record_holds_every_kernel_and_variant_on_every_architecture(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    from compile_sampling import NUM_DIVISIONS, launches

    expected = [(launch.kernel.fn.__name__, variant) for variant, launch in launches(is_full=True)]
    expected += [("divisions_kernel", f"divisions: {count}") for count in NUM_DIVISIONS]
    rows = json.loads(RECORD.read_text())["kernels"]
    for capability in (80, 90, 100):
        found = [(r["kernel"], r["variant"]) for r in rows if r["capability"] == capability]
        assert sorted(found) == sorted(expected)
    assert len(rows) == 3 * len(expected)
    assert any(row["num_divisions"] for row in rows if row["kernel"] != "divisions_kernel")
    for row in rows:
        assert_exact(row)


def test_the_gpu_benchmark_checks_and_times_every_row_on_a_dry_run(tmp_path):
    output = tmp_path / "results.json"
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCH), "--dry-run", "--output", str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DIFFERENT" not in done.stdout
    assert done.stdout.count("equal") == 8
    rows = json.loads(output.read_text())["rows"]
    assert {(row["ids"], row["contender"]) for row in rows} == {
        (ids, contender)
        for ids in (300, 64)
        for contender in ("mmfast", "flashinfer, torch guidance", "torch.compile")
    }
    for row in rows:
        assert row["floor_us"] > 0
        assert ("problem" in row) != (row.get("warm", 0) > 0)
        assert row["contender"] != "mmfast" or "problem" not in row


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("width", [33, 2048, 8192, 184_622])
@pytest.mark.parametrize("top_k_of_row_0", [0, 1])
def test_gpu_equals_the_reference(width, top_k_of_row_0):
    from mmfast.sampling import sample

    generator = torch.Generator().manual_seed(width)
    logits, uncond = torch.randn(2, 64, width, generator=generator).to(torch.bfloat16) * 3
    arguments = {
        "guidance_scale": 3.0,
        "temperature": 0.9,
        "top_k": top_k_of_row_0 + torch.arange(64) * 20,
        "top_p": 0.9,
        "min_p": 0.001,
        "seeds": torch.arange(64),
        "steps": 5,
    }
    expected = sample(logits, uncond, backend="torch", **arguments)
    found = sample(logits.cuda(), uncond.cuda(), backend="triton", **arguments)
    assert torch.equal(expected.tokens, found.tokens.cpu())
    assert torch.equal(expected.num_kept, found.num_kept.cpu())
    assert torch.equal(expected.logprobs, found.logprobs.cpu())
