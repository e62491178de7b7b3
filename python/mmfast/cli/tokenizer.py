"""`mmfast tokenizer`: train, try and inspect image and text tokenizers."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mmfast.errors import BadRecordError, MmfastError, UsageError

app = typer.Typer(
    help="Train, try and inspect image and text tokenizers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

PRESETS = "mmfast.tokenizers.presets"
REPORT_FILE = "training.json"
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command("train-image")
def train_image(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings, e.g. `learning_rate=1e-3 tokenizer.widths=[64,128]`.",
        ),
    ] = None,
    *,
    images: Annotated[Path, typer.Option(help="Folder of images, searched with its subfolders.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained tokenizer.")],
    preset: Annotated[
        str, typer.Option(help="tiny (16x16, seconds), small (64x64) or base (256x256, 1,024 ids).")
    ] = "small",
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels, in place of the preset's.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time budget in place of steps; not reproducible.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, split, order and views.")] = None,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Train the built-in FSQ image tokenizer on a folder of images."""
    from mmfast.config import config_yaml, load_config
    from mmfast.distributed import resolve_device
    from mmfast.files import write_json
    from mmfast.tokenizers.images import list_images

    settings = list(overrides or [])
    if image_size is not None:
        settings += [f"tokenizer.image_{side}={image_size}" for side in ("height", "width")]
    flags = {"steps": steps, "seconds": seconds, "seed": seed}
    settings += [f"{key}={value}" for key, value in flags.items() if value is not None]

    from mmfast.tokenizers.fsq_training import (
        FsqTrainingConfig,
        load_images,
        report_dict,
        train_fsq,
    )

    resolved = load_config(
        FsqTrainingConfig, preset=preset, preset_package=PRESETS, file=config, overrides=settings
    )
    place = resolve_device(device)
    paths = list_images(images)
    shape = resolved.tokenizer
    if dry_run:
        grid_h, grid_w = (
            shape.image_height // shape.downsample,
            shape.image_width // shape.downsample,
        )
        typer.echo(config_yaml(resolved).rstrip())
        typer.echo(
            f"# {len(paths)} images under {images}; {shape.image_height}x{shape.image_width} pixels -> "
            f"{grid_h}x{grid_w} = {grid_h * grid_w} ids of {shape.num_codes} codes; would write {output}"
        )
        return
    tokenizer, report = train_fsq(load_images(paths, resolved), resolved, device=place)
    output.mkdir(parents=True, exist_ok=True)
    if report.usable:
        tokenizer.save(output)
    trained = dataclasses.replace(resolved, tokenizer=tokenizer.config)
    write_json(output / REPORT_FILE, report_dict(report, trained))
    if not report.usable:
        raise MmfastError(
            f"the trained tokenizer cannot be used and was not saved: {report.warnings[-1]} "
            f"(figures in {output / REPORT_FILE})"
        )
    typer.echo(
        f"{output}: PSNR {report.psnr_db:.2f} dB on {report.num_held_out} held-out images (their mean: "
        f"{report.psnr_db_of_mean_image:.2f} dB), {report.num_codes_used} of {report.num_codes} codes used, "
        f"perplexity {report.code_perplexity:.1f}, {report.steps} steps in {report.seconds:.1f} s, "
        f"fingerprint {tokenizer.fingerprint}"
    )


@app.command("train-text")
def train_text(
    *,
    captions: Annotated[
        Path,
        typer.Option(help=".jsonl, .json or parquet with captions, or .txt with a text a line."),
    ],
    output: Annotated[Path, typer.Option(help="The tokenizer.json to write.")],
    vocab_size: Annotated[int, typer.Option(help="Most ids; 256 of them are the bytes.")] = 8192,
    caption_field: Annotated[
        str, typer.Option(help="Field that holds the text or texts.")
    ] = "caption",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Train a byte-level BPE text tokenizer on captions."""
    texts, skipped = _caption_texts(captions, caption_field)
    if not texts:
        raise UsageError(
            f"{captions} holds no text in field {caption_field!r}{_skip_note(skipped, ': ')}"
        )
    if dry_run:
        typer.echo(
            f"{len(texts):,} texts in {captions}{_skip_note(skipped, ', ')}; would write {output}"
        )
        return
    from mmfast.tokenizers.text import train_text_tokenizer

    tokenizer = train_text_tokenizer(texts, vocab_size=vocab_size)
    tokenizer.save(output)
    num_ids = sum(map(len, tokenizer.encode_batch(texts)))
    num_bytes = sum(len(text.encode()) for text in texts)
    typer.echo(
        f"{output}: {tokenizer.size} ids, {num_bytes / max(num_ids, 1):.2f} bytes an id over "
        f"{len(texts):,} texts{_skip_note(skipped, ', ')}, fingerprint {tokenizer.fingerprint}"
    )


@app.command()
def reconstruct(
    *,
    tokenizer: Annotated[Path, typer.Option(help="Folder of an image tokenizer.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    output: Annotated[Path, typer.Option(help="Folder for reconstructions and figures.")],
    captions: Annotated[
        Path | None,
        typer.Option(
            help="Caption file: only its images are taken, and its fields passed through."
        ),
    ] = None,
    image_field: Annotated[str, typer.Option(help="Field with the image's path.")] = "image",
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels; default as trained.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    grid_images: Annotated[int, typer.Option(min=1, help="Images shown in grid.png.")] = 32,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Send images through a tokenizer and back; write them, their PSNR and a grid."""
    from mmfast.distributed import resolve_device
    from mmfast.tokenizers.images import list_images
    from mmfast.tokenizers.protocol import load_image_tokenizer
    from mmfast.tokenizers.reconstruction import reconstruct_images

    loaded = load_image_tokenizer(tokenizer, device=resolve_device(device), allow_torchscript=True)
    if image_size is not None and (image_size < 1 or image_size % loaded.downsample):
        raise UsageError(
            f"--image-size {image_size} is not a multiple of the tokenizer's factor {loaded.downsample}"
        )
    skipped: Counter[str] = Counter()
    items: list[tuple[Path, dict[str, Any]]] = (
        [(path, {}) for path in list_images(images)]
        if captions is None
        else _captioned(images, captions, image_field, skipped)
    )
    if dry_run:
        typer.echo(f"{len(items)} images{_skip_note(skipped, ', ')}; would write {output}")
        return
    metrics = reconstruct_images(
        loaded,
        items,
        output,
        image_size=image_size,
        batch_size=batch_size,
        num_grid_images=grid_images,
        skipped=skipped,
    )
    typer.echo(
        f"{output}: PSNR {metrics['psnr_db']:.2f} dB over {metrics['num_images']} images "
        f"(worst {metrics['psnr_db_worst']:.2f}){_skip_note(skipped, ', ')}"
    )


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="An image tokenizer's folder or a tokenizer.json.")],
) -> None:
    """Print what a tokenizer is, as JSON."""
    from mmfast.files import read_json_object
    from mmfast.tokenizers.protocol import (
        CONFIG_FILE,
        is_torchscript_folder,
        load_image_tokenizer,
        read_tokenizer_config,
    )

    facts: dict[str, Any]
    if is_torchscript_folder(path):
        program = load_image_tokenizer(path, allow_torchscript=True)
        facts = {
            "kind": "cosmos",
            "codebook_sizes": list(program.codebook_sizes),
            "downsample": program.downsample,
            "fingerprint": program.fingerprint,
        }
    elif (path / CONFIG_FILE).is_file():
        loaded = load_image_tokenizer(path)
        facts = {**read_tokenizer_config(path), "fingerprint": loaded.fingerprint}
        if (path / REPORT_FILE).is_file():
            facts["training"] = read_json_object(path / REPORT_FILE)
    else:
        from mmfast.tokenizers.text import load_text_tokenizer

        text = load_text_tokenizer(path)
        facts = {"kind": "text", "size": text.size, "fingerprint": text.fingerprint}
    typer.echo(json.dumps(facts, indent=2))


def _caption_texts(path: Path, caption_field: str) -> tuple[list[str], Counter[str]]:
    """All texts of a caption file, and counts of what gave none, by reason."""
    skipped: Counter[str] = Counter()
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise UsageError(f"there is no caption file {path}")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8: {error}") from error
        return [line for line in lines if line.strip()], skipped
    texts: list[str] = []
    for record in _records(path, skipped):
        value = record.get(caption_field)
        found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        found = [text for text in found if isinstance(text, str) and text.strip()]
        valid = [text for text in found if _is_unicode(text)]
        texts += valid
        skipped["caption_missing"] += not found
        skipped["caption_not_unicode"] += len(found) - len(valid)
    return texts, +skipped


def _captioned(
    images: Path, captions: Path, image_field: str, skipped: Counter[str]
) -> list[tuple[Path, dict[str, Any]]]:
    """Image and record of each line that names one; the others are counted in `skipped` by reason."""
    from mmfast.tokenizers.images import image_path_under

    root = images.resolve()
    items = []
    for record in _records(captions, skipped):
        name = record.get(image_field)
        if not isinstance(name, str):
            skipped["image_missing"] += 1
            continue
        try:
            items.append((image_path_under(root, name), record))
        except BadRecordError as error:
            skipped[error.reason] += 1
    return items


def _records(path: Path, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Records of a caption file; those that cannot be read are counted in `skipped` by reason."""
    from mmfast.prepare.annotations import open_annotations

    records = open_annotations(path, image_field="image", caption_field="caption")
    for index in range(len(records)):
        try:
            yield records[index]
        except BadRecordError as error:
            skipped[error.reason] += 1


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _skip_note(skipped: Counter[str], lead: str) -> str:
    """`, 3 records skipped (image_missing 2, record_broken 1)`, or nothing."""
    if not skipped:
        return ""
    reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.most_common())
    return f"{lead}{skipped.total()} records skipped ({reasons})"
