"""Shares work out over the ranks of `torchrun` and brings every result to every rank.

Rank r of W takes items r, r + W, ... Results depend only on their item, so they do not depend on W.
They travel as JSON: nothing is unpickled.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from mmfast.generate.requests import Request, Result


def run_shared(
    requests: Sequence[Request], run: Callable[[Sequence[Request]], list[Result]]
) -> list[Result]:
    """Runs this rank's requests with `run` and returns all results, in order, on every rank.

    Without a process group of several ranks it just runs them all.
    """
    if not _is_shared():
        return run(requests)
    mine = run(requests[dist.get_rank() :: dist.get_world_size()])
    return [
        Result(ids=tuple(ids), logprobs=tuple(logprobs), finish=finish, status=status)
        for ids, logprobs, finish, status in _gathered(
            [[r.ids, r.logprobs, r.finish, r.status] for r in mine], len(requests)
        )
    ]


def compute_shared(num_items: int, compute: Callable[[int], Any]) -> list[Any]:
    """`compute(item)` of items 0..num_items-1, each done by one rank, in order on every rank.

    Values must be what JSON can hold; a tuple comes back as a list.
    """
    if not _is_shared():
        return [compute(item) for item in range(num_items)]
    mine = [compute(item) for item in range(dist.get_rank(), num_items, dist.get_world_size())]
    return _gathered(mine, num_items)


def _is_shared() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _gathered(mine: list[Any], num_items: int) -> list[Any]:
    """All ranks' values in the order of their items."""
    # JSON's numbers give back a float's exact value.
    by_rank = [json.loads(text) for text in _all_gather_bytes(json.dumps(mine).encode())]
    return [by_rank[item % len(by_rank)][item // len(by_rank)] for item in range(num_items)]


def _all_gather_bytes(data: bytes) -> list[bytes]:
    """Every rank's bytes, on every rank."""
    world_size = dist.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    gathered = [torch.empty(longest, dtype=torch.uint8) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    return [bytes(part[: int(size)].numpy()) for part, size in zip(gathered, sizes, strict=True)]
