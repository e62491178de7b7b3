"""Images through a tokenizer and back, written where a person and a judge can look at them.

<output>/00000.png …     reconstructions at the tokenizer's size, in input order
<output>/manifest.jsonl  {"image": "00000.png", "original": path, …fields passed through}
<output>/metrics.json    PSNR, use of codes, skipped images by reason
<output>/grid.png        originals above their reconstructions
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmfast.console import progress
from mmfast.errors import BadRecordError, UsageError
from mmfast.files import write_json, write_json_lines
from mmfast.tokenizers.fsq_training import psnr_db
from mmfast.tokenizers.images import (
    images_from_tensor,
    open_image,
    pixels_from_tensor,
    side_by_side,
)
from mmfast.tokenizers.protocol import ImageTokenizer

GRID_COLUMNS = 8
GRID_CELL_PIXELS = 64


def reconstruct_images(
    tokenizer: ImageTokenizer,
    items: Sequence[tuple[Path, dict[str, Any]]],
    output: Path,
    *,
    image_size: int | None = None,
    batch_size: int = 32,
    num_grid_images: int = 32,
    skipped: Counter[str] | None = None,
) -> dict[str, Any]:
    """Encodes and decodes the images of `items` (path, fields for the manifest); returns the metrics.

    Args:
        tokenizer: which one.
        items: path of each image, and what its line of the manifest shall carry.
        output: folder to write to.
        image_size: side in pixels, a multiple of the tokenizer's factor; as trained by default.
        batch_size: images at a time.
        num_grid_images: how many `grid.png` shows.
        skipped: counts by reason of what was left out of `items` already; bad images are added.

    Raises:
        UsageError: no image could be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    size = image_size if image_size is not None else tokenizer.image_size
    skipped = Counter() if skipped is None else skipped
    counts = [np.zeros(n, dtype=np.int64) for n in tokenizer.codebook_sizes]
    ratios: list[float] = []
    manifest: list[dict[str, Any]] = []
    pairs: list[tuple[Image.Image, Image.Image]] = []
    with progress("reconstructing", total=len(items), unit="images") as job:
        for first in range(0, len(items), batch_size):
            part = items[first : first + batch_size]
            tensors, kept = [], []
            for path, fields in part:
                try:
                    tensors.append(tokenizer.preprocess(open_image(path), size))
                    kept.append((path, fields))
                except BadRecordError as error:
                    skipped[error.reason] += 1
            job.advance(len(part))
            if not kept:
                continue
            x = torch.stack(tensors)
            codes = tokenizer.encode(x)
            y = tokenizer.decode(codes).cpu()
            for level, grid in enumerate(codes):
                counts[level] += np.bincount(
                    grid.cpu().numpy().ravel(), minlength=len(counts[level])
                )
            ratios += psnr_db(pixels_from_tensor(y), pixels_from_tensor(x))
            for (path, fields), before, after in zip(
                kept, images_from_tensor(x), images_from_tensor(y), strict=True
            ):
                name = f"{len(manifest):05}.png"
                after.save(output / name)
                manifest.append({**fields, "image": name, "original": str(path)})
                if len(pairs) < num_grid_images:
                    pairs.append((_enlarged(before), _enlarged(after)))
    if not manifest:
        raise UsageError(f"none of {len(items)} images can be read: {dict(skipped)}")
    metrics = {
        "num_images": len(manifest),
        "skipped": dict(skipped),
        "psnr_db": float(np.mean(ratios)),
        "psnr_db_worst": float(np.min(ratios)),
        "codes_used": [int((count > 0).sum()) for count in counts],
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    write_json_lines(output / "manifest.jsonl", manifest)
    write_json(output / "metrics.json", metrics)
    rows: list[list[Image.Image]] = []
    for first in range(0, len(pairs), GRID_COLUMNS):
        columns = pairs[first : first + GRID_COLUMNS]
        rows += [[before for before, _ in columns], [after for _, after in columns]]
    side_by_side(rows).save(output / "grid.png")
    return metrics


def _enlarged(image: Image.Image) -> Image.Image:
    """Small images with visible pixels, large ones as they are."""
    factor = max(1, GRID_CELL_PIXELS // image.height)
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
