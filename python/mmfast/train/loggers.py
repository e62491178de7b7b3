"""Sends a run's figures to TensorBoard, Weights & Biases or Trackio, beside `metrics.jsonl`.

Each is imported only when a run asks for it, on rank 0.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from mmfast.errors import UsageError

PROJECT = "mmfast"


class Logger(Protocol):
    """One destination."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends a step's figures."""

    def close(self) -> None:
        """Sends what is left."""


def open_loggers(names: Sequence[str], folder: Path, *, config: Mapping[str, Any]) -> list[Logger]:
    """The loggers of a run.

    Args:
        names: `tensorboard`, `wandb`, `trackio`.
        folder: run folder; its name is the run's.
        config: what the run was started with, shown beside its curves.

    Raises:
        UsageError: a package is not installed.
    """
    return [_OPENERS[name](folder, config) for name in names]


class _TensorBoard:
    def __init__(self, folder: Path, _config: Mapping[str, Any]) -> None:
        _require("tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(log_dir=str(folder / "tensorboard"))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Tracked:
    """W&B and Trackio share their three functions."""

    def __init__(
        self, package: str, folder: Path, config: Mapping[str, Any], **options: Any
    ) -> None:
        self.package = _require(package)
        self.package.init(project=PROJECT, name=folder.name, config=dict(config), **options)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.package.log(dict(figures), step=step)

    def close(self) -> None:
        self.package.finish()


def _wandb(folder: Path, config: Mapping[str, Any]) -> Logger:
    return _Tracked("wandb", folder, config, dir=str(folder), resume="allow")


def _trackio(folder: Path, config: Mapping[str, Any]) -> Logger:
    return _Tracked("trackio", folder, config)


def _require(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(
            f"train.loggers names {package}, which is not installed: `pip install mmfast[log]`, or take it "
            "off the list; metrics.jsonl is written in any case"
        ) from error


_OPENERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _wandb, "trackio": _trackio}
