"""Finds and reads what the verbs left under a run's folder, by documented file names.

    stages.jsonl        one line per stage of the road: {"stage", "command", "started_at", "seconds"}
                        (`started_at` in Unix seconds), written by whatever drove the run
    training.json       beside an image or text tokenizer: what its training reached
    *.prepare.json      beside a dataset: counts, skips by reason, seconds
    config.yaml, env.json, metrics.jsonl, summary.json
                        a training run
    generate.json, manifest.jsonl
                        beside generated images, one folder per set
    evaluation.json     the judge's readings; names the manifests it read

Everything is optional: a report shows what is there. A file that is there and cannot be read is an
error, never a gap.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmfast.errors import CorruptDataError, UsageError
from mmfast.evaluate import Evaluation, Reading, Score
from mmfast.files import read_json_object

# Folders that hold many files and none of the above.
_UNSEEN = frozenset({"checkpoints", "model", "shards"})
_MAX_DEPTH = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the road: `started_at` in Unix seconds, `command` as a person would type it."""

    name: str
    command: str
    started_at: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A training run: its folder, and its files parsed (empty where one is missing)."""

    folder: Path
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    environment: dict[str, Any]
    config: str

    def losses(self, key: str, *, split: str = "train") -> list[tuple[float, float]]:
        """(step, value) of one figure where it is finite, in training lines or another split's."""
        return [
            (float(line["step"]), float(line[key]))
            for line in self.metrics
            if line.get("split", "train") == split
            and is_figure(line.get(key))
            and is_figure(line.get("step"))
        ]

    def loss_names(self) -> list[str]:
        """`loss` and every `loss_…` that occurs, the total first, the rest sorted."""
        names = {key for line in self.metrics for key in line if key.startswith("loss")}
        return sorted(names, key=lambda name: (name != "loss", name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that was found. Dictionaries are keyed by the path of the file's folder or stem.

    `unjudged` holds generated images that no evaluation has seen, as if all were read right; their
    label is the record's `label`, or the prompt.
    """

    root: Path
    stages: list[Stage]
    tokenizers: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    trainings: list[Training]
    generations: dict[str, dict[str, Any]]
    evaluation: Evaluation | None
    unjudged: dict[str, Score]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report on."""
        return not (
            self.stages
            or self.tokenizers
            or self.datasets
            or self.trainings
            or self.generations
            or self.evaluation
        )


def read_run(root: Path) -> Run:
    """Collects a run.

    Raises:
        UsageError: `root` is no folder, or holds none of the files above.
        CorruptDataError: one of them is not what it should be; the text names it.
    """
    if not root.is_dir():
        raise UsageError(f"there is no run folder {root}")
    files = sorted(_walk(root, _MAX_DEPTH), key=lambda path: (len(path.parts), path))
    by_name: dict[str, list[Path]] = {}
    for path in files:
        by_name.setdefault(path.name, []).append(path)

    def found(name: str) -> list[Path]:
        return by_name.get(name, [])

    def folder_name(path: Path) -> str:
        return str(path.parent.relative_to(root))

    evaluations = found("evaluation.json")
    evaluation = Evaluation.load(evaluations[0]) if evaluations else None
    judged = (
        {score.manifest.resolve() for score in evaluation.images.values()} if evaluation else set()
    )
    manifests = [path.with_name("manifest.jsonl") for path in found("generate.json")]
    run = Run(
        root=root,
        stages=[stage for path in found("stages.jsonl")[:1] for stage in _stages(path)],
        tokenizers={folder_name(path): read_json_object(path) for path in found("training.json")},
        datasets={
            str(path.relative_to(root)).removesuffix(".prepare.json"): read_json_object(path)
            for path in files
            if path.name.endswith(".prepare.json")
        },
        trainings=[_training(path.parent) for path in found("metrics.jsonl")],
        generations={folder_name(path): read_json_object(path) for path in found("generate.json")},
        evaluation=evaluation,
        unjudged={
            folder_name(path): score
            for path in manifests
            if path.resolve() not in judged and (score := _unjudged(path)) is not None
        },
    )
    if run.is_empty:
        raise UsageError(
            f"{root} holds nothing to report on; looked for stages.jsonl, training.json, "
            "*.prepare.json, metrics.jsonl, generate.json and evaluation.json"
        )
    return run


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects, one a line; a last line that was cut off while being written is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if line_number == len(lines):
                break
            raise CorruptDataError(f"{path}:{line_number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorruptDataError(f"{path}:{line_number}: expected a JSON object")
        records.append(record)
    return records


def _stages(path: Path) -> list[Stage]:
    try:
        return [
            Stage(
                name=str(line["stage"]),
                command=str(line.get("command", "")),
                started_at=_finite(line["started_at"]),
                seconds=_finite(line["seconds"]),
            )
            for line in read_json_lines(path)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            f"{path}: a stage needs stage, started_at and seconds; {type(error).__name__}: {error}"
        ) from error


def _unjudged(manifest: Path) -> Score | None:
    if not manifest.is_file():
        return None
    readings = []
    for record in read_json_lines(manifest):
        label = str(record.get("label", record.get("prompt", "")))
        readings.append(Reading(image=str(record.get("image", "")), label=label, read=label))
    return Score(manifest=manifest, readings=readings) if readings else None


def _training(folder: Path) -> Training:
    def optional(name: str) -> dict[str, Any]:
        path = folder / name
        return read_json_object(path) if path.is_file() else {}

    config = folder / "config.yaml"
    return Training(
        folder=folder,
        metrics=read_json_lines(folder / "metrics.jsonl"),
        summary=optional("summary.json"),
        environment=optional("env.json"),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and entry.name.endswith((".json", ".jsonl")):
                yield Path(entry.path)
            elif depth and entry.is_dir(follow_symlinks=False) and entry.name not in _UNSEEN:
                yield from _walk(Path(entry.path), depth - 1)


def _finite(value: Any) -> float:
    if not is_figure(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def is_figure(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
