"""What a person sees while a long job runs: log lines and progress, on stderr, rank 0 only.

On a terminal a live bar with rate and remaining time; elsewhere (a log file, CI, `NO_COLOR` set or
not) one plain line every few seconds. `MMFAST_NO_PROGRESS=1` silences both. Results go to stdout and
never through here.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
PLAIN_LINE_SECS = 5.0


class Progress(Protocol):
    """Handle of a running job."""

    def advance(self, amount: float = 1, **figures: Any) -> None:
        """Adds `amount` units of work; `figures` (e.g. `loss=1.2`) are shown beside the rate."""


def log(text: str) -> None:
    """One line on stderr, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def track(items: Iterable[T], *, total: int | None, description: str, unit: str) -> Iterator[T]:
    """Yields `items` while showing progress, e.g. `track(files, total=len(files), …, unit="images")`."""
    with progress(description, total=total, unit=unit) as job:
        for item in items:
            yield item
            job.advance()


@contextmanager
def progress(description: str, *, total: float | None, unit: str) -> Iterator[Progress]:
    """Shows a job of `total` units; the handle's `advance` reports work done."""
    if os.environ.get("RANK", "0") != "0" or os.environ.get("MMFAST_NO_PROGRESS"):
        yield _Silent()
    elif sys.stderr.isatty():
        with _live(description, total, unit) as job:
            yield job
    else:
        job = _Plain(description, total, unit)
        yield job
        job.line()


class _Silent:
    def advance(self, amount: float = 1, **figures: Any) -> None:
        pass


class _Plain:
    """A line every few seconds."""

    def __init__(self, description: str, total: float | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0.0
        self.figures: dict[str, Any] = {}
        self.started = self.last = time.monotonic()

    def advance(self, amount: float = 1, **figures: Any) -> None:
        self.done += amount
        self.figures.update(figures)
        if time.monotonic() - self.last >= PLAIN_LINE_SECS:
            self.line()

    def line(self) -> None:
        self.last = time.monotonic()
        elapsed = max(self.last - self.started, 1e-9)
        rate = self.done / elapsed
        of_total = f"/{self.total:,.0f}" if self.total else ""
        remaining = (
            f", {_duration((self.total - self.done) / rate)} left"
            if self.total and rate > 0
            else ""
        )
        figures = "".join(f", {name} {_figure(value)}" for name, value in self.figures.items())
        log(
            f"{self.description}: {self.done:,.0f}{of_total} {self.unit}, {rate:,.1f} {self.unit}/s, "
            f"{_duration(elapsed)}{remaining}{figures}"
        )


@contextmanager
def _live(description: str, total: float | None, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, rate="", figures="")

        class Live:
            def advance(self, amount: float = 1, **figures: Any) -> None:
                state = bars.tasks[task]
                elapsed = state.elapsed or 1e-9
                shown = " ".join(f"{name} {_figure(value)}" for name, value in figures.items())
                rate = f"{(state.completed + amount) / elapsed:,.1f} {unit}/s"
                bars.update(
                    task, advance=amount, rate=rate, figures=shown or state.fields["figures"]
                )

        yield Live()


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, secs = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
