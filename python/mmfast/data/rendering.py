"""Documents as people read them: text as text, special ids by role, images as their grid of codes."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence

from mmfast.data.segment import Segment, modality_name
from mmfast.vocab import CodeRange, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renderer:
    """Turns ids into text for the eye; what it does not know it shows as numbers.

    Attributes:
        vocabulary: says what each id is; without it all ids are shown as numbers.
        decode_text: text of text ids; without it they are shown as numbers.
        grid: height and width of an image in codes, if all images share one.
        max_codes: how many codes of a run are shown.
    """

    vocabulary: Vocabulary | None = None
    decode_text: Callable[[Sequence[int]], str] | None = None
    grid: tuple[int, int] | None = None
    max_codes: int = 16

    def document(self, segments: Sequence[Segment]) -> str:
        """One line for each segment: its number, modality, length and content."""
        lines = []
        for i, segment in enumerate(segments):
            name = modality_name(segment.modality) + ("" if segment.has_loss else " (no loss)")
            content = (
                f"stand for {segment.media}" if segment.media else self.ids(segment.ids.tolist())
            )
            lines.append(f"{i:>4}  {name:<16} {len(segment.ids):>7,} ids  {content}".rstrip())
        return "\n".join(lines)

    def ids(self, ids: Sequence[int]) -> str:
        """Runs of ids of one kind, each in its own form, with spaces between."""
        if self.vocabulary is None:
            return self._shortened(ids)
        roles = {token_id: role for role, token_id in self.vocabulary.special.items()}
        kinds = [self._kind(token_id, roles) for token_id in ids]
        runs = itertools.groupby(zip(ids, kinds, strict=True), key=lambda pair: pair[1])
        return " ".join(self._run(kind, [token_id for token_id, _ in run]) for kind, run in runs)

    def _kind(self, token_id: int, roles: dict[int, str]) -> str | CodeRange | None:
        """`<role>`, `text`, the code range, or None for an id that stands for nothing."""
        assert self.vocabulary is not None
        if token_id in roles:
            return f"<{roles[token_id]}>"
        for code_range in self.vocabulary.ranges:
            if code_range.base <= token_id < code_range.end:
                return code_range
        return "text" if 0 <= token_id < self.vocabulary.text_size else None

    def _run(self, kind: str | CodeRange | None, ids: list[int]) -> str:
        if kind is None:
            return f"<unused {self._shortened(ids)}>"
        if isinstance(kind, CodeRange):
            codes = [token_id - kind.base for token_id in ids]
            whole = self.grid is not None and len(ids) == self.grid[0] * self.grid[1]
            shape = f"{self.grid[0]} x {self.grid[1]}" if self.grid and whole else f"{len(ids):,}"
            return f"<{kind.name} {shape}> {self._shortened(codes)}"
        if kind != "text":
            return kind * len(ids)
        if self.decode_text is None:
            return self._shortened(ids)
        return json.dumps(self.decode_text(ids), ensure_ascii=False)

    def _shortened(self, numbers: Sequence[int]) -> str:
        shown = " ".join(map(str, numbers[: self.max_codes]))
        return shown if len(numbers) <= self.max_codes else f"{shown} …"
