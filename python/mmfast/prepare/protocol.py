"""What a recipe must offer so that the preparation job can run it over any input.

A recipe has `prepare_options`, a frozen dataclass whose fields become command-line options (the help
text is in the field's metadata), and `open_preparation(options)`, which every process calls alike.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmfast.data.segment import Segment
from mmfast.errors import BadRecordError

Document = Sequence[Segment]
Skip = Callable[[int, BadRecordError], None]


class Preparation(Protocol):
    """One recipe applied to one input.

    Attributes:
        num_records: length of the input, bad records included.
        multimodal: whether the dataset keeps a mode per sequence.
    """

    @property
    def num_records(self) -> int:
        """Length of the input."""

    @property
    def multimodal(self) -> bool:
        """Whether the dataset keeps modes."""

    def plan(self) -> dict[str, Any]:
        """Everything that the output's bytes depend on, as JSON: options, fingerprints of inputs."""

    def check_folder(self, folder: Path) -> None:
        """Raises `MmfastError` if files there belong to a dataset that this one cannot be mixed with."""

    def publish(self, folder: Path) -> None:
        """Writes vocabulary, tokenizer and recipe files beside the dataset."""

    def documents(self, records: range, skip: Skip) -> Iterator[Document]:
        """Documents of a range of records, in record order; `skip(record, error)` for each bad one.

        The result must be a pure function of the plan and the range.
        """


class PreparingRecipe(Protocol):
    """The part of a recipe that the preparation job uses."""

    @property
    def name(self) -> str:
        """The recipe's folder name."""

    @property
    def prepare_options(self) -> type[Any]:
        """Dataclass of options."""

    def open_preparation(self, options: Any) -> Preparation:
        """Opens inputs and tokenizers; `MmfastError` if one cannot be used."""
