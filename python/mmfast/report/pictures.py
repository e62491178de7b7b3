"""Pictures of a report: which images stand where, as data URIs for the page and as one grid PNG.

A grid has a row per label and a column per sample, in the order of the manifest; images that the
judge read as something else are framed. Small images are enlarged by whole pixels, without smoothing:
what is shown is what was generated. Images are decoded and encoded again, so that nothing but pixels
of a file reaches the page.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmfast.errors import BadRecordError
from mmfast.evaluate import Reading, Score
from mmfast.files import write_bytes
from mmfast.tokenizers.images import image_path_under, open_image

SMALL_SIDE = 48
MAX_ROWS = 50
_LARGE_SIDE = 192
_GRID_CELL, _GRID_GAP, _GRID_MARGIN = 64, 6, 18
_GRID_PAPER, _GRID_INK, _GRID_WRONG = (22, 22, 23), (233, 230, 224), (255, 122, 92)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a grid: all samples of one label."""

    label: str
    readings: list[Reading]


def rows_by_label(score: Score, *, columns: int) -> list[Row]:
    """At most 50 rows in the order in which labels first occur, each with its first `columns` samples."""
    rows: dict[str, list[Reading]] = {}
    for reading in score.readings:
        rows.setdefault(reading.label, []).append(reading)
    return [
        Row(label=label, readings=found[:columns]) for label, found in list(rows.items())[:MAX_ROWS]
    ]


def load_picture(image: str, *folders: Path) -> Image.Image | None:
    """The image below the first of `folders` that has it, in RGB; None if it cannot be shown."""
    for folder in folders:
        try:
            return open_image(image_path_under(folder.resolve(), image)).convert("RGB")
        except BadRecordError:
            continue
    return None


def data_uri(image: Image.Image) -> str:
    """A PNG in a `data:` address, reduced to 192 pixels a side if it is larger."""
    if max(image.size) > _LARGE_SIDE:
        image = image.copy()
        image.thumbnail((_LARGE_SIDE, _LARGE_SIDE), Image.Resampling.LANCZOS)
    if image.mode == "RGB" and _is_grey(image):
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def grid_image(score: Score, *, columns: int = 20) -> Image.Image:
    """The grid as one picture, RGB; an image that cannot be read leaves its cell empty.

    Size: each cell is 64 pixels wide or, for images above 48 pixels, 128, with 6 between, beside a
    column for the labels.
    """
    rows = rows_by_label(score, columns=columns)
    pictures = [
        [load_picture(r.image, score.manifest.parent) for r in row.readings] for row in rows
    ]
    largest = max((max(p.size) for row in pictures for p in row if p is not None), default=1)
    cell = _GRID_CELL if largest <= SMALL_SIDE else 2 * _GRID_CELL
    font = ImageFont.load_default(size=19)
    label_width = max(int(font.getlength(_clipped(row.label))) for row in rows) + 16
    pitch = cell + _GRID_GAP
    width = 2 * _GRID_MARGIN + label_width + pitch * max(len(row) for row in pictures) - _GRID_GAP
    height = 2 * _GRID_MARGIN + pitch * len(rows) - _GRID_GAP
    sheet = Image.new("RGB", (width, height), _GRID_PAPER)
    draw = ImageDraw.Draw(sheet)
    for row_idx, (row, shown) in enumerate(zip(rows, pictures, strict=True)):
        top = _GRID_MARGIN + row_idx * pitch
        draw.text(
            (_GRID_MARGIN + label_width - 16, top + cell / 2),
            _clipped(row.label),
            font=font,
            fill=_GRID_INK,
            anchor="rm",
        )
        for column_idx, (reading, picture) in enumerate(zip(row.readings, shown, strict=True)):
            left = _GRID_MARGIN + label_width + column_idx * pitch
            if picture is not None:
                sheet.paste(_fitted(picture, cell), (left, top))
            if not reading.right:
                corner = (left - 3, top - 3, left + cell + 2, top + cell + 2)
                draw.rectangle(corner, outline=_GRID_WRONG, width=2)
    return sheet


def save_grid(score: Score, path: Path, *, columns: int = 20) -> None:
    """Writes `grid_image` as a PNG."""
    encoded = io.BytesIO()
    grid_image(score, columns=columns).save(encoded, "PNG", optimize=True)
    write_bytes(path, encoded.getvalue())


def _fitted(picture: Image.Image, cell: int) -> Image.Image:
    """`picture` centred on `cell` x `cell`: small ones enlarged by a whole factor, others fitted."""
    longest = max(picture.size)
    if longest <= SMALL_SIDE:
        factor = cell // longest
        shown = picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    else:
        shown = picture.copy()
        shown.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (cell, cell), _GRID_PAPER)
    canvas.paste(shown, ((cell - shown.width) // 2, (cell - shown.height) // 2))
    return canvas


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def _clipped(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= 24 else label[:23] + "…"


def wrong_first(readings: Sequence[Reading], count: int) -> list[Reading]:
    """`count` readings for a sample: up to a third of them wrong ones, the rest spread evenly."""
    wrong = [r for r in readings if not r.right][: max(1, count // 3)]
    right = [r for r in readings if r.right]
    missing = count - len(wrong)
    stride = max(1, len(right) // max(1, missing))
    return wrong + right[::stride][:missing]
