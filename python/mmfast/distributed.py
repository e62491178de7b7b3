"""Ranks and process groups, the same under `torchrun` and under plain `python`.

Started without `torchrun`, a program is rank 0 of 1 and needs no environment variables.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta


def rank() -> int:
    """This process's rank as `torchrun` set it, 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes as `torchrun` set it, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


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
