"""What the placeholder ids of a segment stand for: continuous inputs, which have no ids of their own.

Features of a vision tower, pixels of a depth map: their segment holds placeholders, and a reference says what a
recipe's encoder writes in their place. References lie in `<prefix>.media` as text, one a segment; batches
carry those of their rows.
"""

import dataclasses
import json
from typing import NamedTuple, Self

from mmfast.errors import CorruptDataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaReference:
    """Where the content of a media segment is: a file (or a part of it), or an entry of a feature store.

    Attributes:
        path: file of an image or video, below the root that the recipe names; None for a store.
        region: left, top, right, bottom of the part of an image that is meant, in 0..1.
        seconds: begin and end of the part of a video that is meant.
        store: name of a feature store beside the dataset; None for a file.
        index: entry in the store.

    Raises:
        ValueError: neither or both of file and store, or numbers that name no part.
    """

    path: str | None = None
    region: tuple[float, float, float, float] | None = None
    seconds: tuple[float, float] | None = None
    store: str | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if bool(self.path) == bool(self.store):
            raise ValueError(
                f"a media reference names a path or a store, found path {self.path!r} and store {self.store!r}"
            )
        if (self.store is None) != (self.index is None) or (self.index or 0) < 0:
            raise ValueError(
                f"store and index go together, found {self.store!r} and {self.index!r}"
            )
        if self.store and (self.region or self.seconds):
            raise ValueError("region and seconds are parts of files, not of a store's entries")
        if self.region is not None:
            left, top, right, bottom = self.region
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(f"region is left, top, right, bottom in 0..1, found {self.region}")
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(f"seconds are begin and end, found {self.seconds}")

    def to_text(self) -> str:
        """The form in `<prefix>.media`: a JSON object of what is set."""
        fields = dataclasses.asdict(self)
        return json.dumps({name: value for name, value in fields.items() if value is not None})

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Reads `to_text`'s form.

        Raises:
            CorruptDataError: the text is something else; a dataset of another producer's may hold any.
        """
        try:
            fields = json.loads(text)
            for name in ("region", "seconds"):
                if name in fields:
                    fields[name] = tuple(map(float, fields[name]))
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(f"{text!r} is no media reference: {error}") from error


class BatchMedia(NamedTuple):
    """Placeholders in a batch, and what they stand for.

    Attributes:
        row: their row.
        start: position of the first in the row.
        num_ids: how many there are.
        text: the reference as the dataset has it.
    """

    row: int
    start: int
    num_ids: int
    text: str

    @property
    def reference(self) -> MediaReference:
        """The reference; `CorruptDataError` if the producer wrote another form."""
        return MediaReference.from_text(self.text)
