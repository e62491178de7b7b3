"""Images with captions to documents in the forms of Emu3 and NeMo; prompts are in `prompts.py`.

    text    what stands before the image, up to `img`
    image   visual ids, with `eol` after each row in the form `rows`; atomic
    text    what ends the image, and what follows

With the layout `single` the same ids are one sequence without modes. With `--loss answer` what the model is
given carries the mode's "no loss" bit.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfast.data.segment import IMAGE, NO_LOSS, TEXT, Segment
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
from mmfast.recipes.emu3.options import (
    CoyoPrepareOptions,
    Emu3PrepareOptions,
    PokemonPrepareOptions,
)
from mmfast.recipes.emu3.prompts import (
    QUESTION,
    GenerationPrompt,
    generation_end,
    generation_start,
    understanding_end,
    understanding_start,
)
from mmfast.recipes.emu3.vocabulary import (
    NUM_COSMOS_CODES,
    NUM_COSMOS_NAMES,
    ImageForm,
    emu3_vocabulary,
    image_ids,
    load_emu3_text_tokenizer,
    text_size_of,
)
from mmfast.tokenizers import ImageTokenizer, load_image_tokenizer
from mmfast.tokenizers.emu3 import Emu3ImageTokenizer
from mmfast.tokenizers.views import keyed_generator

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class _Caption:
    """One caption, and its ids where they do not depend on the image's grid."""

    text: str
    answer_ids: list[int]


class Emu3Preparation(CaptionedImages):
    """What the three preparations share.

    Attributes:
        form: how images are written.
        prompt: of documents that teach to draw.
        size: (H, W) of every image; None where each keeps its shape.
    """

    form: ImageForm = "rows"
    prompt: GenerationPrompt = "emu3"
    size: tuple[int, int] | None = None
    draws = True
    describes = True
    question = QUESTION

    def __init__(self, options: Any, *, image_tokenizer: Path, text_tokenizer: Path) -> None:
        self._options: Any = options
        self._image_tokenizer_path = image_tokenizer
        device = resolve_device(options.device)
        self._device_kind = device.partition(":")[0]
        self._image_tokenizer = load_image_tokenizer(
            image_tokenizer, device=device, allow_torchscript=True
        )
        if self._image_tokenizer.levels != 1:
            raise UsageError(
                f"{image_tokenizer} has {self._image_tokenizer.levels} code grids per image; this recipe takes one"
            )
        self._text_tokenizer = load_emu3_text_tokenizer(text_tokenizer)
        num_codes = self._image_tokenizer.codebook_sizes[0]
        self.vocabulary = emu3_vocabulary(
            text_size=text_size_of(self._text_tokenizer),
            num_codes=num_codes,
            num_names=NUM_COSMOS_NAMES if num_codes == NUM_COSMOS_CODES else None,
            text_fingerprint=self._text_tokenizer.fingerprint,
        )
        names = {field.name for field in dataclasses.fields(CaptionedImagesOptions)}
        given = {name: getattr(options, name) for name in names if hasattr(options, name)}
        self.settings = CaptionedImagesOptions(**given)

    @property
    def multimodal(self) -> bool:
        """True in the layout `documents`."""
        return bool(self._options.layout == "documents")

    def plan(self) -> dict[str, Any]:
        """Options, and fingerprints of source and tokenizers."""
        fields = dataclasses.asdict(self._options).items()
        options = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in fields}
        return self.shared_plan() | {
            "options": options | {"device": self._device_kind},
            "encode_batch": self.settings.encode_batch or "by pixels",
        }

    def recipe_facts(self) -> dict[str, Any]:
        """Forms, size and tokenizer."""
        facts: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "recipe": "emu3",
            "layout": self._options.layout,
            "image_form": self.form,
            "generation_prompt": self.prompt if self.draws else None,
            "question": self.question if self.describes else None,
            "null_prompt_prob": getattr(self._options, "null_prompt_prob", 0.0),
            "image_size": None if self.size is None else list(self.size),
            "resize": self._image_tokenizer.resize,
            "image_tokenizer": image_tokenizer_facts(
                self._image_tokenizer_path, self._image_tokenizer
            ),
        }
        tokenizer = self._image_tokenizer
        if self.size is not None:
            facts["grid"] = [side // tokenizer.downsample for side in self.size]
        elif isinstance(tokenizer, Emu3ImageTokenizer):
            facts["area"] = [tokenizer.min_pixels, tokenizer.max_pixels]
        return facts

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """The given size, or the tokenizer's choice for an image of this shape."""
        if self.size is not None:
            return self.size
        tokenizer = self._image_tokenizer
        assert isinstance(tokenizer, Emu3ImageTokenizer)
        return tokenizer.smart_size(image.height, image.width)

    def encoded_captions(self, captions: Sequence[str]) -> list[_Caption]:
        """Ids of the answers; captions in prompts are encoded with the grid."""
        most = self._options.max_caption_tokens
        encoded = []
        for text in captions:
            num_ids = len(self._text_tokenizer.encode(text))
            if num_ids > most:
                raise BadRecordError(
                    "caption_too_long",
                    f"a caption has {num_ids} tokens, over --max-caption-tokens {most}",
                )
            answer = understanding_end(
                self.question, text, self._text_tokenizer, self.vocabulary, form=self.form
            )
            encoded.append(_Caption(text, answer))
        return encoded

    def documents_of(self, caption: _Caption, codes: Ids, place: DocumentPlace) -> list[Document]:
        """The document to draw from, then the one to describe."""
        height, width = codes.shape
        ids = image_ids(codes, self.vocabulary, form=self.form)
        documents = []
        if self.draws:
            before = generation_start(
                "" if self._is_without_prompt(place) else caption.text,
                (height, width),
                self._text_tokenizer,
                self.vocabulary,
                prompt=self.prompt,
                form=self.form,
            )
            after = generation_end(self.vocabulary, form=self.form)
            documents.append(self._document(before, ids, [], after))
        if self.describes:
            before = understanding_start(
                (height, width), self._text_tokenizer, self.vocabulary, form=self.form
            )
            prompt = understanding_end(
                self.question, None, self._text_tokenizer, self.vocabulary, form=self.form
            )
            pairs = zip(prompt, caption.answer_ids, strict=False)
            num_given = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            given, answer = caption.answer_ids[:num_given], caption.answer_ids[num_given:]
            documents.append(self._document(before, ids, given, answer, image_is_given=True))
        return documents

    def _is_without_prompt(self, place: DocumentPlace) -> bool:
        """Whether the document at this place has an empty caption."""
        share: float = getattr(self._options, "null_prompt_prob", 0.0)
        generator = keyed_generator(self.settings.seed, "empty caption", *place)
        return share > 0 and float(generator.random()) < share

    def _document(
        self,
        before: list[int],
        image: Ids,
        given: list[int],
        learnt: list[int],
        *,
        image_is_given: bool = False,
    ) -> Document:
        """Segments of one document; `given` and `learnt` follow the image."""
        if not self.multimodal:
            ids = np.concatenate([before, image, given, learnt]).astype(np.int64)
            return [Segment(ids, TEXT)]
        context = NO_LOSS if self._options.loss == "answer" else 0
        segments = [
            (np.array(before, dtype=np.int64), TEXT | context),
            (image, IMAGE | (context if image_is_given else 0)),
        ]
        if context and given:
            segments.append((np.array(given, dtype=np.int64), TEXT | context))
            segments.append((np.array(learnt, dtype=np.int64), TEXT))
        else:
            segments.append((np.array([*given, *learnt], dtype=np.int64), TEXT))
        return [Segment(ids, mode) for ids, mode in segments]


class CoyoPreparation(Emu3Preparation):
    """Vision understanding, as NeMo's COYO script prepares it."""

    draws = False

    def __init__(self, options: CoyoPrepareOptions) -> None:
        super().__init__(
            options, image_tokenizer=options.vision_tokenizer, text_tokenizer=options.text_tokenizer
        )
        self.question = options.question
        tokenizer = self._image_tokenizer
        if options.spatial_factor != tokenizer.downsample:
            raise UsageError(
                f"--spatial-factor {options.spatial_factor}, but {options.vision_tokenizer} codes "
                f"{tokenizer.downsample} pixels; leave the flag out"
            )
        if isinstance(tokenizer, Emu3ImageTokenizer):
            tokenizer.min_pixels, tokenizer.max_pixels = options.min_pixels, options.max_pixels
        else:
            self.size = tokenizer.image_size
        self._source = open_source(
            images=options.input_image_dir,
            captions=options.input_captions_dir,
            image_field=options.image_field,
            caption_field=options.caption_field,
            pickles=True,
        )

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """As the flags say; grey images may be skipped."""
        options: CoyoPrepareOptions = self._options
        if options.gray == "skip" and image.mode == "L":
            raise BadRecordError("image_gray", "the image is grey, and --gray skip was given")
        if options.resize_image == "true" or self.size is not None:
            return super().size_of(image)
        factor = self._image_tokenizer.downsample
        if image.height % factor or image.width % factor:
            raise BadRecordError(
                "image_size",
                f"an image of {image.width} x {image.height} is no multiple of {factor} pixels, and "
                "--resize-image false was given",
            )
        return image.height, image.width


class PokemonPreparation(Emu3Preparation):
    """Image generation with one fixed grid, as NeMo's Pokemon script prepares it."""

    form = "flat"
    prompt = "nemo"
    describes = False

    def __init__(self, options: PokemonPrepareOptions) -> None:
        super().__init__(
            options,
            image_tokenizer=options.image_encoder,
            text_tokenizer=options.multimodal_tokenizer_path,
        )
        self.size = _square(options.image_size, self._image_tokenizer)
        parquet = _parquet_files(options.dataset)
        self._source = open_source(
            images=options.dataset if options.dataset.is_dir() else options.dataset.parent,
            captions=parquet or None,
            image_field=options.image_field,
            caption_field=options.caption_field,
        )


class OwnPreparation(Emu3Preparation):
    """One's own captioned images, to draw and to describe."""

    def __init__(self, options: Emu3PrepareOptions) -> None:
        super().__init__(
            options, image_tokenizer=options.image_tokenizer, text_tokenizer=options.text_tokenizer
        )
        self.question = options.question
        self.draws = options.task != "understanding"
        self.describes = options.task != "generation"
        tokenizer = self._image_tokenizer
        if options.image_size is not None:
            self.size = _square(options.image_size, tokenizer)
        elif not isinstance(tokenizer, Emu3ImageTokenizer):
            self.size = tokenizer.image_size
        self._source = open_source(
            images=options.images,
            captions=options.captions,
            tars=options.tars,
            image_field=options.image_field,
            caption_field=options.caption_field,
        )


def _square(side: int, tokenizer: ImageTokenizer) -> tuple[int, int]:
    if side % tokenizer.downsample:
        raise ConfigError(
            f"--image-size {side} is not a multiple of the tokenizer's factor {tokenizer.downsample}"
        )
    return side, side


def _parquet_files(path: Path) -> list[Path]:
    """The file itself, or all under a folder; of a data set on disk, the split `train` where there is one."""
    if path.is_file():
        return [path]
    found = sorted(path.rglob("*.parquet"))
    return [file for file in found if file.name.startswith("train")] or found
