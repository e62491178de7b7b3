"""`mmfast train`: trains a model; `torchrun -m mmfast.train` does so on several processes."""

from pathlib import Path
from typing import Annotated

import typer

from mmfast.errors import UsageError

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
    summary.json, and model/ with its card.
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

    prompts = resolved.train.sample_prompts
    if resolved.train.sample_every and not Path(prompts).is_file():
        raise UsageError(f"train.sample_prompts: there is no file {prompts}")

    def draw(model: Path, output: Path) -> None:
        from mmfast.cli.generate import app as generate

        inputs = ["--model", str(model), "--prompts", prompts, "--seed", str(resolved.seed)]
        generate(["images", *inputs, "--output", str(output)], standalone_mode=False)

    summary = run(resolved, resume=resume, draw=draw)
    if rank() == 0:
        if "stopped_at" not in summary:
            from mmfast.report import save_model_card

            save_model_card(Path(resolved.output))
        typer.echo(json.dumps(summary, indent=2))
