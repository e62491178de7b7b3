"""Options of preparing a folder of images with captions; loads nothing heavy."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from mmfast.errors import UsageError


def _option(help_text: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderPrepareOptions:
    """From images with captions to documents `[eos] caption [break] · image ids · [eos]`.

    Input is either `images` (with `captions`, or with a `.txt` or `.json` file beside each image) or
    `tars` (WebDataset shards). With `copies` above one, copy 0 is the image as it is and the others are
    random views of it, keyed by (seed, record, copy).
    """

    image_tokenizer: Path = _option("Folder of an image tokenizer.")
    text_tokenizer: Path = _option("A tokenizer.json.")
    images: Path | None = _option("Folder under which all images lie.", None)
    captions: Path | None = _option(
        "Caption file: .jsonl, .json or .parquet; without it, captions lie beside the images.", None
    )
    tars: str | None = _option(
        "WebDataset shards in place of --images: a .tar file, or a folder of them.", None
    )
    image_field: str = _option("Field with the image's path under --images.", "image")
    caption_field: str = _option("Field with the caption, or a list of them.", "caption")
    caption_choice: Literal["all", "random"] = _option(
        "Of several captions: a document for each, or one at random per copy.", "all"
    )
    image_size: int | None = _option("Side in pixels; by default what the tokenizer had.", None)
    copies: int = _option("Views of each image that are encoded.", 1)
    augment: Literal["none", "affine"] = _option(
        "How copies after the first differ: small random affine changes.", "none"
    )
    layout: Literal["documents", "single"] = _option(
        "A sequence per segment with modes, or one sequence per document for NeMo and GPTDataset.",
        "documents",
    )
    num_sentinels: int = _option("Mask sentinels in the vocabulary.", 4)
    max_caption_tokens: int = _option("Records with a longer caption are skipped.", 1024)
    max_image_pixels: int = _option("Larger images are skipped undecoded.", 64 * 1024 * 1024)
    encode_batch: int | None = _option(
        "Images per call of the tokenizer; part of the plan, since it can move a code. By default "
        "about half a million pixels.",
        None,
    )
    threads: int = _option("CPU threads per process; part of the plan for the same reason.", 1)
    device: str = _option("cpu or cuda; part of the plan for the same reason.", "cpu")
    seed: int = _option("Of random views and choices.", 0)

    def __post_init__(self) -> None:
        if (self.images is None) == (self.tars is None):
            raise UsageError("give either --images or --tars")
        if self.captions is not None and self.images is None:
            raise UsageError("--captions needs --images, the folder their paths are relative to")
        at_least_one = ("copies", "num_sentinels", "max_caption_tokens", "max_image_pixels", "threads")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be 1 or more")
        if self.augment != "none" and self.copies < 2:
            raise UsageError("--augment needs --copies 2 or more: copy 0 is the image as it is")
        if self.augment == "none" and self.copies > 1 and self.caption_choice == "all":
            raise UsageError("--copies without --augment would repeat the same documents")
