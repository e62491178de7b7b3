"""What a run sets up in its process and puts back afterwards: signals, the collector, a profiler."""

import gc
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers

from mmfast.console import log
from mmfast.distributed import rank, world_size
from mmfast.files import write_json, write_text

PROFILE_FOLDER = "profile"
# Steps that a profile shows, after one that warms the profiler up.
PROFILED_STEPS = 3


def write_environment(path: Path, device: torch.device) -> None:
    """Versions and machine of a run, as JSON."""
    from mmfast import __version__

    environment = {
        "mmfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "world_size": world_size(),
        "threads": torch.get_num_threads(),
    }
    write_json(path, environment)


@contextmanager
def sigterm_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the handler of before is put back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection but what the run asks for; what it froze is thawed afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class StepProfiler:
    """Profiles three steps of a run on every rank, from the one after `first_step`.

    Leaves `profile/rank-R.trace.json` (for Perfetto or chrome://tracing), `rank-R.txt` (time by
    operation) and, with CUDA, `rank-R.memory.pickle` (for pytorch.org/memory_viz) in the run folder.

    Args:
        folder: run folder.
        first_step: 1-based; 0 profiles nothing.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self.folder = folder / PROFILE_FOLDER
        self.first_step = first_step
        self._profile: Any = None

    def before(self, step: int) -> None:
        """Called before 1-based step `step`."""
        if self.first_step == 0 or step != self.first_step:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        self._profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=PROFILED_STEPS),
            profile_memory=True,
        )
        self._profile.start()

    def after(self, step: int) -> None:
        """Called after 1-based step `step`."""
        if self._profile is None:
            return
        self._profile.step()
        if step >= self.first_step + PROFILED_STEPS:
            self.close()

    def close(self) -> None:
        """Writes what was profiled so far, if anything was."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        name = self.folder / f"rank-{rank()}"
        profile.export_chrome_trace(f"{name}.trace.json")
        table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        write_text(Path(f"{name}.txt"), table)
        if torch.cuda.is_available():
            memory: Any = torch.cuda.memory  # its functions are not typed
            memory._dump_snapshot(f"{name}.memory.pickle")
            memory._record_memory_history(enabled=None)
        log(f"profile of {PROFILED_STEPS} steps in {self.folder}")
