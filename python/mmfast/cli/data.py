"""`mmfast data`: look into, check and merge indexed datasets.

A dataset is named by its prefix, the path without `.bin` or `.idx`. `vocabulary.json`,
`tokenizer.json` and `recipe.json` beside it are used where they are there.
"""

import dataclasses
import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast import console
from mmfast.cli import data_pack, data_show
from mmfast.cli.data_files import (
    AsJson,
    Prefixes,
    file_bytes,
    folders_of,
    open_dataset,
    recipe_beside,
    usage_errors,
    vocabulary_beside,
)
from mmfast.errors import CorruptDataError, FormatVersionError, VocabularyMismatchError

if TYPE_CHECKING:
    from mmfast.data import IndexedDataset
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
# Vocabulary sizes for which megatron-core's two rules for the dtype of ids disagree.
MEGATRON_RULES_DIFFER = range(65_500, 65_536 + 1)


class Level(StrEnum):
    """How far a dataset is verified."""

    NONE = "none"
    INDEX = "index"
    LAZY = "lazy"
    FULL = "full"


@app.command("info")
def info(prefixes: Prefixes, *, as_json: AsJson = False) -> None:
    """Counts, number type, access, vocabulary and recipe of a dataset, or of several as one."""
    dataset = open_dataset(prefixes)
    vocabulary = vocabulary_beside(dataset.prefixes)
    facts: dict[str, Any] = {"prefix": str(prefixes[0])}
    if len(dataset.prefixes) > 1:
        facts = {"datasets": len(dataset.prefixes), "first": str(dataset.prefixes[0])}
    facts |= {
        "documents": dataset.num_documents,
        "sequences": len(dataset),
        "ids": dataset.num_tokens,
        "dtype": str(dataset.dtype),
        "multimodal": dataset.multimodal,
        "bytes": sum(file_bytes(dataset.prefixes, suffix) for suffix in (".bin", ".idx")),
        "fingerprint": dataset.fingerprint,
        "access": dataset.access,
    }
    if dataset.findings:
        facts["findings"] = "; ".join(dataset.findings)
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
        if vocabulary.size in MEGATRON_RULES_DIFFER:
            facts["megatron dtype"] = _megatron_rules(vocabulary.size, str(dataset.dtype))
    recipe = recipe_beside(folders_of(dataset.prefixes)[0])
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


app.command("show")(data_show.show)


@app.command("verify")
def verify(
    prefixes: Prefixes,
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
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="What megatron-core would not have written counts as corrupt."
        ),
    ] = False,
) -> None:
    """Check everything that can be checked; exit with 3 if the data is corrupt.

    Names each damaged block of .bin, its bytes and the documents that it hits. A dataset that is not as
    megatron-core writes it but can be read is sound, and what is different is noted.
    """
    from mmfast.vocab import Vocabulary

    dataset = open_dataset(prefixes, verify="none" if level is Level.NONE else "index")
    if strict and dataset.findings:
        raise FormatVersionError(
            f"{dataset.name}: readable, but not as megatron-core writes it; `mmfast data merge NEW OLD` "
            "writes it so: " + "; ".join(dataset.findings)
        )
    known = Vocabulary.load(vocabulary) if vocabulary else vocabulary_beside(dataset.prefixes)
    rates = []
    started, num_bytes = time.monotonic(), 0
    for shard in dataset.shards():
        if level in (Level.LAZY, Level.FULL) or (level is None and shard.sidecar):
            _require_sound_blocks(shard)
            num_bytes += file_bytes(shard.prefixes, ".bin")
        _require_vocabulary(shard, known, vocabulary or shard.prefix.parent)
        if level is None and shard.sidecar is None:
            console.log(f"{shard.prefix}.mmf is not there, so there are no checksums to compare")
    if num_bytes:
        rates.append(
            f"checksums {num_bytes / 1e9 / max(time.monotonic() - started, 1e-9):,.2f} GB/s"
        )
    if dataset.dtype.kind == "f":
        typer.echo(f"{dataset.name}: what was checked is sound; it holds {dataset.dtype}, not ids")
        return
    started = time.monotonic()
    with console.progress("verify", total=dataset.num_tokens, unit="ids") as job:
        # The index was checked when it was opened, the checksums just now.
        size = known.size if known else None
        found = dataset.verify(size, level="none", on_progress=job.advance)
    seconds = max(time.monotonic() - started, 1e-9)
    rates.append(f"ids {dataset.num_tokens / 1e6 / seconds:,.0f} M/s")
    ids = f"ids {found.id_range[0]:,}..{found.id_range[1]:,}" if found.id_range else "no ids"
    inside = f", all inside the vocabulary of {known.size:,}" if known else ""
    sound = "sound, though not as megatron-core writes it" if dataset.findings else "sound"
    typer.echo(
        f"{_shown(dataset, prefixes)}: {sound}; {dataset.num_documents:,} documents, "
        f"{len(dataset):,} sequences, {ids}{inside}"
    )
    console.log(", ".join(rates))


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
        part = open_dataset(prefix)
        num_tokens += part.num_tokens
        console.log(f"{prefix}: {part.num_documents:,} documents, {part.num_tokens:,} ids")
    if dry_run:
        typer.echo(f"would write {num_tokens:,} ids of {len(prefixes)} datasets to {output}")
        return
    started = time.monotonic()
    with usage_errors():
        written = merge_datasets(output, prefixes)
    seconds = time.monotonic() - started
    typer.echo(
        f"{output}: {written.num_documents:,} documents, {written.num_sequences:,} sequences, "
        f"{written.num_tokens:,} ids in {seconds:.1f} s"
    )


@app.command("stats")
def stats(prefixes: Prefixes, *, as_json: AsJson = False) -> None:
    """Shares of the modalities and a histogram of document lengths; of several datasets together."""
    from mmfast.data.statistics import dataset_statistics

    figures = dataset_statistics(open_dataset(prefixes))
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
    with usage_errors():
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


def _require_vocabulary(dataset: "IndexedDataset", known: "Vocabulary | None", where: Path) -> None:
    written_with = dataset.sidecar.vocabulary_fingerprint if dataset.sidecar else None
    if known and written_with and known.fingerprint != written_with:
        raise VocabularyMismatchError(
            f"{dataset.prefix} was written with the vocabulary {written_with}, not with "
            f"{known.fingerprint} ({where}): its ids mean something else there"
        )


def _shown(dataset: "IndexedDataset", prefixes: list[Path]) -> str:
    """The dataset as it was named, or how many it is."""
    return str(prefixes[0]) if len(dataset.prefixes) == len(prefixes) == 1 else dataset.name


def _megatron_rules(vocabulary_size: int, dtype: str) -> str:
    """What megatron-core's builder and its index-free loading take the ids for."""
    return (
        f"for {vocabulary_size:,} ids preprocess_data.py writes int32, but with "
        f"--per-dataset-sequences-path GPTDataset reads uint16 whatever the file holds; this is {dtype}"
    )
