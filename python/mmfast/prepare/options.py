"""How to run a preparation job, whatever the recipe; loads nothing heavy."""

import dataclasses
from pathlib import Path

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


def require_positive(options: object, *names: str) -> None:
    """`UsageError` for the first of these options that is below 1; None is no number."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be 1 or more")


def require_sources(*, images: Path | None, tars: Path | None, captions: Path | None) -> None:
    """`UsageError` unless captioned images come from one kind of place."""
    if (images is None) == (tars is None):
        raise UsageError("give either --images or --tars")
    if captions is not None and images is None:
        raise UsageError("--captions needs --images, the folder their paths are relative to")


def require_distinct_copies(*, copies: int, augment: str, caption_choice: str) -> None:
    """`UsageError` if the copies of an image would be the same documents, or there is none to change."""
    if augment != "none" and copies < 2:
        raise UsageError("--augment needs --copies 2 or more: copy 0 is the image as it is")
    if augment == "none" and copies > 1 and caption_choice == "all":
        raise UsageError("--copies without --augment would repeat the same documents")
