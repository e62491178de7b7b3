"""Whole generation jobs: files of prompts or images in, files of images or captions out.

The list of files (`manifest.jsonl`, or the captions file) comes last, so that it never names what is not
there. Under `torchrun` all ranks encode and generate, and rank 0 writes.

    images    <output>/00000.png …, generate.json, manifest.jsonl {"image", "prompt", "seed", …}
    captions  <output> {"image", "caption", …}, <output stem>.generate.json
"""

import collections
import dataclasses
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfast.console import log, progress
from mmfast.distributed import barrier, rank, world_size
from mmfast.errors import BadRecordError, UsageError
from mmfast.files import read_json_lines, write_bytes, write_json, write_json_lines
from mmfast.generate.model import IMAGE_BATCH, Model
from mmfast.generate.requests import Request, Result, SamplingSettings
from mmfast.generate.sharing import compute_shared
from mmfast.generate.tasks import Codes
from mmfast.sampling import SamplingParams
from mmfast.tokenizers.images import image_path_under, list_images, open_image

MANIFEST_FILE = "manifest.jsonl"
REPORT_FILE = "generate.json"
JsonObject = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How a job generates; written to its report.

    A record's own `negative_prompt`, `ratio`, `grid`, `guidance_scale`, `question` and `seed` come first.

    Attributes:
        sampling: by modality, see `Model.drawing_sampling` and `Model.answering_sampling`.
        guidance_scale: of images; 1 is none, None is the recipe's.
        negative_prompt: what guidance leads away from; None is the recipe's.
        ratio: of images, width to height; None leaves it to the grid or the recipe.
        grid: of images, rows and columns of codes.
        question: asked about images; None asks for captions.
        max_ids: room for a text; None is the recipe's.
        num_candidates: pictures drawn for each prompt, of which the likeliest is kept.
        seed: item i uses seed + i.
        num_rows: rows of the engine's batch.
    """

    sampling: Mapping[str, SamplingSettings]
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    ratio: str | None = None
    grid: tuple[int, int] | None = None
    question: str | None = None
    max_ids: int | None = None
    num_candidates: int = 1
    seed: int = 0
    num_rows: int

    def __post_init__(self) -> None:
        for settings in self.sampling.values():
            try:
                SamplingParams.prepare(
                    1, guidance_scale=self.guidance_scale or 1.0, **settings.given()
                )
            except (ValueError, TypeError) as error:
                raise UsageError(f"these settings cannot be sampled with: {error}") from error
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} must lie in 0..2^63-1")


def read_prompts(path: Path) -> list[JsonObject]:
    """Records of a JSON-lines file, each an object with a text `prompt`."""
    records = _records(path)
    for line_number, record in records:
        if not isinstance(record.get("prompt"), str):
            raise UsageError(
                f"{path}:{line_number}: field `prompt` should be a text, found "
                f"{record.get('prompt')!r}; the record has {', '.join(sorted(record)) or 'no fields'}"
            )
    return [record for _, record in records]


def _records(path: Path) -> list[tuple[int, JsonObject]]:
    """Line numbers and objects of a JSON-lines file, at least one."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    records = list(read_json_lines(path))
    if not records:
        raise UsageError(f"{path} holds no records")
    return records


def generate_images(
    model: Model, prompts: Sequence[JsonObject], output: Path, settings: JobSettings
) -> JsonObject:
    """Draws an image for each prompt record; returns the report that is written beside them.

    Fields of a record other than `image` and `seed` pass through to the manifest.
    """
    requests = [drawing_request(model, record, i, settings) for i, record in enumerate(prompts)]
    # Before an earlier run's manifest goes, and on every rank: one that fails alone strands the others.
    model.check(requests, num_rows=settings.num_rows)
    _start_output(output, output / MANIFEST_FILE)
    started = time.monotonic()
    results = model.generate(
        requests, num_candidates=settings.num_candidates, num_rows=settings.num_rows
    )
    seconds = time.monotonic() - started
    report = _report(model, settings, results, seconds)
    if rank() == 0:
        manifest = []
        for i, image in enumerate(model.images_from_results(requests, results)):
            name = f"{i:05}.png"
            _write_image(image, output / name)
            manifest.append(prompts[i] | {"image": name, "seed": requests[i].seed})
        write_json(output / REPORT_FILE, report)
        write_json_lines(output / MANIFEST_FILE, manifest)
    barrier()
    return report


def drawing_request(
    model: Model, record: JsonObject, number: int, settings: JobSettings
) -> Request:
    """The request of the `number`-th prompt record."""
    grid = record.get("grid", settings.grid)
    try:
        return model.drawing_request(
            record["prompt"],
            negative_prompt=record.get("negative_prompt", settings.negative_prompt),
            ratio=record.get("ratio", settings.ratio),
            grid=None if grid is None else (int(grid[0]), int(grid[1])),
            guidance_scale=record.get("guidance_scale", settings.guidance_scale),
            sampling=settings.sampling,
            seed=int(record.get("seed", settings.seed + number)),
        )
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"prompt {number}: {error}; the record is {record}") from error


def generate_captions(
    model: Model, images: Path | Sequence[Path], output: Path, settings: JobSettings
) -> JsonObject:
    """Captions every image of a folder, a manifest or a list; returns the report written beside the output.

    Images that cannot be read are left out, counted by reason and named on stderr. A manifest's
    fields pass through; its own `caption` becomes `reference`. Record i uses seed + i, whatever was
    left out before it.
    """
    root, records = image_records(images)
    codes, skipped = _encoded_images(model, root, records)
    requests = [
        model.answering_request(
            grids,
            question=records[number].get("question", settings.question),
            sampling=settings.sampling,
            max_ids=settings.max_ids,
            seed=settings.seed + number,
        )
        for number, grids in codes.items()
    ]
    model.check(requests, num_rows=settings.num_rows, numbers=list(codes))
    _start_output(output.parent, output)
    started = time.monotonic()
    results = model.generate(requests, num_rows=settings.num_rows)
    seconds = time.monotonic() - started
    report = _report(model, settings, results, seconds) | {"skipped": dict(skipped)}
    if rank() == 0:
        captions = model.texts_from_results(results)
        lines = []
        for number, caption in zip(codes, captions, strict=True):
            fields = records[number].items()
            kept = {("reference" if name == "caption" else name): v for name, v in fields}
            lines.append(kept | {"caption": caption})
        report_path = output.with_name(f"{output.stem}.{REPORT_FILE}")
        write_json(report_path, report)
        write_json_lines(output, lines)
    barrier()
    return report


def image_records(images: Path | Sequence[Path]) -> tuple[Path, list[JsonObject]]:
    """Root and records, each with an `image` path under it, of a folder, JSON lines or a list."""
    if not isinstance(images, Path):
        if absent := [str(path) for path in images if not path.is_file()]:
            raise UsageError(f"there is no file {absent[0]}")
        paths = [path.resolve() for path in images]
        root = Path(os.path.commonpath([path.parent for path in paths]))
        return root, [{"image": str(path.relative_to(root))} for path in paths]
    if images.is_dir():
        names = [str(path.relative_to(images)) for path in list_images(images)]
        if not names:
            raise UsageError(f"there are no images in {images}")
        return images.resolve(), [{"image": name} for name in names]
    records = _records(images)
    for line_number, record in records:
        if not isinstance(record.get("image"), str):
            raise UsageError(f"{images}:{line_number}: field `image` should be a path")
    return images.parent.resolve(), [record for _, record in records]


def _encoded_images(
    model: Model, root: Path, records: Sequence[JsonObject]
) -> tuple[dict[int, list[Codes]], collections.Counter[str]]:
    """Codes by record number, one [h, w] a level, and counts of the images that cannot be read.

    Ranks share batches whose borders are fixed by record number, so the number of ranks moves no
    code; of decoded images each rank holds one at a time.
    """

    def encode(batch: int) -> list[Any]:
        numbers: list[int] = []
        problems: list[tuple[str, str]] = []
        first = batch * IMAGE_BATCH
        chosen = records[first : first + IMAGE_BATCH]

        def pictures() -> Iterator[Image.Image]:
            for number, record in enumerate(chosen, start=first):
                try:
                    picture = open_image(image_path_under(root, record["image"]))
                except BadRecordError as error:
                    problems.append((error.reason, str(error)))
                    continue
                numbers.append(number)
                yield picture

        codes = model.codes_from_images(pictures())
        job.advance(len(chosen))
        return [numbers, [[grid.tolist() for grid in grids] for grids in codes], problems]

    num_batches = -(-len(records) // IMAGE_BATCH)
    with progress("encoding", total=len(records), unit="images") as job:
        batches = compute_shared(num_batches, encode)
    codes: dict[int, list[Codes]] = {}
    skipped: collections.Counter[str] = collections.Counter()
    for numbers, images, problems in batches:
        for number, grids in zip(numbers, images, strict=True):
            codes[number] = [np.array(grid, dtype=np.int64) for grid in grids]
        for reason, text in problems:
            skipped[reason] += 1
            log(f"skipped ({reason}): {text}")
    if not codes:
        raise UsageError(f"none of the {len(records)} images under {root} could be read")
    return codes, skipped


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


def _write_image(image: Image.Image, path: Path) -> None:
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    write_bytes(path, encoded.getvalue())
