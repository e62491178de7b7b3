"""`make gpu-train` where there is no GPU: the same code on tiny shapes, every line of results there."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).parents[2] / "benches" / "train" / "gpu_train.py"


def test_every_result_is_measured_and_kept(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())["results"]
    assert [result["what"] for result in results] == [
        "masked",
        "plain",
        "peer",
        "trainer",
        "mmfast",
        "plain",
    ]
    assert all(result["ms_per_step"] > 0 for result in results)
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in printed if line.startswith("{")] == results
