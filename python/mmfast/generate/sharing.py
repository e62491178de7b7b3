"""Shares requests out over the ranks of `torchrun` and brings every result to every rank.

Rank r of W takes requests r, r + W, ... Results depend only on their request, so they do not depend on W.
They travel as JSON: nothing is unpickled.
"""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from mmfast.generate.requests import Request, Result

T = TypeVar("T")


def run_shared(
    requests: Sequence[Request], run: Callable[[Sequence[Request]], list[Result]]
) -> list[Result]:
    """Runs this rank's requests with `run` and returns all results, in order, on every rank.

    Without a process group of several ranks it just runs them all.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return run(requests)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = run(requests[rank::world_size])
    by_rank = [_decoded(text) for text in _all_gather_bytes(_encoded(mine))]
    return [by_rank[idx % world_size][idx // world_size] for idx in range(len(requests))]


def _encoded(results: Sequence[Result]) -> bytes:
    # JSON's numbers give back a float's exact value.
    return json.dumps([[r.ids, r.logprobs, r.finish, r.status] for r in results]).encode()


def _decoded(text: bytes) -> list[Result]:
    return [
        Result(ids=tuple(ids), logprobs=tuple(logprobs), finish=finish, status=status)
        for ids, logprobs, finish, status in json.loads(text)
    ]


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
