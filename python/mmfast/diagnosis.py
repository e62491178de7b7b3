"""What this installation is and can do: versions, devices, extras, and which backend runs and why.

A backend that is not active says what it lacks; nothing here is a guess about another machine. Every
fact is plain JSON, and a part that cannot be examined says so instead of failing the rest.
"""

import dataclasses
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGES = (
    "numpy",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "omegaconf",
    "pillow",
    "typer",
    "rich",
)
# Extra, and the packages of which each must be there.
_EXTRAS = {
    "eval": ("scikit-learn",),
    "demo": ("scikit-learn", "scikit-image", "matplotlib"),
    "parquet": ("pyarrow",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What is taken where nothing is asked for.

    Attributes:
        where: for which inputs.
        backend: name of what is taken.
        why: for what reason, and what happens otherwise.
    """

    where: str
    backend: str
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """One way of doing a job.

    Attributes:
        name: as users write it.
        active: whether it is used here by default for what it can do.
        why: what makes it run, or what is missing.
    """

    name: str
    active: bool
    why: str


def diagnose() -> dict[str, Any]:
    """Everything `mmfast doctor` shows, as plain JSON."""
    torch = _torch()
    return {
        "versions": _versions(torch),
        "machine": _machine(),
        "devices": _devices(torch),
        "sampling": [dataclasses.asdict(backend) for backend in sampling_backends(torch)],
        "sampling_auto": [dataclasses.asdict(choice) for choice in sampling_choices(torch)],
        "attention": [dataclasses.asdict(backend) for backend in attention_backends(torch)],
        "extras": {extra: _missing(packages) for extra, packages in _EXTRAS.items()},
    }


def sampling_backends(torch: ModuleType | None) -> list[Backend]:
    """What `mmfast.sampling.sample` can run on; every backend draws the same tokens."""
    if torch is None:
        return [Backend(name="torch", active=False, why="torch is not installed")]
    from mmfast.kernels import triton_available

    cuda = torch.cuda.is_available()
    if not triton_available():
        why = "triton is not installed"
    elif not cuda:
        why = "triton is installed, but torch sees no CUDA device"
    else:
        why = "a CUDA device and triton are there: fused kernels for logits on the device"
    triton = Backend(name="triton", active=cuda and triton_available(), why=why)
    rust = Backend(
        name="rust",
        active=_has_native("draw_rows"),
        why="compiled in: takes logits on the CPU"
        if _has_native("draw_rows")
        else "this build of the native extension has no sampler",
    )
    faster = [backend.name for backend in (triton, rust) if backend.active]
    why = f"what {' and '.join(faster)} cannot take" if faster else "no faster backend runs here"
    return [triton, rust, Backend(name="torch", active=True, why=f"the reference; {why}")]


def sampling_choices(torch: ModuleType | None) -> list[Choice]:
    """What `backend="auto"` of `mmfast.sampling.sample` takes here, by where the logits are."""
    by_name = {backend.name: backend for backend in sampling_backends(torch)}
    if "rust" not in by_name:
        return []
    rust, triton = by_name["rust"], by_name["triton"]
    on_cpu = Choice(
        where="logits on the CPU",
        backend="rust" if rust.active else "torch",
        why="the native core takes every parameter" if rust.active else rust.why,
    )
    on_cuda = Choice(
        where="logits on a CUDA device",
        backend="triton" if triton.active else "torch",
        why="the kernels take every parameter" if triton.active else triton.why,
    )
    return [on_cpu, on_cuda]


def attention_backends(torch: ModuleType | None) -> list[Backend]:
    """What document-masked attention runs on; all of them keep packed documents apart."""
    if torch is None:
        return [Backend(name="sdpa mask", active=False, why="torch is not installed")]
    from mmfast.models.attention import varlen_available

    cuda = torch.cuda.is_available()
    varlen = cuda and varlen_available(torch.device("cuda"), torch.bfloat16)
    if varlen:
        why = "CUDA and torch's variable-length flash attention are there: used in half precision"
    elif cuda:
        why = "this torch or device has no variable-length flash attention"
    else:
        why = "needs a CUDA device; torch sees none"
    return [
        Backend(name="varlen", active=varlen, why=why),
        Backend(
            name="sdpa mask",
            active=True,
            why="runs everywhere; used in float32" if varlen else "runs everywhere",
        ),
    ]


def version_of(package: str) -> str | None:
    """Installed version, None without one; imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> ModuleType | None:
    try:
        import torch
    except ImportError:
        return None
    return torch


def _versions(torch: ModuleType | None) -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "mmfast": _native_version(),
    }
    versions |= {package: version_of(package) for package in _PACKAGES}
    versions["cuda (torch build)"] = torch.version.cuda if torch is not None else None
    return versions


def _native_version() -> str:
    """Version of the native extension with its build, or why it cannot be loaded."""
    try:
        from mmfast import _mmfast
    except ImportError as error:
        return f"native extension not loaded: {error}"
    return f"{_mmfast.__version__} ({_mmfast.__build__})"


def _has_native(name: str) -> bool:
    try:
        from mmfast import _mmfast
    except ImportError:
        return False
    return hasattr(_mmfast, name)


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "interpreter": sys.executable,
    }


def _memory_bytes() -> int | None:
    """Physical memory, or the container's limit where that is lower; None where not to be had."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _devices(torch: ModuleType | None) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = []
    if torch is not None:
        devices.append({"device": "cpu", "threads": torch.get_num_threads()})
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "device": f"cuda:{index}",
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_bytes": properties.total_memory,
                }
            )
    return devices


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [package for package in packages if version_of(package) is None]
