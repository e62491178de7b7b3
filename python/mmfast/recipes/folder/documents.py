"""Images with captions to documents, in the layout of CM3Leon (Yu et al. 2023, arXiv:2309.02591).

    [eos] caption ids [break]    mode 0, text
    h*w image ids                mode 1, image; atomic
    [eos]                        mode 0, text

With the layout `single` the same ids are one sequence without modes.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfast.data.segment import IMAGE, TEXT, Segment
from mmfast.distributed import resolve_device
from mmfast.errors import BadRecordError, ConfigError, UsageError
from mmfast.prepare.captioned_images import (
    CaptionedImages,
    CaptionedImagesOptions,
    DocumentPlace,
    Ids,
    image_tokenizer_facts,
)
from mmfast.prepare.protocol import Document
from mmfast.prepare.sources import open_source
from mmfast.recipes.folder.options import FolderPrepareOptions
from mmfast.tokenizers import load_image_tokenizer, load_text_tokenizer
from mmfast.vocab import Vocabulary

FORMAT_VERSION = 1


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


class FolderPreparation(CaptionedImages):
    """The folder recipe applied to one input."""

    def __init__(self, options: FolderPrepareOptions) -> None:
        self._options = options
        device = resolve_device(options.device)
        self._device_kind = device.partition(":")[0]
        self._image_tokenizer = load_image_tokenizer(
            options.image_tokenizer, device=device, allow_torchscript=True
        )
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
        names = {field.name for field in dataclasses.fields(CaptionedImagesOptions)}
        shared = {name: getattr(options, name) for name in names}
        self.settings = CaptionedImagesOptions(**shared)
        self._source = open_source(
            images=options.images,
            captions=options.captions,
            tars=options.tars,
            image_field=options.image_field,
            caption_field=options.caption_field,
        )
        self.vocabulary = build_vocabulary(
            self._text_tokenizer.size,
            num_codes=tokenizer.codebook_sizes[0],
            num_sentinels=options.num_sentinels,
            text_fingerprint=self._text_tokenizer.fingerprint,
        )

    @property
    def multimodal(self) -> bool:
        """True in the layout `documents`."""
        return self._options.layout == "documents"

    def plan(self) -> dict[str, Any]:
        """Options, resolved sizes, and fingerprints of source and tokenizers."""
        fields = dataclasses.asdict(self._options).items()
        options = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in fields}
        return self.shared_plan() | {
            "options": options | {"device": self._device_kind},
            "image_size": list(self._size),
            "grid": self._grid,
            "encode_batch": self.encode_batch_of(self._size),
        }

    def recipe_facts(self) -> dict[str, Any]:
        """Layout, grid and tokenizer."""
        height, width = self._size
        return {
            "format_version": FORMAT_VERSION,
            "recipe": "folder",
            "layout": self._options.layout,
            "grid": self._grid,
            "image_size": height if height == width else [height, width],
            "resize": self._image_tokenizer.resize,
            "image_tokenizer": image_tokenizer_facts(
                self._options.image_tokenizer, self._image_tokenizer
            ),
        }

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """The same for all."""
        del image
        return self._size

    def encoded_captions(self, captions: Sequence[str]) -> list[Ids]:
        """Ids of each caption."""
        encoded = [
            np.array(ids, dtype=np.int64) for ids in self._text_tokenizer.encode_batch(captions)
        ]
        for ids in encoded:
            if len(ids) > self._options.max_caption_tokens:
                raise BadRecordError(
                    "caption_too_long",
                    f"a caption has {len(ids)} tokens, over --max-caption-tokens "
                    f"{self._options.max_caption_tokens}",
                )
        return encoded

    def documents_of(self, caption: Ids, codes: Ids, place: DocumentPlace) -> list[Document]:
        """One document: the caption, then the image."""
        del place
        eos, end_of_caption = self.vocabulary["eos"], self.vocabulary["break"]
        before = np.concatenate([[eos], caption, [end_of_caption]])
        image = self.vocabulary.ids_from_codes("image", codes).reshape(-1)
        after = np.array([eos])
        if self._options.layout == "single":
            return [[Segment(np.concatenate([before, image, after]), TEXT)]]
        return [[Segment(before, TEXT), Segment(image, IMAGE), Segment(after, TEXT)]]

    @property
    def _grid(self) -> list[int]:
        return [side // self._image_tokenizer.downsample for side in self._size]
