"""Names every id of a model: text ids, special tokens by role, and ranges of visual codes.

Visual ids are arithmetic (`base + code`), never formatted strings. A `Vocabulary` is saved as
`vocabulary.json` beside a dataset and inside a checkpoint; wherever the two meet, their fingerprints
are compared, and a mismatch is an error that says which part differs.

Layout built by `Vocabulary.build`: text ids, then special tokens, then code ranges, then unused ids
up to a multiple that suits the hardware.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfast.errors import CorruptDataError, VocabularyMismatchError
from mmfast.files import write_json

FORMAT_VERSION = 1
FILE_NAME = "vocabulary.json"
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeRange:
    """A run of ids `[base, base + size)` that hold the codes of one codebook.

    Attributes:
        name: unique name, e.g. `image`.
        base: id of code 0.
        size: number of codes.
        level: codebook level for tokenizers with several; 0 for the first.
    """

    name: str
    base: int
    size: int
    level: int = 0

    @property
    def end(self) -> int:
        """First id after the range."""
        return self.base + self.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """All ids of one model.

    Attributes:
        size: number of ids, the model's embedding rows included that stand for nothing.
        text_size: the text tokenizer's ids are `[0, text_size)`; special tokens and code ranges
            may lie inside it where a published tokenizer has them there.
        special: role (`bos eos pad break boi eoi eoss mask_0 …`) to id.
        ranges: code ranges; they never overlap each other or a special token.
        text_fingerprint: hash of the text tokenizer's file, empty when none is attached.
    """

    size: int
    text_size: int
    special: Mapping[str, int]
    ranges: tuple[CodeRange, ...] = ()
    text_fingerprint: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.text_size <= self.size:
            raise ValueError(f"text_size {self.text_size} is not within 0..{self.size}")
        owner: dict[int, str] = {}
        for role, token_id in self.special.items():
            if not 0 <= token_id < self.size:
                raise ValueError(
                    f"special token {role!r} has id {token_id}, outside 0..{self.size - 1}"
                )
            if token_id in owner:
                raise ValueError(
                    f"special tokens {owner[token_id]!r} and {role!r} share id {token_id}"
                )
            owner[token_id] = role
        previous: CodeRange | None = None
        for code_range in sorted(self.ranges, key=lambda r: r.base):
            if code_range.size < 1 or code_range.base < 0 or code_range.end > self.size:
                raise ValueError(
                    f"code range {code_range.name!r} [{code_range.base}, {code_range.end}) is empty or outside "
                    f"0..{self.size}"
                )
            if previous is not None and code_range.base < previous.end:
                raise ValueError(f"code ranges {previous.name!r} and {code_range.name!r} overlap")
            for token_id, role in owner.items():
                if code_range.base <= token_id < code_range.end:
                    raise ValueError(
                        f"special token {role!r} (id {token_id}) lies inside range {code_range.name!r}"
                    )
            previous = code_range
        if len({r.name for r in self.ranges}) != len(self.ranges):
            raise ValueError(f"code range names are not unique: {[r.name for r in self.ranges]}")

    @classmethod
    def build(
        cls,
        text_size: int,
        *,
        roles: Sequence[str],
        codes: Sequence[tuple[str, int] | tuple[str, int, int]] = (),
        multiple_of: int = 64,
        text_fingerprint: str = "",
    ) -> "Vocabulary":
        """Lays out text ids, then `roles` in order, then `codes` in order.

        A code range is (name, size) or, for a tokenizer with several codebooks, (name, size, level).

        The size is rounded up to `multiple_of`, which keeps matrix shapes friendly to tensor cores.
        """
        special = {role: text_size + i for i, role in enumerate(roles)}
        base = text_size + len(special)
        ranges = []
        for name, size, *level in codes:
            ranges.append(
                CodeRange(name=name, base=base, size=size, level=level[0] if level else 0)
            )
            base += size
        size = -(-base // multiple_of) * multiple_of
        return cls(
            size=size,
            text_size=text_size,
            special=special,
            ranges=tuple(ranges),
            text_fingerprint=text_fingerprint,
        )

    def __getitem__(self, role: str) -> int:
        """Id of a special token by role; `KeyError` names the roles there are."""
        try:
            return self.special[role]
        except KeyError:
            raise KeyError(
                f"no special token with role {role!r}; there are {sorted(self.special)}"
            ) from None

    def __contains__(self, role: str) -> bool:
        return role in self.special

    def range(self, name: str) -> CodeRange:
        """Code range by name; `KeyError` names the ranges there are."""
        for code_range in self.ranges:
            if code_range.name == name:
                return code_range
        raise KeyError(f"no code range {name!r}; there are {[r.name for r in self.ranges]}")

    @property
    def mask_ids(self) -> tuple[int, ...]:
        """Ids of the span sentinels `mask_0, mask_1, …` in order."""
        ids: list[int] = []
        while f"mask_{len(ids)}" in self.special:
            ids.append(self.special[f"mask_{len(ids)}"])
        return tuple(ids)

    def ids_from_codes(self, name: str, codes: npt.ArrayLike) -> IntArray:
        """Ids of codes in range `name`, any shape; `ValueError` if a code is outside the codebook."""
        code_range = self.range(name)
        array = np.asarray(codes, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= code_range.size):
            raise ValueError(
                f"codes {array.min()}..{array.max()} do not fit range {name!r} of {code_range.size} codes"
            )
        return array + code_range.base

    def codes_from_ids(self, name: str, ids: npt.ArrayLike) -> IntArray:
        """Codes of ids in range `name`, any shape; `ValueError` names the first id outside it."""
        code_range = self.range(name)
        array = np.asarray(ids, dtype=np.int64)
        outside = (array < code_range.base) | (array >= code_range.end)
        if outside.any():
            raise ValueError(
                f"id {array[outside].flat[0]} is not in range {name!r} [{code_range.base}, {code_range.end})"
            )
        return array - code_range.base

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "format_version": FORMAT_VERSION,
            "size": self.size,
            "text_size": self.text_size,
            "text_fingerprint": self.text_fingerprint,
            "special": dict(self.special),
            "ranges": [dataclasses.asdict(r) for r in self.ranges],
        }

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two vocabularies share only if every id means the same."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, folder: Path) -> Path:
        """Writes `vocabulary.json` into `folder` (created if needed)."""
        path = folder / FILE_NAME
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads `vocabulary.json`, given the file or its folder; `CorruptDataError` on a bad file."""
        if path.is_dir():
            path = path / FILE_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format_version"] != FORMAT_VERSION:
                raise CorruptDataError(
                    f"{path}: vocabulary format {data['format_version']} is not {FORMAT_VERSION}; upgrade mmfast"
                )
            return cls(
                size=int(data["size"]),
                text_size=int(data["text_size"]),
                special={str(k): int(v) for k, v in data["special"].items()},
                ranges=tuple(CodeRange(**r) for r in data["ranges"]),
                text_fingerprint=str(data["text_fingerprint"]),
            )
        except (
            json.JSONDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise CorruptDataError(f"{path} is not a vocabulary: {error}") from error

    def differences(self, other: "Vocabulary") -> list[str]:
        """One sentence for each part in which the two differ; empty when they are the same."""
        found = []
        for field in ("size", "text_size", "text_fingerprint"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                found.append(f"{field} is {mine!r} against {theirs!r}")
        for role in sorted(set(self.special) | set(other.special)):
            mine, theirs = self.special.get(role), other.special.get(role)
            if mine != theirs:
                found.append(f"special token {role!r} is {mine} against {theirs}")
        my_ranges = {r.name: r for r in self.ranges}
        their_ranges = {r.name: r for r in other.ranges}
        found.extend(
            f"code range {name!r} is {my_ranges.get(name)} against {their_ranges.get(name)}"
            for name in sorted(set(my_ranges) | set(their_ranges))
            if my_ranges.get(name) != their_ranges.get(name)
        )
        return found

    def require_same(self, other: "Vocabulary", *, here: str, there: str) -> None:
        """Raises `VocabularyMismatchError` that names every difference, unless the two are equal."""
        found = self.differences(other)
        if found:
            raise VocabularyMismatchError(
                f"the vocabulary of {here} differs from that of {there}: {'; '.join(found)}. "
                "Prepare the data with the model's vocabulary, or train a model for this data."
            )
