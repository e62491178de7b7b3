"""`mmfast train`: trains a model; `torchrun -m mmfast.train` does so on several processes."""

from typing import Annotated

import typer

app = typer.Typer(help="Train a model.", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(help="Name of a preset, or path of a YAML file.", metavar="CONFIG")
    ] = "tiny",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Keys to set, e.g. data.prefix=out/data/train train.steps=500.",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    *,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: go on from the run's latest checkpoint; never: refuse to; or a checkpoint's "
            "path. Checkpoints hold pickled data: never resume from a stranger's."
        ),
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved configuration, sizes and the first packed row; write nothing.",
        ),
    ] = False,
) -> None:
    """Trains on an indexed dataset and exports the model in the Hugging Face layout.

    The run folder (key `output`) receives config.yaml, env.json, metrics.jsonl, checkpoints/,
    summary.json and model/.
    """
    import json

    from mmfast.distributed import rank
    from mmfast.train.config import load_train_config

    arguments = list(overrides or [])
    if "=" in config:
        # The configuration was left out: what stands in its place is the first override.
        config, arguments = "tiny", [config, *arguments]
    resolved = load_train_config(config, arguments)
    if dry_run:
        from mmfast.train.describe import describe_run

        report = describe_run(resolved)
        if rank() == 0:
            typer.echo(report)
        return
    from mmfast.train.trainer import train as run

    summary = run(resolved, resume=resume)
    if rank() == 0:
        typer.echo(json.dumps(summary, indent=2))
