"""How to run a preparation job, and what recipes of captioned images share; loads nothing heavy."""

import dataclasses
from pathlib import Path
from typing import Literal

from mmfast.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How to run, apart from what to prepare; none of it but `threads` can change a byte."""

    output: Path = dataclasses.field(
        metadata={
            "help": "Prefix of the dataset: OUTPUT.bin and OUTPUT.idx are written.",
            "also": ("output_prefix",),
        }
    )
    shard_records: int = dataclasses.field(
        default=1024, metadata={"help": "Records per shard, the unit of work and of resuming."}
    )
    max_bad_fraction: float = dataclasses.field(
        default=0.05, metadata={"help": "Share of bad records above which the job fails."}
    )
    num_examples: int = dataclasses.field(
        default=5, metadata={"help": "Bad records described in the report, per reason."}
    )
    threads: int = dataclasses.field(
        default=1,
        metadata={"help": "CPU threads per process; part of the plan, since it can move a code."},
    )
    overwrite: bool = dataclasses.field(
        default=False,
        metadata={"help": "Start over, and replace the dataset and shards that are there."},
    )

    def __post_init__(self) -> None:
        if not self.output.name or str(self.output).endswith("/") or self.output.is_dir():
            raise UsageError(f"--output must be FOLDER/NAME, not the folder {self.output}")
        if self.shard_records < 1 or self.threads < 1 or self.num_examples < 0:
            raise UsageError(
                "--shard-records and --threads must be 1 or more, --num-examples 0 or more"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError("--max-bad-fraction must lie between 0 and 1")

    @property
    def shards_folder(self) -> Path:
        """Where unfinished work lies."""
        return self.output.with_name(self.output.name + ".shards")

    @property
    def report_path(self) -> Path:
        """The job's report."""
        return self.output.with_name(self.output.name + ".prepare.json")

    @property
    def index_path(self) -> Path:
        """The file whose presence says that the dataset is complete."""
        return self.output.with_name(self.output.name + ".idx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodingOptions:
    """How images become ids, and ids documents, in every recipe."""

    layout: Literal["documents", "single"] = dataclasses.field(
        default="documents",
        metadata={
            "help": "A sequence per segment with modes, or one sequence per document for NeMo and GPTDataset."
        },
    )
    max_caption_tokens: int = dataclasses.field(
        default=4096, metadata={"help": "Records with a longer caption are skipped."}
    )
    max_image_pixels: int = dataclasses.field(
        default=64 * 1024 * 1024, metadata={"help": "Larger images are skipped undecoded."}
    )
    encode_batch: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Images of one size per call of the tokenizer; part of the plan, since it can move a code. "
            "By default about half a million pixels."
        },
    )
    device: Literal["auto", "cpu", "cuda"] = dataclasses.field(
        default="auto",
        metadata={"help": "auto, cpu or cuda; part of the plan, since it can move a code."},
    )

    def __post_init__(self) -> None:
        require_positive(self, "max_caption_tokens", "max_image_pixels", "encode_batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedImagesOptions(CodingOptions):
    """One's own captioned images: where they are, and how many views and captions of each are taken."""

    image_tokenizer: Path = dataclasses.field(metadata={"help": "Folder of an image tokenizer."})
    images: Path | None = dataclasses.field(
        default=None, metadata={"help": "Folder under which all images lie."}
    )
    captions: Path | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Caption file (.jsonl, .json, .parquet) or folder of .txt and .json; without it, captions lie "
            "beside the images."
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
            "help": "Side in pixels of a square; by default each image keeps its shape where the tokenizer "
            "allows it (Emu3's), else what the tokenizer was trained at."
        },
    )
    copies: int = dataclasses.field(
        default=1, metadata={"help": "Views of each image that are encoded."}
    )
    augment: Literal["none", "affine"] = dataclasses.field(
        default="none",
        metadata={"help": "How copies after the first differ: small random affine changes."},
    )
    seed: int = dataclasses.field(default=0, metadata={"help": "Of random views and choices."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "copies", "image_size")
        if (self.images is None) == (self.tars is None):
            raise UsageError("give either --images or --tars")
        if self.captions is not None and self.images is None:
            raise UsageError("--captions needs --images, the folder their paths are relative to")
        if self.augment != "none" and self.copies < 2:
            raise UsageError("--augment needs --copies 2 or more: copy 0 is the image as it is")
        if self.augment == "none" and self.copies > 1 and self.caption_choice == "all":
            raise UsageError("--copies without --augment would repeat the same documents")


def require_positive(options: object, *names: str) -> None:
    """`UsageError` for the first of these options that is below 1; None is no number."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be 1 or more")
