"""`mmfast doctor` tells what is there, and for what is not, what it lacks."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mmfast import diagnosis


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from mmfast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", *arguments], capture_output=True, text=True
    )


def test_json_lists_versions_devices_and_every_backend_with_its_reason() -> None:
    result = doctor("--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "rustc" in facts["versions"]["mmfast"]
    assert [backend["name"] for backend in facts["sampling"]] == ["triton", "rust", "torch"]
    assert [backend["name"] for backend in facts["attention"]] == ["varlen", "sdpa mask"]
    assert all(backend["why"] for job in ("sampling", "attention") for backend in facts[job])
    assert any(backend["active"] for backend in facts["sampling"])
    assert facts["devices"][0]["device"] == "cpu"
    assert facts["machine"]["cpus"] >= 1
    assert set(facts["extras"]) >= {"eval", "demo", "parquet"}


def test_the_printed_form_names_every_section() -> None:
    result = doctor()
    assert result.returncode == 0, result.stderr
    for heading in ("versions", "machine", "sampling backends", "attention backends", "extras"):
        assert heading in result.stdout


def test_an_unknown_option_ends_with_code_2() -> None:
    assert doctor("--jsn").returncode == 2


def test_without_torch_backends_are_off_and_say_so() -> None:
    backends = [*diagnosis.sampling_backends(None), *diagnosis.attention_backends(None)]
    assert not any(backend.active for backend in backends)
    assert all("torch is not installed" in backend.why for backend in backends)


@pytest.mark.parametrize("has_triton", [True, False])
def test_on_cuda_triton_is_active_only_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, has_triton: bool
) -> None:
    monkeypatch.setattr("mmfast.kernels.triton_available", lambda: has_triton)
    cuda = SimpleNamespace(is_available=lambda: True)
    backends = diagnosis.sampling_backends(SimpleNamespace(cuda=cuda))
    triton = next(backend for backend in backends if backend.name == "triton")
    assert triton.active == has_triton
    assert ("not installed" in triton.why) == (not has_triton)


def test_what_auto_takes_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfast.kernels.triton_available", lambda: True)
    has_cuda = [False]
    machine = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: has_cuda[0]))
    without = diagnosis.sampling_choices(machine)
    has_cuda[0] = True
    with_cuda = diagnosis.sampling_choices(machine)
    assert [choice.backend for choice in without] == ["rust", "torch"]
    assert [choice.backend for choice in with_cuda] == ["rust", "triton"]
    assert "no CUDA device" in without[1].why
    assert diagnosis.sampling_choices(None) == []
    assert all(choice.where in doctor().stdout for choice in without)


def test_an_extra_that_lacks_a_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = diagnosis.version_of
    monkeypatch.setattr(
        diagnosis, "version_of", lambda name: None if name == "matplotlib" else real(name)
    )
    assert diagnosis.diagnose()["extras"]["demo"] == ["matplotlib"]
