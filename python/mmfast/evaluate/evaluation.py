"""Trains the judge, lets it prove itself on real images, then judges what models have made."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mmfast.errors import UsageError
from mmfast.evaluate.captions import CaptionReader, read_templates
from mmfast.evaluate.judge import Judge, WeakJudgeError
from mmfast.evaluate.records import FloatArray, Record, read_records, stacked_pixels
from mmfast.evaluate.scores import Evaluation, Reading, Score


def evaluate(
    *,
    train_captions: Path,
    test_captions: Path,
    reconstructions: Path | None = None,
    images: Mapping[str, Path] | None = None,
    captions: Path | None = None,
    templates: Path | None = None,
    label_field: str = "label",
    judge_size: int = 16,
    min_judge_accuracy: float = 0.96,
) -> Evaluation:
    """Judges any number of sets of images and captions.

    Args:
        train_captions: manifest of the real images the judge learns from.
        test_captions: manifest of the real images on which it must prove itself.
        reconstructions: manifest of real images after an image tokenizer.
        images: manifests of generated images, by name.
        captions: JSON lines with `image`, `caption` and the label.
        templates: phrasings a caption may follow; needed with `captions`.
        label_field: field of all manifests that holds the label.
        judge_size: side in pixels at which the judge looks at images, in grey.
        min_judge_accuracy: share of real held-out images that the judge must read, 0..1.

    Raises:
        UsageError: a manifest is missing, empty or names an image that cannot be read; a label in it
            that the judge has never seen; `captions` without `templates`.
        WeakJudgeError: the judge reads real held-out images worse than asked.
    """
    if (captions is None) != (templates is None):
        raise UsageError("captions are judged against templates: give both or neither")
    started = time.monotonic()
    # Everything is read before the judge is trained, so that a bad path or image fails at once.
    read = partial(read_records, label_field=label_field)
    train, test = read(train_captions), read(test_captions)
    rebuilt = read(reconstructions) if reconstructions else []
    generated = {name: read(manifest) for name, manifest in (images or {}).items()}
    written = read(captions) if captions else []
    known = {record.label for record in train}
    for records in (test, rebuilt, *generated.values(), written):
        _require_known_labels(records, known)
    reader = CaptionReader(read_templates(templates), known) if templates else None
    train_pixels, test_pixels = (stacked_pixels(records, judge_size) for records in (train, test))
    rebuilt_pixels = stacked_pixels(rebuilt, judge_size) if rebuilt else None
    generated_pixels = {
        name: stacked_pixels(records, judge_size) for name, records in generated.items()
    }

    judge = Judge(train_pixels, [record.label for record in train])
    proof = _judged(judge, test_captions, test, test_pixels)
    if proof.accuracy < min_judge_accuracy:
        raise WeakJudgeError(
            f"the judge reads {proof.accuracy:.3f} of the {len(test)} real held-out images in "
            f"{test_captions}, fewer than {min_judge_accuracy}: its word on generated images would "
            "mean nothing. Give it more training images or a larger --judge-size."
        )
    return Evaluation(
        judge=proof,
        num_train=len(train),
        judge_size=judge_size,
        reconstructions=None
        if reconstructions is None or rebuilt_pixels is None
        else _judged(
            judge, reconstructions, rebuilt, rebuilt_pixels, originals=test_captions.parent
        ),
        images={
            name: _judged(judge, manifest, generated[name], generated_pixels[name])
            for name, manifest in (images or {}).items()
        },
        captions=_read_captions(reader, captions, written) if reader and captions else None,
        seconds=time.monotonic() - started,
    )


def _judged(
    judge: Judge,
    manifest: Path,
    records: list[Record],
    pixels: FloatArray,
    *,
    originals: Path | None = None,
) -> Score:
    readings = [
        Reading(
            image=record.image,
            label=record.label,
            read=label,
            original=_below(originals, record.original),
        )
        for record, label in zip(records, judge.read(pixels), strict=True)
    ]
    return Score(manifest=manifest, readings=readings)


def _below(folder: Path | None, path: str | None) -> str | None:
    """`path` seen from `folder`, None unless it lies below it."""
    if folder is None or path is None or "\0" in path:
        return None
    resolved, folder = Path(path).resolve(), folder.resolve()
    return str(resolved.relative_to(folder)) if resolved.is_relative_to(folder) else None


def _read_captions(reader: CaptionReader, manifest: Path, records: list[Record]) -> Score:
    readings = [
        Reading(
            image=record.image,
            label=record.label,
            read=reader.read(record.caption, expected=record.label),
            caption=record.caption,
        )
        for record in records
    ]
    return Score(manifest=manifest, readings=readings)


def _require_known_labels(records: list[Record], known: set[str]) -> None:
    for record in records:
        if record.label not in known:
            raise UsageError(
                f"{record.where}: label {record.label!r} is not among the training labels "
                f"({', '.join(sorted(known)[:20])})"
            )
