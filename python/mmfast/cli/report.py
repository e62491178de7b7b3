"""`mmfast report`: one HTML page of a run, its picture grid, and its figures as a table and JSON."""

import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="One self-contained HTML page of a run.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder with what the other verbs wrote.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="The page; report.html in the run folder by default.")
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="Grid of the first set; grid.png beside the page by default."),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Also write the run's figures to this JSON file.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading; the folder's name by default.")] = (
        None
    ),
    columns: Annotated[int, typer.Option(min=1, help="Images per row of a grid, at most.")] = 20,
    ends_now: Annotated[
        bool,
        typer.Option(
            "--ends-now",
            help="Count the time until now into total_seconds, not just to the last stage's end.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what was found, write nothing.")
    ] = False,
) -> None:
    """Collects what the verbs left under RUN_DIR and shows it on one page."""
    from mmfast.console import log
    from mmfast.report import page, pictures
    from mmfast.report.run import read_run
    from mmfast.report.summary import print_summary, save_summary, summarise

    run = read_run(run_dir)
    if dry_run:
        for name, found in {
            "stages": run.stages,
            "tokenizers": run.tokenizers,
            "datasets": run.datasets,
            "trainings": run.trainings,
            "generations": run.generations,
            "image sets judged": run.evaluation.images if run.evaluation else {},
        }.items():
            typer.echo(f"{name}: {len(found)}")
        return
    output = output or run_dir / "report.html"
    figures = summarise(run, now=time.time() if ends_now else None)
    page.save_page(page.report_html(run, figures, title=title, columns=columns), output)
    written = [output]
    sets = [*(run.evaluation.images.values() if run.evaluation else ()), *run.unjudged.values()]
    if sets:
        grid = grid or output.with_name("grid.png")
        pictures.save_grid(sets[0], grid, columns=columns)
        written.append(grid)
    if summary is not None:
        save_summary(figures, summary)
        written.append(summary)
    print_summary(figures)
    log("written: " + ", ".join(map(str, written)))
