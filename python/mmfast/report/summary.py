"""The figures of a whole run in one flat JSON object, and the same as a table.

Keys, each present only when the run has it:

    classifier_accuracy_real    the judge on real held-out images
    reconstruction_accuracy     real held-out images after the image tokenizer
    image_accuracy              generated images, the first set that was evaluated
    image_accuracy_<name>       every further set, e.g. `image_accuracy_unguided`
    caption_accuracy            captions of real held-out images
    num_generated, num_held_out images behind `image_accuracy` and `classifier_accuracy_real`
    first_loss, last_loss, train_tokens, train_seconds, world_size, seed
                                of the training run
    total_seconds               from the first stage's start until now, or to the last stage's end
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfast.evaluate import Evaluation
from mmfast.files import write_json
from mmfast.report.run import Run, is_figure

_OF_TRAINING = ("first_loss", "last_loss", "train_tokens", "train_seconds", "world_size", "seed")


def summarise(run: Run, *, now: float | None = None) -> dict[str, Any]:
    """The object described above.

    Args:
        run: what was found.
        now: Unix seconds at which the road counts as ended; None takes the end of the last stage.
    """
    summary: dict[str, Any] = {}
    if run.evaluation is not None:
        summary.update(_figures(run.evaluation))
    if run.trainings:
        found = run.trainings[0].summary
        # A loss that is not finite becomes null: JSON has no NaN.
        summary.update(
            {
                key: found[key] if is_figure(found[key]) else None
                for key in _OF_TRAINING
                if key in found
            }
        )
    total = total_seconds(run, now=now)
    if total is not None:
        summary["total_seconds"] = total
    return summary


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    figures: dict[str, Any] = {"classifier_accuracy_real": evaluation.judge.accuracy}
    if evaluation.reconstructions is not None:
        figures["reconstruction_accuracy"] = evaluation.reconstructions.accuracy
    for position, (name, score) in enumerate(evaluation.images.items()):
        suffix = "_" + re.sub(r"\W+", "_", name) if position else ""
        figures["image_accuracy" + suffix] = score.accuracy
    if evaluation.captions is not None:
        figures["caption_accuracy"] = evaluation.captions.accuracy
    for score in list(evaluation.images.values())[:1]:
        figures["num_generated"] = len(score.readings)
    figures["num_held_out"] = len(evaluation.judge.readings)
    return figures


def total_seconds(run: Run, *, now: float | None = None) -> float | None:
    """Wall-clock seconds from the first stage's start to `now`, or to the last stage's end."""
    if not run.stages:
        return None
    end = max(stage.started_at + stage.seconds for stage in run.stages) if now is None else now
    return round(end - min(stage.started_at for stage in run.stages), 1)


def save_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Writes the JSON file."""
    write_json(path, summary)


def print_summary(summary: Mapping[str, Any]) -> None:
    """The same as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="summary", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in summary.items():
        table.add_row(key, figure(value))
    Console().print(table)


def figure(value: Any) -> str:
    """A number as a person reads it: counts with separators, fractions to four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
