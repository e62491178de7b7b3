"""Sends a run's figures to TensorBoard, Weights & Biases or Trackio, beside `metrics.jsonl`.

Each is imported only when a run asks for it, on rank 0.
"""

import secrets
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


def open_loggers(
    names: Sequence[str], folder: Path, *, config: Mapping[str, Any], start_step: int = 0
) -> list[Logger]:
    """The loggers of a run; one that goes on from a checkpoint continues the curves it had.

    Args:
        names: `tensorboard`, `wandb`, `trackio`.
        folder: run folder; its name is the run's.
        config: what the run was started with, shown beside its curves.
        start_step: steps that are done; TensorBoard forgets what it has of later ones.

    Raises:
        UsageError: a package is not installed.
    """
    return [_OPENERS[name](folder, config, start_step) for name in names]


class _TensorBoard:
    def __init__(self, folder: Path, _config: Mapping[str, Any], start_step: int) -> None:
        _require("tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(log_dir=str(folder / "tensorboard"), purge_step=start_step + 1)

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


def _wandb(folder: Path, config: Mapping[str, Any], start_step: int) -> Logger:
    # W&B goes on with a run by its id, which is the folder's for as long as its run lasts.
    id_file = folder / "wandb_id"
    if start_step == 0 or not id_file.is_file():
        id_file.write_text(secrets.token_hex(8), encoding="utf-8")
    run_id = id_file.read_text(encoding="utf-8")
    return _Tracked("wandb", folder, config, dir=str(folder), id=run_id, resume="allow")


def _trackio(folder: Path, config: Mapping[str, Any], start_step: int) -> Logger:
    # Trackio goes on with a run by its name.
    return _Tracked("trackio", folder, config, resume="allow" if start_step else "never")


def _require(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(
            f"train.loggers names {package}, which is not installed: `pip install mmfast[log]`, or take it "
            "off the list; metrics.jsonl is written in any case"
        ) from error


_OPENERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _wandb, "trackio": _trackio}
