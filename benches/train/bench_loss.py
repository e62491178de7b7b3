"""The loss of 4,096 tokens over 65,536 ids from a hidden width of 1,536: time and peak memory, fp32 on CPU.

A round is forward and backward. Memory is what the process holds at its peak on top of what it held
before, without the gradient of the output layer, which every contender has to give.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

TOKENS, WIDTH, VOCABULARY = 4_096, 1_536, 65_536
HEAD_GRADIENT_MIB = VOCABULARY * WIDTH * 4 / 2**20
LOSS = pytest.mark.benchmark(group="loss, 4,096 tokens, width 1,536, 65,536 ids")


@pytest.fixture(scope="module")
def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_()
    head = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.02).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return hidden, head, labels, torch.ones(TOKENS)


def kib(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def measure_loss(
    measure, benchmark, contender: str, loss: Callable[..., torch.Tensor], tensors
) -> None:
    hidden, head, _, _ = tensors
    peaks: list[float] = []

    def step() -> None:
        hidden.grad = head.grad = None
        Path("/proc/self/clear_refs").write_text("5")
        before = kib("VmRSS")
        loss(*tensors).backward()
        peaks.append((kib("VmHWM") - before) / 1024 - HEAD_GRADIENT_MIB)

    measure(contender, step, TOKENS, "tokens", rounds=2, warmup_rounds=0)
    benchmark.extra_info["peak_mib"] = max(peaks)
    hidden.grad = head.grad = None


@LOSS
def test_loss_plain(measure, benchmark, tensors) -> None:
    def plain(hidden, head, labels, weights):
        nll = F.cross_entropy(hidden @ head.T, labels, reduction="none")
        return (nll * weights).sum()

    measure_loss(measure, benchmark, "torch matmul and cross_entropy", plain, tensors)


@LOSS
def test_loss_mmfast(measure, benchmark, tensors) -> None:
    from mmfast.train.loss import weighted_nll

    def chunked(*arguments):
        return weighted_nll(*arguments)[0]

    measure_loss(measure, benchmark, "mmfast weighted_nll", chunked, tensors)
