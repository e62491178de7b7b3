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
TemperatureHelp = "0 takes the likeliest id each time."
TopKOption = Annotated[int, typer.Option(min=0, help="Keep the k likeliest ids; 0 keeps all.")]
TopPOption = Annotated[
    float, typer.Option(min=0.0, help="Keep the likeliest ids that reach this mass; 1 keeps all.")
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
    guidance_scale: Annotated[float, typer.Option(help="1 is no guidance.")] = 3.0,
    temperature: Annotated[float, typer.Option(min=0.0, help=TemperatureHelp)] = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.9,
    seed: SeedOption = 0,
    batch_rows: RowsOption = 32,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Draw an image for each prompt."""
    from mmfast.generate.jobs import JobSettings, generate_images, read_prompts
    from mmfast.generate.requests import SamplingSettings

    if (prompts is None) == (not prompt):
        raise UsageError("give either --prompts FILE.jsonl or one or more --prompt TEXT")
    records = read_prompts(prompts) if prompts else [{"prompt": text} for text in prompt or ()]
    settings = JobSettings(
        sampling=SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p),
        guidance_scale=guidance_scale,
        seed=seed,
        num_rows=batch_rows,
    )
    with _loaded(model, device) as loaded:
        if dry_run:
            request = loaded.drawing_request(
                records[0]["prompt"],
                guidance_scale=guidance_scale,
                sampling=settings.sampling,
                seed=seed,
            )
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
    temperature: Annotated[float, typer.Option(min=0.0, help=TemperatureHelp)] = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    max_ids: Annotated[int, typer.Option(min=1, help="Room for a caption, in ids.")] = 64,
    seed: SeedOption = 0,
    batch_rows: RowsOption = 32,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Write a caption for each image."""
    import numpy as np

    from mmfast.generate.jobs import JobSettings, generate_captions, image_records
    from mmfast.generate.requests import SamplingSettings

    settings = JobSettings(
        sampling=SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p),
        max_ids=max_ids,
        seed=seed,
        num_rows=batch_rows,
    )
    _, records = image_records(images)
    with _loaded(model, device) as loaded:
        if dry_run:
            request = loaded.captioning_request(
                np.zeros(loaded.grid, dtype=np.int64),
                sampling=settings.sampling,
                max_ids=max_ids,
                seed=seed,
            )
            _print_plan(loaded, len(records), request, settings, output)
            return
        report = generate_captions(loaded, images, output, settings)
    _print_report(report, output)


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
        "context": model.network.config.max_position_embeddings,
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
