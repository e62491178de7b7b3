"""Each example of the sampler runs as it stands; its own assertions say what it shows."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("sample_*.py"))


def test_there_is_an_example_for_each_way_in():
    assert NAMES == ["sample_for_multinomial.py", "sample_in_generate.py", "sample_in_your_loop.py"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 3
