"""`mmfast data pack`: how well a dataset's documents would fill rows of a given size."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmfast.errors import UsageError


def pack(
    prefix: Annotated[Path, typer.Argument(help="The dataset's path without .bin or .idx.")],
    *,
    capacity: Annotated[int, typer.Option(help="Ids that a row can hold.", min=1)] = 4096,
    overlong: Annotated[
        Literal["truncate", "drop", "split", "error"],
        typer.Option(help="What happens to documents that are longer than a row."),
    ] = "truncate",
    packing: Annotated[
        Literal["best_fit", "concat", "none"],
        typer.Option(help="Packed, one after the other and cut, or one document a row."),
    ] = "best_fit",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the figures only; nothing else is done yet.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of lines.")
    ] = False,
) -> None:
    """Rows, fill and over-long documents when a whole dataset is packed at once.

    Lengths are those on disk: an objective that adds ids is not counted.
    """
    from mmfast.data import IndexedDataset
    from mmfast.data.packing import packing_figures

    if not dry_run:
        raise UsageError("rows are packed by the loader as it goes; add --dry-run for the figures")
    try:
        dataset = IndexedDataset(prefix)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no dataset {prefix}: {Path(error.filename).name} is missing"
        ) from error
    started = time.monotonic()
    try:
        figures = packing_figures(dataset, capacity, overlong=overlong, packing=packing)
    except ValueError as error:
        raise UsageError(str(error)) from error
    seconds = time.monotonic() - started
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(figures) | {"seconds": seconds}, indent=2))
        return
    typer.echo(
        f"{figures.num_documents:,} documents in {figures.num_bins:,} rows of {capacity:,} ids: "
        f"{figures.fill:.3%} full, {figures.documents_per_bin:.2f} documents a row"
    )
    typer.echo(
        f"at best {figures.min_bins:,} rows; {figures.num_overlong:,} over-long documents "
        f"({overlong}), {figures.num_lost_tokens:,} ids of them lost"
    )
    typer.echo(f"planned in {seconds:.3f} s")
