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
    from mmfast.cli.nemo_inference import NemoInference
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
ImageTokenizerOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the image tokenizer, where it is not in the model's. One of TorchScript (Cosmos) can run code: "
        "name only what you trust."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Item i uses seed + i.")]
SamplingOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[MODALITY.]NAME=VALUE",
        help="Any other setting of the sampler, e.g. repetition_penalty=1.1 or image.min_p=0.05; repeat for more.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Inference YAML of NeMo's examples; options given here win over it."),
]
CandidatesOption = Annotated[
    int,
    typer.Option(min=1, help="Draw this many of each and keep the one the model finds likeliest."),
]
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
    output: Annotated[
        Path | None, typer.Option(help="Folder for PNG files and manifest.jsonl.")
    ] = None,
    config: ConfigOption = None,
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
    image_tokenizer: ImageTokenizerOption = None,
    sampling: SamplingOption = None,
    candidates: CandidatesOption = 1,
    seed: SeedOption = 0,
    batch_rows: RowsOption = 32,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Draw an image for each prompt; what is not said is as the model's recipe has it."""
    from mmfast.cli.nemo_inference import warn_of_pictures
    from mmfast.generate.jobs import JobSettings, drawing_request, generate_images, read_prompts

    nemo = _nemo(config)
    if nemo is not None:
        output = nemo.output if output is None else output
        if prompts is None and not prompt:
            prompt = list(nemo.captions)
    if output is None:
        raise UsageError("give --output, a folder for the images")
    if (prompts is None) == (not prompt):
        raise UsageError("give either --prompts FILE.jsonl or one or more --prompt TEXT")
    records = read_prompts(prompts) if prompts else [{"prompt": text} for text in prompt or ()]
    given = dict(nemo.sampling) if nemo is not None else {}
    given |= _given(sampling, temperature=temperature, top_k=top_k, top_p=top_p)
    with _loaded(model, device, image_tokenizer) as loaded:
        settings = JobSettings(
            sampling=loaded.drawing_sampling(given),
            negative_prompt=negative_prompt,
            ratio=ratio,
            grid=_grid(grid),
            guidance_scale=loaded.parts.recipe.drawing_guidance
            if guidance_scale is None
            else guidance_scale,
            num_candidates=candidates,
            seed=seed,
            num_rows=batch_rows,
        )
        if nemo is not None:
            warn_of_pictures(nemo, drawing_request(loaded, records[0], 0, settings))
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
    output: Annotated[Path, typer.Option(help="JSON-lines file for the texts.")],
    images: Annotated[
        Path | None,
        typer.Option(help='Folder of images, or JSON lines {"image": "path", ...}.'),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="One image; repeat for more.")] = None,
    config: ConfigOption = None,
    question: Annotated[
        str | None, typer.Option(help="Asked about every image in place of a caption.")
    ] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    max_ids: Annotated[int | None, typer.Option(min=1, help="Room for a text, in ids.")] = None,
    image_tokenizer: ImageTokenizerOption = None,
    sampling: SamplingOption = None,
    seed: SeedOption = 0,
    batch_rows: RowsOption = 32,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
) -> None:
    """Write a caption for each image, or answer a question about it."""
    from PIL import Image

    from mmfast.generate.jobs import JobSettings, generate_captions, image_records

    nemo = _nemo(config)
    given: dict[str, Any] = {}
    if nemo is not None:
        given = dict(nemo.sampling) | {"repetition_penalty": nemo.repetition_penalty}
        max_ids = nemo.max_ids if max_ids is None else max_ids
        if images is None and not image:
            image = list(nemo.images)
    if (images is None) == (not image):
        raise UsageError("give either --images FOLDER or FILE.jsonl, or one or more --image FILE")
    source = images if images is not None else list(image or ())
    _, records = image_records(source)
    given |= _given(sampling, temperature=temperature, top_k=top_k, top_p=top_p)
    with _loaded(model, device, image_tokenizer) as loaded:
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
        report = generate_captions(loaded, source, output, settings)
    _print_report(report, output)


def _given(sampling: list[str] | None, **fields: float | None) -> dict[str, Any]:
    """The sampler's settings that the user said something about."""
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for text in sampling or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--sampling is NAME=VALUE, e.g. repetition_penalty=1.1, not {text!r}")
        try:
            given[name] = json.loads(value)
        except json.JSONDecodeError:
            given[name] = value
    return given


def _nemo(config: Path | None) -> "NemoInference | None":
    from mmfast.cli.nemo_inference import read_nemo_inference

    return None if config is None else read_nemo_inference(config)


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise UsageError(f"--grid is rows x columns, e.g. 32x32, not {text!r}")
    return int(rows), int(columns)


@contextlib.contextmanager
def _loaded(folder: Path, device: str, image_tokenizer: Path | None) -> Iterator["Model"]:
    """The model, within a process group when several processes were started."""
    import torch

    from mmfast.distributed import WORK_TIMEOUT, process_group, resolve_device, world_size
    from mmfast.generate import load

    place = resolve_device(device)
    model = load(folder, device=place, image_tokenizer=image_tokenizer)
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
