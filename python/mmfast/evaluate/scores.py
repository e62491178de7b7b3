"""What an evaluation found, as plain data: every reading, counts by label, and the JSON they become.

`evaluation.json` holds: `format_version`, `judge` (its accuracy on real held-out images first of
all), `reconstructions`, `images` (named sets, in the order given), `captions`, `seconds`. Each part
carries all its readings, so that a report can show what the judge saw. Manifests are named relative
to the folder of the JSON file.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfast.errors import CorruptDataError
from mmfast.files import read_json_object, write_json

FORMAT_VERSION = 1
_NORMAL_95 = 1.959964


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """One image or caption.

    Attributes:
        image: path as its manifest has it.
        label: what it ought to show.
        read: what the judge saw, or the label a caption names (None: no known phrasing).
        caption: the caption that was read, None for images.
        original: of a reconstruction, the real image's path seen from the folder of the judge's
            manifest; None when it is not known or not below that folder.
    """

    image: str
    label: str
    read: str | None
    caption: str | None = None
    original: str | None = None

    @property
    def right(self) -> bool:
        """Whether what was read is what ought to be there."""
        return self.read == self.label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A set of readings of one manifest."""

    manifest: Path
    readings: Sequence[Reading]

    @property
    def num_right(self) -> int:
        """How many are right."""
        return sum(reading.right for reading in self.readings)

    @property
    def accuracy(self) -> float:
        """Share that is right, 0..1."""
        return self.num_right / len(self.readings)

    @property
    def well_formed(self) -> float:
        """Share of which anything could be read at all, 0..1; 1 for images."""
        return sum(reading.read is not None for reading in self.readings) / len(self.readings)

    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson, 1927): how much chance there is in the figure."""
        n, p, z = len(self.readings), self.accuracy, _NORMAL_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def confusion(self) -> dict[str, dict[str, int]]:
        """Counts by label, then by what was read (`""`: nothing), both in sorted order."""
        counts: dict[str, dict[str, int]] = {}
        for reading in self.readings:
            row = counts.setdefault(reading.label, {})
            row[reading.read or ""] = row.get(reading.read or "", 0) + 1
        return {label: dict(sorted(row.items())) for label, row in sorted(counts.items())}

    def to_dict(self, relative_to: Path) -> dict[str, Any]:
        """The JSON form."""
        confusion = self.confusion()
        return {
            "manifest": _relative(self.manifest, relative_to),
            "accuracy": self.accuracy,
            "interval_95": list(self.interval()),
            "num": len(self.readings),
            "num_right": self.num_right,
            "per_label": {
                label: {"num": sum(row.values()), "num_right": row.get(label, 0)}
                for label, row in confusion.items()
            },
            "confusion": confusion,
            "readings": [
                {
                    key: value
                    for key, value in dataclasses.asdict(reading).items()
                    if key not in ("caption", "original") or value is not None
                }
                | {"right": reading.right}
                for reading in self.readings
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], relative_to: Path) -> "Score":
        """Reads the JSON form; `ValueError`, `KeyError` or `TypeError` for anything else."""
        readings = [
            Reading(
                image=str(r["image"]),
                label=str(r["label"]),
                read=None if r["read"] is None else str(r["read"]),
                caption=str(r["caption"]) if "caption" in r else None,
                original=str(r["original"]) if "original" in r else None,
            )
            for r in data["readings"]
        ]
        if not readings:
            raise ValueError("a score without readings")
        return cls(manifest=relative_to / str(data["manifest"]), readings=readings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything one evaluation found.

    Attributes:
        judge: the judge's readings of real held-out images.
        num_train: real images it was trained on.
        judge_size: their side in pixels, as the judge sees them.
        reconstructions: images that went through an image tokenizer, or None.
        images: generated images, by the name of their set.
        captions: captions of real images, or None.
        seconds: time it took.
    """

    judge: Score
    num_train: int
    judge_size: int
    reconstructions: Score | None
    images: dict[str, Score]
    captions: Score | None
    seconds: float

    def save(self, path: Path) -> None:
        """Writes the JSON file."""
        folder = path.parent
        data: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "judge": {
                "classifier": "support vectors, RBF kernel, on grey pixels",
                "size": self.judge_size,
                "num_train": self.num_train,
                **self.judge.to_dict(folder),
            },
            "images": {name: score.to_dict(folder) for name, score in self.images.items()},
            "seconds": round(self.seconds, 3),
        }
        if self.reconstructions is not None:
            data["reconstructions"] = self.reconstructions.to_dict(folder)
        if self.captions is not None:
            data["captions"] = {
                "well_formed": self.captions.well_formed,
                **self.captions.to_dict(folder),
            }
        write_json(path, data)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Reads what `save` wrote; figures are counted anew from the readings.

        Raises:
            CorruptDataError: the file is not an evaluation, or of another format version.
        """
        folder = path.parent
        try:
            data = read_json_object(path)
            if data["format_version"] != FORMAT_VERSION:
                raise CorruptDataError(
                    f"{path}: evaluation format {data['format_version']!r} is not {FORMAT_VERSION}; "
                    "evaluate again"
                )
            optional = {
                name: Score.from_dict(data[name], folder) if name in data else None
                for name in ("reconstructions", "captions")
            }
            return cls(
                judge=Score.from_dict(data["judge"], folder),
                num_train=int(data["judge"]["num_train"]),
                judge_size=int(data["judge"]["size"]),
                images={
                    str(name): Score.from_dict(score, folder)
                    for name, score in data["images"].items()
                },
                seconds=float(data["seconds"]),
                **optional,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptDataError(
                f"{path} is not an evaluation: {type(error).__name__}: {error}"
            ) from error


def _relative(path: Path, folder: Path) -> str:
    """`path` seen from `folder` when it lies below it, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
