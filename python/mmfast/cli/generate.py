"""`mmfast generate`: images from captions, captions for images; also `torchrun -m mmfast.generate`."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast.errors import UsageError

if TYPE_CHECKING:
    from mmfast.generate import Model

app = typer.Typer(
    help="Draw images from captions, write captions for images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Below this, handing work to a second thread costs more than it saves.
_SINGLE_THREAD_PARAMETERS = 20_000_000

ModelOption = Annotated[
    Path, typer.Option("--model", help="Model folder, e.g. <training output>/model.")
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, help="0 takes the likeliest id each time.")
]
TopKOption = Annotated[
    int | None, typer.Option(min=0, help="Keep the k likeliest ids; 0 keeps all.")
]
TopPOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="Keep the likeliest ids that reach this mass; 1 keeps all."),
]
SeedOption = Annotated[int, typer.Option(help="Item i uses seed + i.")]
RowsOption = Annotated[
    int, typer.Option(min=1, help="Rows of the batch; an image with guidance takes two.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check the input, print the plan, generate nothing.")
]


@app.command()
def images(
    *,
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Folder for PNG files and manifest.jsonl.")],
    prompts: Annotated[
        Path | None, typer.Option(help='JSON lines {"prompt": "...", ...}; other fields are kept.')
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="One prompt; repeat for more.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from.")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(help="Width to height, e.g. 16:9, where the model knows several.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Rows x columns of codes in place of a ratio, e.g. 32x32.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 is no guidance.")] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
    batch_rows: RowsOption = 32,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Draw an image for each prompt; what is not said is as the model's recipe has it."""
    from mmfast.generate.jobs import JobSettings, drawing_request, generate_images, read_prompts

    if (prompts is None) == (not prompt):
        raise UsageError("give either --prompts FILE.jsonl or one or more --prompt TEXT")
    records = read_prompts(prompts) if prompts else [{"prompt": text} for text in prompt or ()]
    given = _given(temperature=temperature, top_k=top_k, top_p=top_p)
    with _loaded(model, device) as loaded:
        settings = JobSettings(
            sampling=loaded.drawing_sampling(given),
            negative_prompt=negative_prompt,
            ratio=ratio,
            grid=_grid(grid),
            guidance_scale=loaded.parts.recipe.drawing_guidance
            if guidance_scale is None
            else guidance_scale,
            seed=seed,
            num_rows=batch_rows,
        )
        if dry_run:
            request = drawing_request(loaded, records[0], 0, settings)
            _print_plan(loaded, len(records), request, settings, output)
            return
        report = generate_images(loaded, records, output, settings)
    _print_report(report, output)


@app.command()
def captions(
    *,
    model: ModelOption,
    images: Annotated[
        Path, typer.Option(help='Folder of images, or JSON lines {"image": "path", ...}.')
    ],
    output: Annotated[Path, typer.Option(help="JSON-lines file for the captions.")],
    question: Annotated[
        str | None, typer.Option(help="Asked about every image in place of a caption.")
    ] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_ids: Annotated[int | None, typer.Option(min=1, help="Room for a text, in ids.")] = None,
    seed: SeedOption = 0,
    batch_rows: RowsOption = 32,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Write a caption for each image, or answer a question about it."""
    from PIL import Image

    from mmfast.generate.jobs import JobSettings, generate_captions, image_records

    _, records = image_records(images)
    given = _given(temperature=temperature, top_k=top_k, top_p=top_p)
    with _loaded(model, device) as loaded:
        settings = JobSettings(
            sampling=loaded.answering_sampling(given),
            question=question,
            max_ids=max_ids,
            seed=seed,
            num_rows=batch_rows,
        )
        if dry_run:
            loaded.parts.require_images()
            (codes,) = loaded.codes_from_images(
                [Image.new("RGB", loaded.parts.image_tokenizer.image_size[::-1])]
            )
            request = loaded.answering_request(
                codes, question=question, sampling=settings.sampling, max_ids=max_ids, seed=seed
            )
            _print_plan(loaded, len(records), request, settings, output)
            return
        report = generate_captions(loaded, images, output, settings)
    _print_report(report, output)


def _given(**fields: float | None) -> dict[str, float]:
    """The fields that the user said something about."""
    return {name: value for name, value in fields.items() if value is not None}


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise UsageError(f"--grid is rows x columns, e.g. 32x32, not {text!r}")
    return int(rows), int(columns)


@contextlib.contextmanager
def _loaded(folder: Path, device: str) -> Iterator["Model"]:
    """The model, within a process group when several processes were started."""
    import torch

    from mmfast.distributed import WORK_TIMEOUT, process_group, resolve_device, world_size
    from mmfast.generate import load

    place = resolve_device(device)
    model = load(folder, device=place)
    num_parameters = sum(p.numel() for p in model.network.parameters())
    if place == "cpu" and num_parameters < _SINGLE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    # Ranks wait while others still generate, and while rank 0 writes all files.
    with process_group(timeout=WORK_TIMEOUT) if world_size() > 1 else contextlib.nullcontext():
        yield model


def _print_plan(model: "Model", num_items: int, request: Any, settings: Any, output: Path) -> None:
    import dataclasses

    plan = {
        "model": str(model.folder),
        "num_items": num_items,
        "streams_per_item": len(request.streams),
        "prompt_ids_of_first": [len(stream) for stream in request.streams],
        "max_ids_per_item": request.grammar.max_ids,
        "context": model.max_positions,
        "settings": dataclasses.asdict(settings),
        "output": str(output),
    }
    sys.stdout.write(json.dumps(plan, indent=2) + "\n")


def _print_report(report: dict[str, Any], output: Path) -> None:
    from mmfast.distributed import rank

    if rank() == 0:
        sys.stdout.write(
            f"{report['num_items']} items, {report['num_ids']:,} ids in {report['seconds']:.1f} s "
            f"({report['ids_per_sec']:,.0f} ids/s): {output}\n"
        )
