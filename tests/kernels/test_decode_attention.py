"""Gates of the decoding kernels: interpreter against reference, ahead-of-time compile, GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; it comes with CUDA builds of torch")

HERE = Path(__file__).parent


def run_script(name: str, *, cache: Path, interpret: bool) -> list:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(HERE / name)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: list = json.loads(done.stdout)
    return results


@pytest.mark.slow
def test_interpreter_equals_the_reference_however_many_blocks_there_are(tmp_path):
    results = run_script("interpret_decode_attention.py", cache=tmp_path, interpret=True)
    assert len(results) == 12
    for result in results:
        assert result["is_invariant"], result
        # Half a unit in the last place of a value of about 2.
        assert result["difference"] <= (2e-6 if "32" in result["dtype"] else 8e-3), result


@pytest.mark.aot
@pytest.mark.slow
def test_every_variant_compiles_without_spills(tmp_path):
    results = run_script("compile_decode_attention.py", cache=tmp_path, interpret=False)
    assert {r["capability"] for r in results} == {80, 90, 100}
    for r in results:
        assert r["registers"] <= 255, r
        assert r["stack_bytes"] == r["local_bytes"] == 0, f"registers spilled: {r}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_gpu_equals_the_reference():
    from mmfast.models.decode_attention import BLOCK, cache_mask, decode_attention

    generator = torch.Generator().manual_seed(1)
    query = torch.randn(6, 8, 1, 128, generator=generator)
    key, value = torch.randn(2, 9, 6, 2, BLOCK, 128, generator=generator)
    positions = torch.tensor([0, 5, 63, 64, 300, 575])
    expected = decode_attention(query, key, value, mask=cache_mask(positions, 9))
    positions, *tensors = (x.cuda() for x in (positions, query, key, value))
    found = decode_attention(*tensors, mask=cache_mask(positions, 9))
    assert (found.cpu() - expected).abs().max() <= 2e-6
    shorter = decode_attention(*(x[:5] for x in tensors), mask=cache_mask(positions[:5], 5))
    longer = decode_attention(*(x[:5] for x in tensors), mask=cache_mask(positions[:5], 9))
    assert torch.equal(shorter, longer)
