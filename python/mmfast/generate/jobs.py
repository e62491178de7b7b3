"""Whole generation jobs: files of prompts or images in, files of images or captions out.

Outputs appear as a whole: files are written under a temporary name and renamed, and the list of them
(`manifest.jsonl`, or the captions file) comes last, so that it never names what is not there. Under
`torchrun` all ranks generate and rank 0 writes.

    images    <output>/00000.png …, generate.json, manifest.jsonl {"image", "prompt", "seed", …}
    captions  <output> {"image", "caption", …}, <output stem>.generate.json
"""

import collections
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmfast.console import log
from mmfast.distributed import barrier, rank, world_size
from mmfast.errors import BadRecordError, CorruptDataError, UsageError
from mmfast.generate.model import Model
from mmfast.generate.requests import Result, SamplingSettings
from mmfast.tokenizers.images import image_path_under, list_images, open_image

MANIFEST_FILE = "manifest.jsonl"
REPORT_FILE = "generate.json"
JsonObject = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How a job generates; written to its report.

    Attributes:
        sampling: of the generated modality.
        guidance_scale: of images; 1 is none.
        max_ids: room for a caption.
        seed: item i uses seed + i.
        num_rows: rows of the engine's batch.
    """

    sampling: SamplingSettings
    guidance_scale: float = 1.0
    max_ids: int = 64
    seed: int = 0
    num_rows: int


def read_prompts(path: Path) -> list[JsonObject]:
    """Records of a JSON-lines file, each an object with a text `prompt`."""
    records = read_json_lines(path)
    for line_number, record in enumerate(records, start=1):
        if not isinstance(record.get("prompt"), str):
            raise UsageError(
                f"{path}, record {line_number}: field `prompt` should be a text, found "
                f"{record.get('prompt')!r}; the record has {', '.join(sorted(record)) or 'no fields'}"
            )
    return records


def read_json_lines(path: Path) -> list[JsonObject]:
    """Objects of a JSON-lines file, at least one; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{path} is not UTF-8 text: {error}") from error
    records = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorruptDataError(f"{path}:{line_number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorruptDataError(
                f"{path}:{line_number}: expected a JSON object, found {line[:40]!r}"
            )
        records.append(record)
    if not records:
        raise UsageError(f"{path} holds no records")
    return records


def generate_images(
    model: Model, prompts: Sequence[JsonObject], output: Path, settings: JobSettings
) -> JsonObject:
    """Draws an image for each prompt record; returns the report that is written beside them.

    Fields of a record other than `image` and `seed` pass through to the manifest.
    """
    requests = [
        model.drawing_request(
            record["prompt"],
            guidance_scale=settings.guidance_scale,
            sampling=settings.sampling,
            seed=settings.seed + i,
        )
        for i, record in enumerate(prompts)
    ]
    _start_output(output, output / MANIFEST_FILE)
    started = time.monotonic()
    results = model.generate(requests, num_rows=settings.num_rows)
    seconds = time.monotonic() - started
    report = _report(model, settings, results, seconds)
    if rank() == 0:
        manifest = []
        for i, image in enumerate(model.images_from_results(results)):
            name = f"{i:05}.png"
            _write_image(image, output / name)
            manifest.append(prompts[i] | {"image": name, "seed": settings.seed + i})
        _write_text(output / REPORT_FILE, json.dumps(report, indent=2) + "\n")
        _write_text(output / MANIFEST_FILE, _json_lines(manifest))
    barrier()
    return report


def generate_captions(
    model: Model, images: Path, output: Path, settings: JobSettings
) -> JsonObject:
    """Captions every image of a folder or manifest; returns the report written beside the output.

    Images that cannot be read are left out, counted by reason and named on stderr. A manifest's
    fields pass through; its own `caption` becomes `reference`.
    """
    records, pictures, skipped = _open_images(images)
    requests = [
        model.captioning_request(
            codes, sampling=settings.sampling, max_ids=settings.max_ids, seed=settings.seed + i
        )
        for i, codes in enumerate(model.codes_from_images(pictures))
    ]
    _start_output(output.parent, output)
    started = time.monotonic()
    results = model.generate(requests, num_rows=settings.num_rows)
    seconds = time.monotonic() - started
    report = _report(model, settings, results, seconds) | {"skipped": dict(skipped)}
    if rank() == 0:
        captions = model.captions_from_results(results)
        lines = []
        for record, caption in zip(records, captions, strict=True):
            kept = {("reference" if k == "caption" else k): v for k, v in record.items()}
            lines.append(kept | {"caption": caption})
        report_path = output.with_name(f"{output.stem}.{REPORT_FILE}")
        _write_text(report_path, json.dumps(report, indent=2) + "\n")
        _write_text(output, _json_lines(lines))
    barrier()
    return report


def image_records(images: Path) -> tuple[Path, list[JsonObject]]:
    """Root and records, each with an `image` path under it, of a folder or a JSON-lines file."""
    if images.is_dir():
        names = [str(path.relative_to(images)) for path in list_images(images)]
        if not names:
            raise UsageError(f"there are no images in {images}")
        return images.resolve(), [{"image": name} for name in names]
    records = read_json_lines(images)
    for line_number, record in enumerate(records, start=1):
        if not isinstance(record.get("image"), str):
            raise UsageError(f"{images}, record {line_number}: field `image` should be a path")
    return images.parent.resolve(), records


def _open_images(
    images: Path,
) -> tuple[list[JsonObject], list[Image.Image], collections.Counter[str]]:
    root, records = image_records(images)
    kept, pictures = [], []
    skipped: collections.Counter[str] = collections.Counter()
    for record in records:
        try:
            pictures.append(open_image(image_path_under(root, record["image"])))
            kept.append(record)
        except BadRecordError as error:
            skipped[error.reason] += 1
            log(f"skipped ({error.reason}): {error}")
    if not kept:
        raise UsageError(f"none of the {len(records)} images of {images} could be read")
    return kept, pictures, skipped


def _start_output(folder: Path, listing: Path) -> None:
    """Makes the folder, and removes an earlier run's list before its files are replaced."""
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        listing.unlink(missing_ok=True)
    barrier()


def _report(
    model: Model, settings: JobSettings, results: Sequence[Result], seconds: float
) -> JsonObject:
    num_ids = sum(len(result.ids) for result in results)
    return {
        "model": str(model.folder),
        "settings": dataclasses.asdict(settings),
        "num_items": len(results),
        "num_ids": num_ids,
        "num_cut": sum(result.finish == "length" for result in results),
        "seconds": round(seconds, 3),
        "ids_per_sec": round(num_ids / max(seconds, 1e-9), 1),
        "world_size": world_size(),
    }


def _json_lines(records: Sequence[JsonObject]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_image(image: Image.Image, path: Path) -> None:
    _write(path, lambda temporary: image.save(temporary, format="PNG"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
