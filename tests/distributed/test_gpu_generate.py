"""`make gpu-generate` where there is no GPU: the same code on tiny shapes, every line of results there."""

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benches" / "generate" / "gpu_generate.py"


def test_every_result_is_measured_and_kept(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())["results"]
    assert [result["what"] for result in results] == ["correct", "one", "many", "peer"]
    correct, *timed = results
    assert correct["same_alone_and_in_company"]
    assert correct["same_with_and_without_graphs"]
    assert correct["worst_logit_difference"] <= 1e-5
    assert all(result["ms_per_step"] > 0 for result in timed)
    assert [result["rows"] for result in timed] == [2, 4, 2]
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in printed if line.startswith("{")] == results
