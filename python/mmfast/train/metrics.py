"""What a run says about itself: `metrics.jsonl`, console lines and `summary.json`.

Losses and gradient norms stay on the device until a log interval ends; then one collective adds them
up over ranks and rank 0 writes a line for each step. So no step waits for a number to be printed.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmfast.console import log
from mmfast.distributed import rank, world_size
from mmfast.files import write_json, write_text
from mmfast.train.labels import modality_key
from mmfast.train.loggers import Logger

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
VALIDATION = "validation"
# Means over this many steps at either end stand for the first and the last loss in the summary.
SUMMARY_STEPS = 20


@dataclasses.dataclass(kw_only=True)
class StepRecord:
    """One step, as far as the host knows it, with device tensors for the rest.

    Attributes:
        step: 1-based number.
        sums: `[2, M]` fp64, this rank's Σ w·nll and Σ w by modality.
        grad_norm: scalar, the same on all ranks.
        skipped: scalar 0 or 1, the same on all ranks.
        lr: learning rate.
        tokens: real tokens so far, over all ranks.
        documents: documents so far.
        padding_fraction: share of this step's positions that hold no token.
        wait_secs: time this rank waited for data.
        full_flops: operations over all ranks by the full-attention formula.
        causal_flops: the same by the causal formula.
    """

    step: int
    sums: Tensor
    grad_norm: Tensor
    skipped: Tensor
    lr: float
    tokens: int
    documents: int
    padding_fraction: float
    wait_secs: float
    full_flops: float = 0.0
    causal_flops: float = 0.0


class MetricsLog:
    """Collects steps and writes them to `folder/metrics.jsonl` on rank 0.

    Args:
        folder: run folder.
        num_steps: steps of the whole run, for the remaining time.
        start_step: steps done before; lines of later steps, left by a killed run, are removed.
        start_tokens: tokens trained on before.
        start_seconds: training time before.
        skipped_steps: non-finite steps before.
        peak_tflops: of one device, None when unknown: there is no utilisation then.
        loggers: further destinations, on rank 0.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_steps: int,
        start_step: int = 0,
        start_tokens: int = 0,
        start_seconds: float = 0.0,
        skipped_steps: int = 0,
        peak_tflops: float | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.path = folder / METRICS_FILE
        self.num_steps = num_steps
        self.skipped_steps = skipped_steps
        self.peak_tflops = peak_tflops
        self.loggers = loggers
        self._pending: list[StepRecord] = []
        self._started = time.perf_counter() - start_seconds
        self._interval_started = time.perf_counter()
        self._interval_tokens = start_tokens
        # Step of the last validation line; only rank 0 knows.
        self.validated_step: int | None = None
        if rank() == 0:
            self.validated_step = _keep_steps(self.path, start_step)

    @property
    def seconds(self) -> float:
        """Training time so far, earlier parts of the run included."""
        return time.perf_counter() - self._started

    def add(self, record: StepRecord) -> None:
        """Remembers a step; nothing is computed yet."""
        self._pending.append(record)

    def flush(self, *, announce: bool) -> None:
        """Writes the remembered steps; `announce` prints a line about them. All ranks call it."""
        if not self._pending:
            return
        records, self._pending = self._pending, []
        sums = torch.stack([r.sums for r in records])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        sums = sums.cpu()
        norms = torch.stack([r.grad_norm for r in records]).tolist()
        skipped = torch.stack([r.skipped for r in records]).tolist()
        self.skipped_steps += round(sum(skipped))
        now = time.perf_counter()
        interval = max(now - self._interval_started, 1e-9)
        rates = self._rates(records, interval)
        self._interval_started, self._interval_tokens = now, records[-1].tokens
        if rank() != 0:
            return
        lines = [
            {
                "step": record.step,
                **losses(step_sums),
                "lr": record.lr,
                "grad_norm": norm,
                **({"skipped": True} if skip else {}),
                "tokens": record.tokens,
                "documents": record.documents,
                "padding_fraction": round(record.padding_fraction, 4),
                **rates,
            }
            for record, step_sums, norm, skip in zip(records, sums, norms, skipped, strict=True)
        ]
        self._append(lines)
        for line in lines:
            self._send(line["step"], line)
        if announce:
            self._announce({**lines[-1], **losses(sums.sum(0))}, interval / len(records))

    def _rates(self, records: Sequence[StepRecord], interval: float) -> dict[str, Any]:
        """Figures of an interval: they stand in each of its lines."""
        ranks = world_size()
        tokens_per_sec = (records[-1].tokens - self._interval_tokens) / interval
        rates = {
            "tokens_per_sec": round(tokens_per_sec, 1),
            "tokens_per_sec_per_process": round(tokens_per_sec / ranks, 1),
            "step_secs": round(interval / len(records), 5),
            "data_wait_fraction": round(sum(r.wait_secs for r in records) / interval, 4),
            "memory_gib": round(memory_gib(), 3),
            "seconds": round(self.seconds, 3),
        }
        full = sum(r.full_flops for r in records) / interval / ranks / 1e12
        causal = sum(r.causal_flops for r in records) / interval / ranks / 1e12
        rates["tflops_per_process"] = round(full, 4)
        if self.peak_tflops is not None:
            rates |= {
                "mfu": round(full / self.peak_tflops, 4),
                "mfu_causal": round(causal / self.peak_tflops, 4),
                "peak_tflops": self.peak_tflops,
            }
        return rates

    def validation(self, step: int, sums_of_task: Mapping[str, Tensor]) -> dict[str, float]:
        """Writes and prints held-out losses; returns the mean of each task.

        Args:
            step: steps done.
            sums_of_task: `[2, M]` sums over all ranks by the task's name; the name of plain validation is
                empty.
        """
        means = {}
        lines = []
        for task, sums in sums_of_task.items():
            figures = losses(sums.cpu())
            means[task] = figures["loss"]
            split = f"{VALIDATION} {task}".strip()
            lines.append({"step": step, "split": split, **figures})
            if rank() == 0:
                shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
                log(f"step {step}: {split} {shown}")
        if rank() == 0 and lines:
            self._append(lines)
            for line in lines:
                name = str(line.pop("split")).replace(" ", "/")
                self._send(step, {f"{name}/{key}": value for key, value in line.items()})
            self.validated_step = step
        self.restart_interval()
        return means

    def restart_interval(self) -> None:
        """Keeps the time since the last line, spent on something else, out of training's rates."""
        self._interval_started = time.perf_counter()

    def _send(self, step: int, figures: Mapping[str, Any]) -> None:
        for logger in self.loggers:
            logger.log(step, {k: float(v) for k, v in figures.items() if k != "step"})

    def close(self) -> None:
        """Lets the loggers send what is left."""
        for logger in self.loggers:
            logger.close()

    def sync(self) -> None:
        """Makes what was written durable, so that no checkpoint is ahead of its metrics."""
        if rank() == 0 and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _append(self, lines: list[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _announce(self, line: dict[str, Any], step_secs: float) -> None:
        by_modality = "".join(
            f" {name.removeprefix('loss_')} {value:.4f}"
            for name, value in line.items()
            if name.startswith("loss_")
        )
        minutes, secs = divmod(round((self.num_steps - line["step"]) * step_secs), 60)
        mfu = ""
        if "mfu" in line:
            mfu = (
                f", MFU {line['mfu']:.1%} (causal {line['mfu_causal']:.1%}) of "
                f"{line['peak_tflops']:g} TFLOP/s"
            )
        log(
            f"step {line['step']}/{self.num_steps}: loss {line['loss']:.4f}{by_modality}"
            f" | lr {line['lr']:.2e} norm {line['grad_norm']:.2f}"
            f" | {line['tokens_per_sec']:,.0f} tokens/s, {line['tokens_per_sec_per_process']:,.0f} a "
            f"process, {_short(line['tflops_per_process'])} TFLOP/s{mfu}, {step_secs * 1e3:.0f} ms/step,"
            f" waiting {line['data_wait_fraction']:.1%}, {line['memory_gib']:.2f} GiB"
            f" | {minutes}:{secs:02} left"
            + (f" | {self.skipped_steps} steps skipped" if self.skipped_steps else "")
        )


def _short(value: float) -> str:
    """Three digits or all before the point: 0.0123, 1.23, 412."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def losses(sums: Tensor) -> dict[str, float]:
    """Mean loss over all targets, and of each modality that has any, from `[2, M]` sums."""
    nll, weight = sums.tolist()
    figures = {"loss": sum(nll) / max(sum(weight), 1e-30)}
    for modality, modality_weight in enumerate(weight):
        if modality_weight > 0:
            figures[f"loss_{modality_key(modality)}"] = nll[modality] / modality_weight
    return figures


def read_losses(folder: Path) -> list[float]:
    """Training losses of a run, in order of steps."""
    text = (folder / METRICS_FILE).read_text(encoding="utf-8")
    lines = map(json.loads, text.splitlines())
    return [line["loss"] for line in lines if "split" not in line]


def write_summary(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Adds the first and last loss to `figures`, writes `summary.json` and returns it all."""
    history = read_losses(folder)
    first, last = history[:SUMMARY_STEPS], history[-SUMMARY_STEPS:]
    summary = {
        "first_loss": sum(first) / len(first),
        "last_loss": sum(last) / len(last),
        **figures,
    }
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def memory_gib() -> float:
    """Peak memory of this process: on the GPU when there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts KiB, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _keep_steps(path: Path, last_step: int) -> int | None:
    """Cuts a metrics file after `last_step`, dropping a line that a kill left half-written.

    Returns:
        The step of the last validation that is kept, None without one.
    """
    if not path.exists():
        return None
    kept, validated = [], None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if record["step"] > last_step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
        if str(record.get("split", "")).startswith(VALIDATION):
            validated = record["step"]
    write_text(path, "".join(kept))
    return validated
