"""Images with captions to documents, in the layout of CM3Leon (Yu et al. 2023, arXiv:2309.02591).

    [eos] caption ids [break]    mode 0, text
    h*w image ids                mode 1, image; atomic
    [eos]                        mode 0, text

With the layout `single` the same ids are one sequence without modes.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.data.segment import IMAGE, TEXT, Segment
from mmfast.distributed import resolve_device
from mmfast.errors import BadRecordError, ConfigError, CorruptDataError, UsageError
from mmfast.files import read_json_object, write_json
from mmfast.prepare.protocol import Document, Skip
from mmfast.recipes.folder.options import FolderPrepareOptions
from mmfast.recipes.folder.sources import Sample, open_source
from mmfast.tokenizers import load_image_tokenizer, load_text_tokenizer
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
FORMAT_VERSION = 1
ENCODE_BATCH_PIXELS = 512 * 1024
MAX_ENCODE_BATCH = 256
Ids = npt.NDArray[np.int64]


def build_vocabulary(
    text_size: int, *, num_codes: int, num_sentinels: int, text_fingerprint: str
) -> Vocabulary:
    """Text ids, then `eos pad break eoss mask_0 …`, then the image codes as range `image`."""
    return Vocabulary.build(
        text_size,
        roles=("eos", "pad", "break", "eoss", *(f"mask_{i}" for i in range(num_sentinels))),
        codes=[("image", num_codes)],
        text_fingerprint=text_fingerprint,
    )


@dataclasses.dataclass(frozen=True)
class _View:
    """One image ready to be encoded, and the captions it appears with."""

    pixels: torch.Tensor
    captions: list[Ids]


class FolderPreparation:
    """The folder recipe applied to one input; implements `mmfast.prepare.protocol.Preparation`."""

    def __init__(self, options: FolderPrepareOptions) -> None:
        self._options = options
        device = resolve_device(options.device)
        self._device_kind = device.partition(":")[0]
        self._image_tokenizer = load_image_tokenizer(options.image_tokenizer, device=device)
        self._text_tokenizer = load_text_tokenizer(options.text_tokenizer)
        tokenizer = self._image_tokenizer
        if tokenizer.levels != 1:
            raise UsageError(
                f"{options.image_tokenizer} has {tokenizer.levels} code grids per image; this recipe takes one"
            )
        size = options.image_size
        height, width = tokenizer.image_size if size is None else (size, size)
        if height % tokenizer.downsample or width % tokenizer.downsample or height < 1:
            raise ConfigError(
                f"--image-size {size} is not a multiple of the tokenizer's factor {tokenizer.downsample}"
            )
        self._size = (height, width)
        self._batch = options.encode_batch or min(
            MAX_ENCODE_BATCH, max(1, ENCODE_BATCH_PIXELS // (height * width))
        )
        self._limits = ImageLimits(max_pixels=options.max_image_pixels)
        self._source = open_source(options)
        self.vocabulary = build_vocabulary(
            self._text_tokenizer.size,
            num_codes=tokenizer.codebook_sizes[0],
            num_sentinels=options.num_sentinels,
            text_fingerprint=self._text_tokenizer.fingerprint,
        )

    @property
    def num_records(self) -> int:
        """Records of the source, bad ones included."""
        return len(self._source)

    @property
    def multimodal(self) -> bool:
        """True in the layout `documents`."""
        return self._options.layout == "documents"

    def plan(self) -> dict[str, Any]:
        """Options, resolved sizes, and fingerprints of source and tokenizers."""
        fields = dataclasses.asdict(self._options).items()
        options = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in fields}
        return {
            "options": options | {"device": self._device_kind},
            "records": self.num_records,
            "image_size": list(self._size),
            "resize": self._image_tokenizer.resize,
            "grid": self._grid,
            "encode_batch": self._batch,
            "source_fingerprint": self._source.fingerprint,
            "image_tokenizer_fingerprint": self._image_tokenizer.fingerprint,
            "text_tokenizer_fingerprint": self._text_tokenizer.fingerprint,
            "vocabulary_fingerprint": self.vocabulary.fingerprint,
        }

    def check_folder(self, folder: Path) -> None:
        """An existing vocabulary and `recipe.json` must agree with what this would write."""
        if (folder / VOCABULARY_FILE).exists():
            self.vocabulary.require_same(
                Vocabulary.load(folder), here="this preparation", there=str(folder)
            )
        if (folder / RECIPE_FILE).exists():
            _require_same_recipe(self._recipe_facts(), folder / RECIPE_FILE)

    def publish(self, folder: Path) -> None:
        """Writes vocabulary, text tokenizer and `recipe.json`."""
        self.vocabulary.save(folder)
        self._text_tokenizer.save(folder / TEXT_TOKENIZER_FILE)
        write_json(folder / RECIPE_FILE, self._recipe_facts())

    def documents(self, records: range, skip: Skip) -> Iterator[Document]:
        """Documents of the records, by record, then copy, then caption."""
        pending: list[_View] = []
        for record in records:
            try:
                views = self._views(record)
            except BadRecordError as error:
                skip(record, error)
                continue
            for view in views:
                pending.append(view)
                if len(pending) == self._batch:
                    yield from self._encoded(pending)
                    pending = []
        if pending:
            yield from self._encoded(pending)

    @property
    def _grid(self) -> list[int]:
        return [side // self._image_tokenizer.downsample for side in self._size]

    def _recipe_facts(self) -> dict[str, Any]:
        height, width = self._size
        return {
            "format_version": FORMAT_VERSION,
            "recipe": "folder",
            "layout": self._options.layout,
            "grid": self._grid,
            "image_size": height if height == width else [height, width],
            "resize": self._image_tokenizer.resize,
            "image_tokenizer": {
                "path": str(self._options.image_tokenizer.resolve()),
                "fingerprint": self._image_tokenizer.fingerprint,
            },
        }

    def _views(self, record: int) -> list[_View]:
        """All copies of one record; everything that can be wrong with it is found here."""
        options = self._options
        sample: Sample = self._source.sample(record)
        captions = [
            np.array(ids, dtype=np.int64)
            for ids in self._text_tokenizer.encode_batch(sample.captions)
        ]
        for ids in captions:
            if len(ids) > options.max_caption_tokens:
                raise BadRecordError(
                    "caption_too_long",
                    f"a caption has {len(ids)} tokens, over --max-caption-tokens {options.max_caption_tokens}",
                )
        image = open_image(sample.image, limits=self._limits)
        pixels = self._image_tokenizer.preprocess(image, self._size)
        views = []
        for copy, seen in enumerate(self._copies(record, pixels)):
            chosen = captions
            if options.caption_choice == "random":
                generator = keyed_generator(options.seed, "caption choice", record, copy)
                chosen = [captions[int(generator.integers(len(captions)))]]
            views.append(_View(seen, chosen))
        return views

    def _copies(self, record: int, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The image `[C,H,W]` as it is, then its random views."""
        num_views = self._options.copies - 1
        if num_views == 0 or self._options.augment == "none":
            return [pixels] * (num_views + 1)
        seed = self._options.seed
        draws = np.stack(
            [
                keyed_generator(seed, "affine view", record, copy).random(NUM_AFFINE_DRAWS)
                for copy in range(1, num_views + 1)
            ]
        )
        same = pixels.expand(num_views, *pixels.shape)
        return [pixels, *warp(same, affine_matrices(draws, AffineRange()))]

    def _encoded(self, views: list[_View]) -> Iterator[Document]:
        """Documents of at most one batch; a short one is filled up, so that every call has one shape."""
        x = torch.zeros(self._batch, *views[0].pixels.shape)
        for i, view in enumerate(views):
            x[i] = view.pixels
        (codes,) = self._image_tokenizer.encode(x)
        image_ids = self.vocabulary.ids_from_codes("image", codes.cpu().numpy())
        for i, view in enumerate(views):
            for caption in view.captions:
                yield self._document(caption, image_ids[i].reshape(-1))

    def _document(self, caption: Ids, image: Ids) -> Document:
        eos, end_of_caption = self.vocabulary["eos"], self.vocabulary["break"]
        before = np.concatenate([[eos], caption, [end_of_caption]])
        after = np.array([eos])
        if self._options.layout == "single":
            return [Segment(np.concatenate([before, image, after]), TEXT)]
        return [Segment(before, TEXT), Segment(image, IMAGE), Segment(after, TEXT)]


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
