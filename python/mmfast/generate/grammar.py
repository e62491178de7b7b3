"""What may come next: for each position a forced id or a choice within allowed ranges.

A grammar is a pure function of how many ids were emitted and of the last one, so it needs no state of
its own, and one object serves any number of requests. The engine evaluates the language-model head only
on the allowed ranges, and feeds forced ids without sampling.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mmfast.vocab import CodeRange, Vocabulary


@dataclasses.dataclass(frozen=True)
class AllowedIds:
    """Disjoint half-open ranges of ids in ascending order, at least one, none empty."""

    ranges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        previous = 0
        for low, high in self.ranges:
            if not previous <= low < high:
                raise ValueError(f"ranges {self.ranges} are empty, overlap or are out of order")
            previous = high
        if not self.ranges:
            raise ValueError("a choice needs at least one allowed id")

    @classmethod
    def of(cls, ids: Sequence[int], ranges: Sequence[tuple[int, int]] = ()) -> "AllowedIds":
        """Single ids and ranges, in any order and overlapping as they like."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*((i, i + 1) for i in ids), *ranges]):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    @property
    def low(self) -> int:
        """First allowed id."""
        return self.ranges[0][0]

    @property
    def high(self) -> int:
        """One past the last allowed id."""
        return self.ranges[-1][1]

    def __contains__(self, token: int) -> bool:
        return any(low <= token < high for low, high in self.ranges)


class Forced(NamedTuple):
    """The next id is known."""

    token: int


class Choice(NamedTuple):
    """The next id is drawn, with the request's sampling settings for `modality`."""

    allowed: AllowedIds
    modality: str


class Grammar(Protocol):
    """Shape of what one request emits."""

    @property
    def max_ids(self) -> int:
        """No request emits more than this."""

    @property
    def stop_ids(self) -> tuple[int, ...] | None:
        """Ids that end it wherever they come; `next` then depends on the number of ids alone.

        None: `next` depends on the last id in other ways too, so every id is read before the next step.
        """

    def next(self, num_emitted: int, last_id: int | None) -> Forced | Choice | None:
        """What comes after `num_emitted` ids, the last of which is `last_id`; None ends it."""

    def is_complete(self, num_emitted: int, last_id: int | None) -> bool:
        """Whether an ended request ended as it should, and not by running out of room."""


@runtime_checkable
class PictureGrammar(Grammar, Protocol):
    """A grammar whose ids hold a picture."""

    def codes_from_ids(self, ids: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """The grid of each level, [h, w]; -1 where `ids`, the first ones emitted, do not reach yet."""


@dataclasses.dataclass(frozen=True)
class ImageGrammar:
    """Codes of one range, row by row, between the marks that a system puts around and into them.

    Attributes:
        height: rows of codes.
        width: codes of a row.
        codes: the range that codes come from.
        end_of_row: id that closes every row, the last one too; None for systems without one.
        closing: ids after the last row, e.g. end of image and end of sequence.
    """

    height: int
    width: int
    codes: CodeRange
    end_of_row: int | None = None
    closing: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image grid of {self.height}x{self.width} codes is empty")

    @cached_property
    def _choice(self) -> Choice:
        return Choice(AllowedIds(((self.codes.base, self.codes.end),)), "image")

    @property
    def _row_ids(self) -> int:
        return self.width + (self.end_of_row is not None)

    @property
    def max_ids(self) -> int:
        """Codes, ends of rows and closing ids."""
        return self.height * self._row_ids + len(self.closing)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Only the number of ids ends it."""
        return ()

    def next(self, num_emitted: int, last_id: int | None) -> Forced | Choice | None:
        """A code or a mark, until all are there."""
        del last_id
        row, place = divmod(num_emitted, self._row_ids)
        if row >= self.height:
            closing_idx = num_emitted - self.height * self._row_ids
            return Forced(self.closing[closing_idx]) if closing_idx < len(self.closing) else None
        if place == self.width:
            assert self.end_of_row is not None
            return Forced(self.end_of_row)
        return self._choice

    def is_complete(self, num_emitted: int, last_id: int | None) -> bool:
        """Whether all codes and marks are there."""
        del last_id
        return num_emitted == self.max_ids

    def codes_from_ids(self, ids: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """The grid [height, width] of each level, here one; -1 where `ids` do not reach yet."""
        row_ids = self._row_ids
        rows = np.full(self.height * row_ids, -1, dtype=np.int64)
        drawn = np.asarray(ids, dtype=np.int64)[: rows.size]
        rows[: drawn.size] = drawn
        grid = rows.reshape(self.height, row_ids)[:, : self.width]
        is_drawn = grid >= 0
        if ((grid < self.codes.base) | (grid >= self.codes.end))[is_drawn].any():
            raise ValueError(f"ids at places of codes are not in range `{self.codes.name}`")
        return [np.where(is_drawn, grid - self.codes.base, -1)]


@dataclasses.dataclass(frozen=True)
class TextGrammar:
    """Text ids until a stop id, which is emitted too, or until `max_ids` ids.

    Attributes:
        text: ids that text may use.
        stop_ids: ids that end it, at least one.
        max_ids: room for text and stop id together.
    """

    text: AllowedIds
    stop_ids: tuple[int, ...]
    max_ids: int

    def __post_init__(self) -> None:
        if self.max_ids < 1 or not self.stop_ids:
            raise ValueError("text needs at least one stop id and room for one id")

    @classmethod
    def of_vocabulary(
        cls, vocabulary: Vocabulary, *, stop_roles: Sequence[str], max_ids: int
    ) -> "TextGrammar":
        """The vocabulary's text ids, without special tokens and codes that lie among them."""
        taken = sorted(
            [(i, i + 1) for i in vocabulary.special.values()]
            + [(r.base, r.end) for r in vocabulary.ranges]
        )
        free, start = [], 0
        for low, high in [*taken, (vocabulary.text_size, vocabulary.text_size)]:
            if start < min(low, vocabulary.text_size):
                free.append((start, min(low, vocabulary.text_size)))
            start = max(start, high)
        return cls(
            text=AllowedIds(tuple(free)),
            stop_ids=tuple(vocabulary[role] for role in stop_roles),
            max_ids=max_ids,
        )

    @cached_property
    def _choice(self) -> Choice:
        return Choice(AllowedIds.of(self.stop_ids, self.text.ranges), "text")

    def next(self, num_emitted: int, last_id: int | None) -> Choice | None:
        """Text or stop, until there was a stop or there is no room."""
        if last_id in self.stop_ids or num_emitted >= self.max_ids:
            return None
        return self._choice

    def is_complete(self, num_emitted: int, last_id: int | None) -> bool:
        """Whether a stop id came."""
        del num_emitted
        return last_id in self.stop_ids
