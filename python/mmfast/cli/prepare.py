"""`mmfast prepare RECIPE`: raw media to an indexed dataset, one subcommand per recipe.

Options of a subcommand are the fields of the recipe's `prepare_options` and of the job's own options:
a new recipe needs no change here. A recipe with `preparations` has a subcommand for each of them. Flags may be
spelled with underscores, as in the scripts that recipes replace. Runs with any number of processes under
`torchrun -m mmfast.prepare`.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mmfast.config import load_config
from mmfast.errors import UsageError
from mmfast.prepare.options import JobOptions
from mmfast.prepare.protocol import PreparingRecipe
from mmfast.registry import get_recipe, recipe_names

app = typer.Typer(
    help="Turn raw media into an indexed dataset; also `torchrun --nproc-per-node N -m mmfast.prepare`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _choose_recipe() -> None:
    """Keeps the recipe's name a subcommand even while there is only one."""


def _add_recipe(recipe: PreparingRecipe) -> None:
    def prepare(*, config: Path | None, dry_run: bool, **flags: Any) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        job_fields = {field.name for field in dataclasses.fields(JobOptions)}
        job = {name: given.pop(name) for name in list(given) if name in job_fields}
        required = {"output"} if config else {"output", *_required(recipe.prepare_options)}
        if missing := sorted(required - set(job) - set(given)):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise UsageError(f"{names} must be given; see `mmfast prepare {recipe.name} --help`")
        job_options = JobOptions(**job)
        # JSON strings are YAML scalars, so every value survives the way through the overrides.
        settings = [f"{name}={_scalar(value)}" for name, value in given.items()]
        options = load_config(recipe.prepare_options, file=config, overrides=settings)
        _prepare(recipe, options, job_options, dry_run=dry_run)

    parameters = {
        "config": Annotated[
            Path | None, typer.Option(help="YAML file with this recipe's options; flags win.")
        ],
        "dry_run": Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")],
        **_flags(recipe.prepare_options),
        **_flags(JobOptions),
    }
    signature = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "dry_run" else None,
            annotation=annotation,
        )
        for name, annotation in parameters.items()
    ]
    command: Callable[..., None] = prepare
    vars(command)["__signature__"] = inspect.Signature(signature)
    command.__annotations__ = parameters
    summary = (recipe.prepare_options.__doc__ or "").partition("\n")[0]
    app.command(recipe.name, help=summary, context_settings={"token_normalize_func": _normal_flag})(
        command
    )


def _flags(options: type[Any]) -> dict[str, Any]:
    """Name and Typer annotation of each field; every flag may be left out, so that a file can give it."""
    hints = get_type_hints(options)
    flags = {}
    for field in dataclasses.fields(options):
        text = field.metadata["help"]
        if field.default is dataclasses.MISSING:
            text += " [required]"
        elif field.default is not None and hints[field.name] is not bool:
            text += f" [default: {field.default}]"
        names = [
            _normal_flag(f"--{name}") for name in (field.name, *field.metadata.get("also", ()))
        ]
        flags[field.name] = Annotated[hints[field.name] | None, typer.Option(*names, help=text)]
    return flags


def _normal_flag(name: str) -> str:
    """`--input_image_dir` as `--input-image-dir`, and `True` as `true`."""
    return name.replace("_", "-").lower()


def _required(options: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(options) if f.default is dataclasses.MISSING}


def _scalar(value: Any) -> str:
    return json.dumps(
        value if isinstance(value, (bool, int, float)) else str(value), ensure_ascii=False
    )


def _prepare(recipe: PreparingRecipe, options: Any, job: JobOptions, *, dry_run: bool) -> None:
    from mmfast.prepare.job import describe_job, run_job

    preparation = recipe.open_preparation(options)
    if dry_run:
        typer.echo(json.dumps(describe_job(preparation, job), indent=2))
        return
    report = run_job(recipe.name, preparation, job)
    if report is None:
        return
    typer.echo(
        f"{job.output}: {report['documents']:,} documents, {report['tokens']:,} tokens of "
        f"{report['used']:,} records; {report['num_skipped']:,} skipped; {report['seconds']:.1f} s, "
        f"{report['records_per_sec']:,.0f} records/s"
    )
    for reason, count in report["skipped"].items():
        typer.echo(f"  skipped {count:,}: {reason}, e.g. {report['examples'][reason][0]}")


for _name in recipe_names():
    _recipe = get_recipe(_name)
    for _preparation in getattr(_recipe, "preparations", (_recipe,)):
        _add_recipe(_preparation)
