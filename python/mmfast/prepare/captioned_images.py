"""Images with captions to documents: what every recipe of that kind shares, whatever its documents look like.

A recipe says how large an image is coded, how captions are encoded and what a document is made of. Here records
are opened, images of one size are coded together, and documents come out in the order of records, copies and
captions. Codes depend on the images of one shard only, so any number of processes writes the same bytes.

Dimensions: B images coded together, C channels, H W pixels, h w codes.
"""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mmfast.errors import BadRecordError, CorruptDataError, UsageError
from mmfast.files import read_json_object, write_json
from mmfast.prepare.protocol import Document, Skip
from mmfast.prepare.sources import Source
from mmfast.tokenizers import ImageTokenizer, TextTokenizer
from mmfast.tokenizers.images import ImageLimits, open_image
from mmfast.tokenizers.views import (
    NUM_AFFINE_DRAWS,
    AffineRange,
    affine_matrices,
    keyed_generator,
    warp,
)
from mmfast.vocab import FILE_NAME as VOCABULARY_FILE
from mmfast.vocab import Vocabulary

RECIPE_FILE = "recipe.json"
TEXT_TOKENIZER_FILE = "tokenizer.json"
ENCODE_BATCH_PIXELS = 512 * 1024
MAX_ENCODE_BATCH = 256
# Pixels that wait to be coded with others of their size: 400 MB as float32 RGB.
WINDOW_PIXELS = 32 * 1024 * 1024
Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedImagesOptions:
    """How images and captions become views, the same for every recipe.

    Attributes:
        copies: views of each image; copy 0 is the image as it is.
        augment: how later copies differ.
        caption_choice: of several captions, a document for each or one at random per copy.
        max_caption_tokens: records with a longer caption are skipped.
        max_image_pixels: larger images are skipped undecoded.
        encode_batch: most images coded together; about half a million pixels when None.
        seed: of random views and choices.
    """

    copies: int = 1
    augment: Literal["none", "affine"] = "none"
    caption_choice: Literal["all", "random"] = "all"
    max_caption_tokens: int = 1024
    max_image_pixels: int = 64 * 1024 * 1024
    encode_batch: int | None = None
    seed: int = 0


class DocumentPlace(NamedTuple):
    """Where a document comes from; names its random draws."""

    record: int
    copy: int
    caption: int


@dataclasses.dataclass(frozen=True)
class _View:
    """One image ready to be coded, and the captions it appears with, as the recipe encoded them."""

    pixels: torch.Tensor
    captions: list[tuple[DocumentPlace, Any]]


class CaptionedImages(abc.ABC):
    """A recipe of captioned images applied to one input; implements `prepare.protocol.Preparation`.

    A subclass sets the attributes in its constructor and answers the abstract methods.

    Attributes:
        vocabulary: of the documents' ids.
        settings: how records become views.
    """

    vocabulary: Vocabulary
    settings: CaptionedImagesOptions
    _image_tokenizer: ImageTokenizer
    _text_tokenizer: TextTokenizer
    _source: Source

    @property
    def num_records(self) -> int:
        """Records of the source, bad ones included."""
        return len(self._source)

    @property
    @abc.abstractmethod
    def multimodal(self) -> bool:
        """Whether documents keep a sequence per segment, with modes."""

    @abc.abstractmethod
    def plan(self) -> dict[str, Any]:
        """Everything that bytes depend on; subclasses add to `shared_plan`."""

    @abc.abstractmethod
    def recipe_facts(self) -> dict[str, Any]:
        """Content of `recipe.json`: what a model's prompts and pictures must know of its data."""

    @abc.abstractmethod
    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """(H, W) that an image is coded at; `BadRecordError` for one that cannot be."""

    @abc.abstractmethod
    def encoded_captions(self, captions: Sequence[str]) -> list[Any]:
        """Captions as `documents_of` wants them; `BadRecordError` for one that cannot be used."""

    @abc.abstractmethod
    def documents_of(self, caption: Any, codes: Ids, place: DocumentPlace) -> list[Document]:
        """Documents of one encoded caption and the codes [h, w] of its image."""

    def documents(self, records: range, skip: Skip) -> Iterator[Document]:
        """Documents of the records, by record, then copy, then caption."""
        pending: list[_View] = []
        num_pixels = 0
        for record in records:
            try:
                views = self._views(record)
            except BadRecordError as error:
                skip(record, error)
                continue
            for view in views:
                pending.append(view)
                num_pixels += view.pixels[0].numel()
                if num_pixels >= WINDOW_PIXELS:
                    yield from self._coded(pending)
                    pending, num_pixels = [], 0
        yield from self._coded(pending)

    def check_folder(self, folder: Path) -> None:
        """An existing vocabulary and `recipe.json` must agree with what this would write."""
        if (folder / VOCABULARY_FILE).exists():
            self.vocabulary.require_same(
                Vocabulary.load(folder), here="this preparation", there=str(folder)
            )
        if (folder / RECIPE_FILE).exists():
            _require_same_recipe(self.recipe_facts(), folder / RECIPE_FILE)

    def publish(self, folder: Path) -> None:
        """Writes vocabulary, text tokenizer and `recipe.json`."""
        self.vocabulary.save(folder)
        self._text_tokenizer.save(folder / TEXT_TOKENIZER_FILE)
        write_json(folder / RECIPE_FILE, self.recipe_facts())

    def shared_plan(self) -> dict[str, Any]:
        """Records and fingerprints of source, tokenizers and vocabulary."""
        return {
            "records": self.num_records,
            "resize": self._image_tokenizer.resize,
            "source_fingerprint": self._source.fingerprint,
            "image_tokenizer_fingerprint": self._image_tokenizer.fingerprint,
            "text_tokenizer_fingerprint": self._text_tokenizer.fingerprint,
            "vocabulary_fingerprint": self.vocabulary.fingerprint,
        }

    def encode_batch_of(self, size: tuple[int, int]) -> int:
        """Most images of one size that are coded together."""
        height, width = size
        return self.settings.encode_batch or min(
            MAX_ENCODE_BATCH, max(1, ENCODE_BATCH_PIXELS // (height * width))
        )

    def _views(self, record: int) -> list[_View]:
        """All copies of one record; everything that can be wrong with it is found here."""
        settings = self.settings
        sample = self._source.sample(record)
        captions = self.encoded_captions(sample.captions)
        limits = ImageLimits(max_pixels=settings.max_image_pixels)
        image = open_image(sample.image, limits=limits)
        pixels = self._image_tokenizer.preprocess(image, self.size_of(image))
        views = []
        for copy, seen in enumerate(self._copies(record, pixels)):
            chosen: Sequence[int] = range(len(captions))
            if settings.caption_choice == "random":
                generator = keyed_generator(settings.seed, "caption choice", record, copy)
                chosen = [int(generator.integers(len(captions)))]
            places = [DocumentPlace(record, copy, number) for number in chosen]
            views.append(_View(seen, [(place, captions[place.caption]) for place in places]))
        return views

    def _copies(self, record: int, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The image `[C,H,W]` as it is, then its random views."""
        num_views = self.settings.copies - 1
        if num_views == 0 or self.settings.augment == "none":
            return [pixels] * (num_views + 1)
        seed = self.settings.seed
        draws = np.stack(
            [
                keyed_generator(seed, "affine view", record, copy).random(NUM_AFFINE_DRAWS)
                for copy in range(1, num_views + 1)
            ]
        )
        same = pixels.expand(num_views, *pixels.shape)
        return [pixels, *warp(same, affine_matrices(draws, AffineRange()))]

    def _coded(self, views: list[_View]) -> Iterator[Document]:
        """Documents of views in their order; images of one size are coded together."""
        codes: dict[int, Ids] = {}
        of_size: dict[torch.Size, list[int]] = {}
        for number, view in enumerate(views):
            of_size.setdefault(view.pixels.shape, []).append(number)
        for shape, numbers in of_size.items():
            batch = self.encode_batch_of((shape[1], shape[2]))
            for start in range(0, len(numbers), batch):
                some = numbers[start : start + batch]
                # A short batch is filled up, so that every call has one shape.
                x = torch.zeros(batch, *shape)
                for row, number in enumerate(some):
                    x[row] = views[number].pixels
                (grids,) = self._image_tokenizer.encode(x)
                codes.update(zip(some, grids[: len(some)].cpu().numpy(), strict=True))
        for number, view in enumerate(views):
            for place, caption in view.captions:
                yield from self.documents_of(caption, codes[number], place)


def image_tokenizer_facts(path: Path, tokenizer: ImageTokenizer) -> dict[str, Any]:
    """How `recipe.json` names an image tokenizer."""
    return {"path": str(path.resolve()), "fingerprint": tokenizer.fingerprint}


def _require_same_recipe(facts: dict[str, Any], path: Path) -> None:
    """Raises unless the file describes the same layout, grid and tokenizer; its path may differ."""
    known = read_json_object(path)
    pairs = [(name, facts[name], known.get(name)) for name in facts if name != "image_tokenizer"]
    try:
        prints = [each["image_tokenizer"]["fingerprint"] for each in (facts, known)]
    except (KeyError, TypeError) as error:
        raise CorruptDataError(f"{path} is not a recipe file: {error!r}") from error
    pairs.append(("image tokenizer", *prints))
    differences = [
        f"{name} is {mine!r} against {theirs!r}" for name, mine, theirs in pairs if mine != theirs
    ]
    if differences:
        raise UsageError(
            f"{path} belongs to a dataset that this one cannot share a folder with: "
            f"{'; '.join(differences)}. Choose another folder for --output"
        )
