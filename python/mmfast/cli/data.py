"""`mmfast data`: look into, check and merge indexed datasets.

A dataset is named by its prefix, the path without `.bin` or `.idx`. `vocabulary.json`,
`tokenizer.json` and `recipe.json` beside it are used where they are there.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast import console
from mmfast.cli import data_pack
from mmfast.errors import CorruptDataError, UsageError, VocabularyMismatchError

if TYPE_CHECKING:
    from mmfast.data import IndexedDataset, Segment
    from mmfast.data.dataset import Verify
    from mmfast.vocab import Vocabulary

app = typer.Typer(
    help="Look into, check and merge indexed datasets (.bin and .idx).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

HISTOGRAM_WIDTH = 40
# Damaged blocks that an error describes; there may be as many as the file has mebibytes.
SHOWN_BLOCKS = 20


class Level(StrEnum):
    """How far a dataset is verified."""

    NONE = "none"
    INDEX = "index"
    LAZY = "lazy"
    FULL = "full"


Prefix = Annotated[Path, typer.Argument(help="The dataset's path without .bin or .idx.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


@app.command("info")
def info(prefix: Prefix, *, as_json: AsJson = False) -> None:
    """Counts, number type, vocabulary and recipe of a dataset."""
    dataset = _open(prefix)
    vocabulary, recipe = _vocabulary_beside(prefix), _recipe_beside(prefix)
    facts: dict[str, Any] = {
        "prefix": str(prefix),
        "documents": dataset.num_documents,
        "sequences": len(dataset),
        "ids": dataset.num_tokens,
        "dtype": str(dataset.dtype),
        "multimodal": dataset.multimodal,
        "bytes": sum(_size(prefix, suffix) for suffix in (".bin", ".idx")),
        "fingerprint": dataset.fingerprint,
    }
    if sidecar := dataset.sidecar:
        facts |= {
            "checksums": f"CRC-32C of {sidecar.num_blocks:,} blocks",
            "content": sidecar.fingerprint,
            "writer": sidecar.writer,
        }
        facts |= {f"provenance {key}": value for key, value in sidecar.provenance.items()}
    if vocabulary is not None:
        facts["vocabulary"] = f"{vocabulary.size:,} ids, fingerprint {vocabulary.fingerprint}"
        facts["code ranges"] = ", ".join(
            f"{r.name} {r.base:,}..{r.end - 1:,}" for r in vocabulary.ranges
        )
    facts |= {f"recipe {key}": value for key, value in recipe.items() if key != "format_version"}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        match value:
            case bool() | str():
                shown = str(value)
            case int():
                shown = f"{value:,}"
            case _:
                shown = json.dumps(value)
        typer.echo(f"{name:<{width}}  {shown}")


@app.command("show")
def show(
    prefix: Prefix,
    document: Annotated[int, typer.Argument(help="Number of the document, from 0.", min=0)] = 0,
    *,
    max_codes: Annotated[int, typer.Option(help="Codes shown of a run; 0 shows all.", min=0)] = 16,
    images: Annotated[
        Path | None, typer.Option(help="Folder to write the document's images to, decoded.")
    ] = None,
) -> None:
    """A document as people read it: text, special ids by role, images as codes or as pictures."""
    from mmfast.data.rendering import Renderer

    dataset = _open(prefix)
    if document >= dataset.num_documents:
        raise UsageError(
            f"there is no document {document} in {prefix}, which has {dataset.num_documents:,}"
        )
    segments = dataset.document(document)
    decode_text = None
    if (prefix.parent / "tokenizer.json").exists():
        from mmfast.tokenizers.text import load_text_tokenizer

        decode_text = load_text_tokenizer(prefix.parent / "tokenizer.json").decode
    renderer = Renderer(
        vocabulary=_vocabulary_beside(prefix),
        decode_text=decode_text,
        grid=_grid(prefix, _recipe_beside(prefix)),
        max_codes=max_codes or dataset.num_tokens,
    )
    num_ids = sum(len(segment.ids) for segment in segments)
    typer.echo(f"document {document}: {len(segments)} sequences, {num_ids:,} ids")
    if segments:
        typer.echo(renderer.document(segments))
    if images is not None:
        for path in _write_images(prefix, document, segments, images):
            typer.echo(path)


@app.command("verify")
def verify(
    prefix: Prefix,
    *,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Vocabulary that ids must lie in; by default the one beside the data."),
    ] = None,
    level: Annotated[
        Level | None,
        typer.Option(
            help="none: sizes and ids; index: also the index and its hash; full (or lazy): also the "
            "checksums of .bin. By default full where there is a .mmf, else index."
        ),
    ] = None,
) -> None:
    """Check everything that can be checked; exit with 3 if the data is corrupt.

    Names each damaged block of .bin, its bytes and the documents that it hits.
    """
    from mmfast.vocab import Vocabulary

    dataset = _open(prefix, verify="none" if level is Level.NONE else "index")
    if level in (Level.LAZY, Level.FULL) or (level is None and dataset.sidecar):
        _require_sound_blocks(dataset)
    known = Vocabulary.load(vocabulary) if vocabulary else _vocabulary_beside(prefix)
    written_with = dataset.sidecar.vocabulary_fingerprint if dataset.sidecar else None
    if known and written_with and known.fingerprint != written_with:
        raise VocabularyMismatchError(
            f"{prefix} was written with the vocabulary {written_with}, not with {known.fingerprint} "
            f"({vocabulary or prefix.parent}): its ids mean something else there"
        )
    if level is None and dataset.sidecar is None:
        console.log(f"{prefix}.mmf is not there, so there are no checksums to compare")
    if dataset.dtype.kind == "f":
        typer.echo(f"{prefix}: what was checked is sound; it holds {dataset.dtype}, not ids")
        return
    with console.progress("verify", total=dataset.num_tokens, unit="ids") as job:
        # The index was checked when it was opened, the checksums just now.
        size = known.size if known else None
        found = dataset.verify(size, level="none", on_progress=job.advance)
    ids = f"ids {found.id_range[0]:,}..{found.id_range[1]:,}" if found.id_range else "no ids"
    inside = f", all inside the vocabulary of {known.size:,}" if known else ""
    typer.echo(
        f"{prefix}: sound; {dataset.num_documents:,} documents, {len(dataset):,} sequences, {ids}{inside}"
    )


@app.command("merge")
def merge(
    output: Annotated[Path, typer.Argument(help="Prefix of the merged dataset.")],
    prefixes: Annotated[list[Path], typer.Argument(help="Datasets to join, in this order.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the parts and stop.")] = False,
) -> None:
    """Join datasets of one number type without loading them; what was at OUTPUT is replaced."""
    from mmfast.data import merge_datasets

    num_tokens = 0
    for prefix in prefixes:
        part = _open(prefix)
        num_tokens += part.num_tokens
        console.log(f"{prefix}: {part.num_documents:,} documents, {part.num_tokens:,} ids")
    if dry_run:
        typer.echo(f"would write {num_tokens:,} ids of {len(prefixes)} datasets to {output}")
        return
    started = time.monotonic()
    with _usage_errors():
        written = merge_datasets(output, prefixes)
    seconds = time.monotonic() - started
    typer.echo(
        f"{output}: {written.num_documents:,} documents, {written.num_sequences:,} sequences, "
        f"{written.num_tokens:,} ids in {seconds:.1f} s"
    )


@app.command("stats")
def stats(prefix: Prefix, *, as_json: AsJson = False) -> None:
    """Shares of the modalities and a histogram of document lengths."""
    from mmfast.data.statistics import dataset_statistics

    figures = dataset_statistics(_open(prefix))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(figures), indent=2))
        return
    typer.echo(f"{'modality':<16} {'sequences':>12} {'ids':>15} {'share':>7}")
    for share in figures.shares:
        part = share.num_tokens / max(figures.num_tokens, 1)
        typer.echo(
            f"{share.modality:<16} {share.num_sequences:>12,} {share.num_tokens:>15,} {part:>7.1%}"
        )
    quantiles = ", ".join(f"{name} {value:,}" for name, value in figures.quantiles.items())
    typer.echo(f"\n{figures.num_documents:,} documents; ids per document: mean {figures.mean:,.1f}")
    if quantiles:
        typer.echo(quantiles)
    most = max((bin_.num_documents for bin_ in figures.histogram), default=1)
    for bin_ in figures.histogram:
        bar = "█" * -(-bin_.num_documents * HISTOGRAM_WIDTH // max(most, 1))
        span = f"{bin_.low:,}" if bin_.low == bin_.high else f"{bin_.low:,}-{bin_.high:,}"
        typer.echo(f"{span:>19} {bin_.num_documents:>12,} {bar}".rstrip())


app.command("pack")(data_pack.pack)


def _require_sound_blocks(dataset: "IndexedDataset") -> None:
    with _usage_errors():
        damaged = dataset.damaged_blocks()
    if damaged:
        blocks = [found.description for found in damaged[:SHOWN_BLOCKS]]
        if len(damaged) > SHOWN_BLOCKS:
            blocks.append(f"and {len(damaged) - SHOWN_BLOCKS:,} more")
        total = dataset.sidecar.num_blocks if dataset.sidecar else 0
        raise CorruptDataError(
            f"{dataset.prefix}.bin: {len(damaged):,} of {total:,} blocks are damaged; restore the "
            "file or prepare it again:\n  " + "\n  ".join(blocks)
        )


def _open(prefix: Path, *, verify: "Verify" = "index") -> "IndexedDataset":
    from mmfast.data import IndexedDataset

    with _usage_errors():
        try:
            return IndexedDataset(prefix, verify=verify)
        except FileNotFoundError as error:
            raise UsageError(
                f"there is no dataset {prefix}: {Path(error.filename).name} is missing"
            ) from error


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Arguments that the library refuses are the user's here."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def _size(prefix: Path, suffix: str) -> int:
    return prefix.with_name(prefix.name + suffix).stat().st_size


def _vocabulary_beside(prefix: Path) -> "Vocabulary | None":
    from mmfast.vocab import FILE_NAME, Vocabulary

    path = prefix.parent / FILE_NAME
    return Vocabulary.load(path) if path.exists() else None


def _recipe_beside(prefix: Path) -> dict[str, Any]:
    path = prefix.parent / "recipe.json"
    if not path.exists():
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptDataError(f"{path} is not JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise CorruptDataError(f"{path} must hold a JSON object")
    return recipe


def _grid(prefix: Path, recipe: dict[str, Any]) -> tuple[int, int] | None:
    match recipe.get("grid"):
        case None:
            return None
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise CorruptDataError(
                f"{prefix.parent / 'recipe.json'}: grid must be [height, width], found {other!r}"
            )


def _write_images(
    prefix: Path, document: int, segments: "Sequence[Segment]", folder: Path
) -> Iterator[Path]:
    """Decodes the image segments of a document with the tokenizer that `recipe.json` names."""
    from mmfast.data.segment import IMAGE

    recipe, vocabulary = _recipe_beside(prefix), _vocabulary_beside(prefix)
    grid = _grid(prefix, recipe)
    named = recipe.get("image_tokenizer")
    path = named.get("path") if isinstance(named, dict) else None
    if not isinstance(path, str) or grid is None or vocabulary is None:
        raise UsageError(
            f"--images needs {prefix.parent / 'recipe.json'} to name a grid and an image tokenizer, "
            "and vocabulary.json beside it"
        )
    import torch

    from mmfast.tokenizers import images_from_tensor, load_image_tokenizer

    tokenizer = load_image_tokenizer(prefix.parent / path)
    folder.mkdir(parents=True, exist_ok=True)
    for i, segment in enumerate(segments):
        if segment.modality != IMAGE:
            continue
        if len(segment.ids) != grid[0] * grid[1]:
            raise UsageError(
                f"sequence {i} of document {document} has {len(segment.ids)} ids, "
                f"not the {grid[0]} x {grid[1]} of one image"
            )
        try:
            codes = vocabulary.codes_from_ids("image", segment.ids)
        except (KeyError, ValueError) as error:
            raise CorruptDataError(
                f"sequence {i} of document {document} is no image: {error}"
            ) from error
        with torch.inference_mode():
            pixels = tokenizer.decode([torch.from_numpy(codes).reshape(1, *grid)])
        target = folder / f"document-{document}-sequence-{i}.png"
        images_from_tensor(pixels)[0].save(target)
        yield target
