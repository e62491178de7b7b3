"""`mmfast evaluate`: judges reconstructions, generated images and captions.

Prints one table on stdout, each result beside the judge's own figure on real images, and writes all
readings to a JSON file.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmfast.errors import UsageError

if TYPE_CHECKING:
    from mmfast.evaluate import Evaluation

app = typer.Typer(
    help="Judge reconstructions, generated images and captions.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def evaluate(
    *,
    train_captions: Annotated[
        Path, typer.Option(help="Manifest of the real images that the judge learns from.")
    ],
    test_captions: Annotated[
        Path, typer.Option(help="Manifest of real held-out images that the judge must read.")
    ],
    label_field: Annotated[str, typer.Option(help="Field of the manifests with the label.")] = (
        "label"
    ),
    reconstructions: Annotated[
        Path | None, typer.Option(help="Manifest of images that went through a tokenizer.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MANIFEST",
            help="Manifest of generated images; repeat for several sets. Without a name, the set "
            "is called after its folder.",
        ),
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="JSON lines of written captions; needs --templates.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="Phrasings, one a line, e.g. `a handwritten {label}`.")
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON file with all readings.")] = Path(
        "evaluation.json"
    ),
    judge_size: Annotated[
        int, typer.Option(min=4, max=256, help="Side in pixels at which the judge looks.")
    ] = 16,
    min_judge_accuracy: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Accuracy on real held-out images it must reach."),
    ] = 0.96,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the manifests, print the plan, judge nothing.")
    ] = False,
) -> None:
    """Trains a classifier on real pixels and lets it judge what models have made."""
    from mmfast.console import log
    from mmfast.evaluate.evaluation import evaluate as run
    from mmfast.evaluate.records import read_records

    sets = _named_sets(images or [])
    if dry_run:
        for name, manifest in {
            "judge learns from": train_captions,
            "judge proves itself on": test_captions,
            "reconstructions": reconstructions,
            **{f"images {name}": path for name, path in sets.items()},
            "captions": captions,
        }.items():
            if manifest is not None:
                count = len(read_records(manifest, label_field=label_field))
                typer.echo(f"{name}: {count:,} records in {manifest}")
        return
    result = run(
        train_captions=train_captions,
        test_captions=test_captions,
        reconstructions=reconstructions,
        images=sets,
        captions=captions,
        templates=templates,
        label_field=label_field,
        judge_size=judge_size,
        min_judge_accuracy=min_judge_accuracy,
    )
    result.save(output)
    _print_table(result)
    log(f"all readings are in {output}")


def _named_sets(arguments: list[str]) -> dict[str, Path]:
    sets: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals:
            name, path = Path(argument).resolve().parent.name, argument
        if not name or not path:
            raise UsageError(f"--images {argument!r} is not of the form NAME=MANIFEST")
        if name in sets:
            raise UsageError(f"two sets of images are called {name!r}; name them NAME=MANIFEST")
        sets[name] = Path(path)
    return sets


def _print_table(result: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="evaluation", title_justify="left")
    table.add_column("what")
    for heading in ("right", "accuracy", "95 % interval", "judge on real"):
        table.add_column(heading, justify="right")
    judge = f"{result.judge.accuracy:.3f}"
    rows = [("real, held out", result.judge, "")]
    if result.reconstructions is not None:
        rows.append(("reconstructions", result.reconstructions, judge))
    rows.extend((f"images {name}", score, judge) for name, score in result.images.items())
    if result.captions is not None:
        rows.append(("captions", result.captions, "by phrasing"))
    for name, score, beside in rows:
        low, high = score.interval()
        table.add_row(
            name,
            f"{score.num_right} of {len(score.readings)}",
            f"{score.accuracy:.3f}",
            f"{low:.3f}-{high:.3f}",
            beside,
        )
    if result.captions is not None:
        num, share = len(result.captions.readings), result.captions.well_formed
        table.add_row("well-formed captions", f"{round(share * num)} of {num}", f"{share:.3f}")
    Console().print(table)
