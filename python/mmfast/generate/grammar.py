"""What may come next: for each position a forced id or a choice within allowed ranges.

A grammar is a pure function of how many ids were emitted and of the last one, so it needs no state of
its own, and one object serves any number of requests. The engine evaluates the language-model head only
on the allowed ranges, and feeds forced ids without sampling.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

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

    def next(self, num_emitted: int, last_id: int | None) -> Forced | Choice | None:
        """What comes after `num_emitted` ids, the last of which is `last_id`; None ends it."""

    def is_complete(self, num_emitted: int, last_id: int | None) -> bool:
        """Whether an ended request ended as it should, and not by running out of room."""


@dataclasses.dataclass(frozen=True)
class ImageGrammar:
    """Exactly height * width codes of one range, row by row, and nothing else."""

    height: int
    width: int
    codes: CodeRange

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image grid of {self.height}x{self.width} codes is empty")

    @cached_property
    def _choice(self) -> Choice:
        return Choice(AllowedIds(((self.codes.base, self.codes.end),)), "image")

    @property
    def max_ids(self) -> int:
        """Number of codes."""
        return self.height * self.width

    def next(self, num_emitted: int, last_id: int | None) -> Choice | None:
        """A code, until the grid is full."""
        del last_id
        return self._choice if num_emitted < self.max_ids else None

    def is_complete(self, num_emitted: int, last_id: int | None) -> bool:
        """Whether the grid is full."""
        del last_id
        return num_emitted == self.max_ids


@dataclasses.dataclass(frozen=True)
class TextGrammar:
    """Text ids until a stop id, which is emitted too, or until `max_ids` ids.

    Attributes:
        text: ids that text may use.
        stop_ids: ids that end it.
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
