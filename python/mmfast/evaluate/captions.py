"""Decides whether a caption is right: one of the known phrasings, with the right label in it.

A phrasing is a line such as `a handwritten {label}`. Captions are compared whole, after runs of white
space have become one space; nothing else is forgiven.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mmfast.errors import UsageError

PLACEHOLDER = "{label}"


class CaptionReader:
    """Finds the label in a caption that follows one of the templates."""

    def __init__(self, templates: Sequence[str], labels: Iterable[str]) -> None:
        """Raises `UsageError` for a template without the placeholder or for no templates at all."""
        if not templates:
            raise UsageError("there are no caption templates to compare with")
        self._labels_of_caption: dict[str, set[str]] = {}
        for template in templates:
            if PLACEHOLDER not in template:
                raise UsageError(f"the caption template {template!r} has no {PLACEHOLDER} in it")
        for label in labels:
            for template in templates:
                filled = normalised(template.replace(PLACEHOLDER, label))
                self._labels_of_caption.setdefault(filled, set()).add(label)

    def read(self, caption: str, *, expected: str) -> str | None:
        """The label that a caption names, None when it follows no template.

        `expected` decides where two labels make the same caption.
        """
        labels = self._labels_of_caption.get(normalised(caption), set())
        return expected if expected in labels else min(labels, default=None)


def normalised(text: str) -> str:
    """The text without white space at its ends and with single spaces inside."""
    return " ".join(text.split())


def read_templates(path: Path) -> list[str]:
    """The non-empty lines of a templates file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UsageError(f"there is no templates file {path}") from error
    return [line.strip() for line in lines if line.strip()]
