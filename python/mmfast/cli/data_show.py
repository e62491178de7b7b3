"""`mmfast data show`: documents as people read them, their images as codes, files or in the terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast.cli.data_files import Prefix, grid_of, open_dataset, recipe_beside, vocabulary_beside
from mmfast.errors import CorruptDataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmfast.data import IndexedDataset, Segment

# Widest preview of an image, in characters; one is a pixel wide and two high.
PREVIEW_COLUMNS = 64


def show(
    prefix: Prefix,
    documents: Annotated[
        str, typer.Argument(help="Number of the document, from 0, or a range such as 3:7.")
    ] = "0",
    *,
    max_codes: Annotated[int, typer.Option(help="Codes shown of a run; 0 shows all.", min=0)] = 16,
    images: Annotated[
        Path | None, typer.Option(help="Folder to write the documents' images to, decoded.")
    ] = None,
    preview: Annotated[
        bool | None,
        typer.Option(
            "--preview/--no-preview",
            help="Show images in the terminal. By default, if it is one and the tokenizer is there.",
        ),
    ] = None,
) -> None:
    """Documents as people read them: text, special ids by role, images as codes or as pictures."""
    from mmfast.data.rendering import Renderer

    dataset = open_dataset(prefix)
    folder = dataset.prefixes[0].parent
    recipe = recipe_beside(folder)
    decode_text = None
    if (folder / "tokenizer.json").exists():
        from mmfast.tokenizers.text import load_text_tokenizer

        decode_text = load_text_tokenizer(folder / "tokenizer.json").decode
    renderer = Renderer(
        vocabulary=vocabulary_beside(dataset.prefixes),
        decode_text=decode_text,
        grid=grid_of(folder, recipe),
        max_codes=max_codes or dataset.num_tokens,
    )
    if preview is None:
        preview = sys.stdout.isatty() and _names_tokenizer(recipe)
    decode: Callable[[Segment, str], Image] | None = None
    if images is not None or preview:
        decode = _image_decoder(dataset, recipe)
    for document in _numbers(documents, dataset):
        segments = dataset.document(document)
        num_ids = sum(len(segment.ids) for segment in segments)
        typer.echo(f"document {document}: {len(segments)} sequences, {num_ids:,} ids")
        if segments:
            typer.echo(renderer.document(segments))
        if decode is None:
            continue
        for i, image in _images(document, segments, decode):
            if preview:
                typer.echo(half_blocks(image, PREVIEW_COLUMNS))
            if images is not None:
                images.mkdir(parents=True, exist_ok=True)
                path = images / f"document-{document}-sequence-{i}.png"
                image.save(path)
                typer.echo(path)


def half_blocks(image: "Image", columns: int) -> str:
    """An image as lines of coloured half blocks, two pixels above each other in a character."""
    width = min(columns, image.width)
    height = max(2, round(image.height * width / image.width))
    pixels = image.convert("RGB").resize((width, height + height % 2))
    lines = []
    for y in range(0, pixels.height, 2):
        cells = []
        for x in range(width):
            upper, lower = pixels.getpixel((x, y)), pixels.getpixel((x, y + 1))
            assert isinstance(upper, tuple)
            assert isinstance(lower, tuple)
            colours = (";".join(map(str, colour)) for colour in (upper, lower))
            cells.append("\x1b[38;2;{}m\x1b[48;2;{}m▀".format(*colours))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _numbers(text: str, dataset: "IndexedDataset") -> range:
    """The documents that `3`, `3:7`, `3:` or `:7` names."""
    first, colon, end = text.partition(":")
    try:
        start = int(first or 0)
        stop = int(end or dataset.num_documents) if colon else start + 1
    except ValueError:
        raise UsageError(f"documents are named by 3 or a range 3:7, found {text!r}") from None
    if not (0 <= start < stop and (start < dataset.num_documents)):
        raise UsageError(
            f"there is no document {text} in {dataset.name}, which has {dataset.num_documents:,}"
        )
    return range(start, min(stop, dataset.num_documents))


def _names_tokenizer(recipe: dict[str, Any]) -> bool:
    named = recipe.get("image_tokenizer")
    return isinstance(named, dict) and isinstance(named.get("path"), str)


def _image_decoder(
    dataset: "IndexedDataset", recipe: dict[str, Any]
) -> "Callable[[Segment, str], Image]":
    """Pictures of image segments, by the tokenizer that `recipe.json` names."""
    folder = dataset.prefixes[0].parent
    vocabulary, grid = vocabulary_beside(dataset.prefixes), grid_of(folder, recipe)
    if not _names_tokenizer(recipe) or grid is None or vocabulary is None:
        raise UsageError(
            f"--images and --preview need {folder / 'recipe.json'} to name a grid and an image "
            "tokenizer, and vocabulary.json beside it"
        )
    import torch

    from mmfast.tokenizers import images_from_tensor, load_image_tokenizer

    tokenizer = load_image_tokenizer(folder / recipe["image_tokenizer"]["path"])

    def decode(segment: "Segment", what: str) -> "Image":
        if len(segment.ids) != grid[0] * grid[1]:
            raise UsageError(
                f"{what} has {len(segment.ids)} ids, not the {grid[0]} x {grid[1]} of one image"
            )
        try:
            codes = vocabulary.codes_from_ids("image", segment.ids)
        except (KeyError, ValueError) as error:
            raise CorruptDataError(f"{what} is no image: {error}") from error
        with torch.inference_mode():
            pixels = tokenizer.decode([torch.from_numpy(codes).reshape(1, *grid)])
        return images_from_tensor(pixels)[0]

    return decode


def _images(
    document: int, segments: "Sequence[Segment]", decode: "Callable[[Segment, str], Image]"
) -> "Iterator[tuple[int, Image]]":
    from mmfast.data.segment import IMAGE

    for i, segment in enumerate(segments):
        if segment.modality == IMAGE:
            yield i, decode(segment, f"sequence {i} of document {document}")
