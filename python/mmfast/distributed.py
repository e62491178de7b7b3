"""Ranks and process groups, the same under `torchrun` and under plain `python`.

Started without `torchrun`, a program is rank 0 of 1 and needs no environment variables.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from mmfast.errors import UsageError

# For jobs in which one rank may work for days while the others wait.
WORK_TIMEOUT = timedelta(days=30)
DEVICES = ("auto", "cpu", "cuda")


def rank() -> int:
    """This process's rank as `torchrun` set it, 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes as `torchrun` set it, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def resolve_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` to the device of this process: `cpu`, or `cuda:N` with N its local rank.

    `auto` takes CUDA where there is some.

    Raises:
        UsageError: another name, or `cuda` on a machine without as many CUDA devices as processes.
    """
    import torch

    if name not in DEVICES:
        raise UsageError(f"--device is {name!r}; it must be auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device; use cpu or auto")
    if local_rank() >= torch.cuda.device_count():
        raise UsageError(
            f"local process {local_rank()} has no CUDA device of its own: this machine has "
            f"{torch.cuda.device_count()}; start as many processes, or use --device cpu"
        )
    return f"cuda:{local_rank()}"


@contextmanager
def process_group(*, timeout: timedelta | None = None) -> Iterator[None]:
    """Joins the process group (NCCL beside gloo with CUDA, else gloo) for the block's duration.

    A world of one gets a group as well, so that code which needs one has a single path. `timeout` is how
    long a collective waits for the slowest rank; by default torch's, some tens of minutes.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all ranks when there are several."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
