"""Options of preparing a folder of images with captions; loads nothing heavy."""

import dataclasses
from pathlib import Path
from typing import Literal

from mmfast.prepare.options import require_distinct_copies, require_positive, require_sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderPrepareOptions:
    """Prepare a folder of images with captions, or WebDataset shards.

    Documents are `[eos] caption [break] · image ids · [eos]`.

    Input is either `images` (with `captions`, or with a `.txt` or `.json` file beside each image) or
    `tars` (WebDataset shards). With `copies` above one, copy 0 is the image as it is and the others are
    random views of it, keyed by (seed, record, copy).
    """

    image_tokenizer: Path = dataclasses.field(metadata={"help": "Folder of an image tokenizer."})
    text_tokenizer: Path = dataclasses.field(metadata={"help": "A tokenizer.json."})
    images: Path | None = dataclasses.field(
        default=None, metadata={"help": "Folder under which all images lie."}
    )
    captions: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Caption file: .jsonl, .json or .parquet; without it, captions lie beside the images."
        },
    )
    tars: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "WebDataset shards in place of --images: a .tar file, or a folder of them."
        },
    )
    image_field: str = dataclasses.field(
        default="image", metadata={"help": "Field with the image's path under --images."}
    )
    caption_field: str = dataclasses.field(
        default="caption", metadata={"help": "Field with the caption, or a list of them."}
    )
    caption_choice: Literal["all", "random"] = dataclasses.field(
        default="all",
        metadata={"help": "Of several captions: a document for each, or one at random per copy."},
    )
    image_size: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Side in pixels; by default what the tokenizer had. Images are brought to it by the "
            "tokenizer's `resize`: as built, scaled until they cover it and cut at the centre."
        },
    )
    copies: int = dataclasses.field(
        default=1, metadata={"help": "Views of each image that are encoded."}
    )
    augment: Literal["none", "affine"] = dataclasses.field(
        default="none",
        metadata={"help": "How copies after the first differ: small random affine changes."},
    )
    layout: Literal["documents", "single"] = dataclasses.field(
        default="documents",
        metadata={
            "help": "A sequence per segment with modes, or one sequence per document for NeMo and GPTDataset."
        },
    )
    num_sentinels: int = dataclasses.field(
        default=4, metadata={"help": "Mask sentinels in the vocabulary."}
    )
    max_caption_tokens: int = dataclasses.field(
        default=1024, metadata={"help": "Records with a longer caption are skipped."}
    )
    max_image_pixels: int = dataclasses.field(
        default=64 * 1024 * 1024, metadata={"help": "Larger images are skipped undecoded."}
    )
    encode_batch: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Images per call of the tokenizer; part of the plan, since it can move a code. By default "
            "about half a million pixels."
        },
    )
    device: Literal["auto", "cpu", "cuda"] = dataclasses.field(
        default="auto",
        metadata={"help": "auto, cpu or cuda; part of the plan for the same reason."},
    )
    seed: int = dataclasses.field(default=0, metadata={"help": "Of random views and choices."})

    def __post_init__(self) -> None:
        require_sources(images=self.images, tars=self.tars, captions=self.captions)
        require_positive(self, "copies", "num_sentinels", "max_caption_tokens", "max_image_pixels")
        require_distinct_copies(
            copies=self.copies, augment=self.augment, caption_choice=self.caption_choice
        )
