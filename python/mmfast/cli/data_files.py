"""Datasets and what lies beside them, as the commands of `mmfast data` open them."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfast import console
from mmfast.errors import CorruptDataError, UsageError

if TYPE_CHECKING:
    from mmfast.data import IndexedDataset
    from mmfast.data.dataset import Verify
    from mmfast.vocab import Vocabulary

Prefix = Annotated[
    Path,
    typer.Argument(
        help="The dataset's path without .bin or .idx; or a quoted pattern of such paths."
    ),
]
Prefixes = Annotated[
    list[Path],
    typer.Argument(
        help="The dataset's path without .bin or .idx. Several, or a quoted pattern, are read as one."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


def open_dataset(
    prefixes: Path | Sequence[Path], *, verify: "Verify" = "index"
) -> "IndexedDataset":
    """A dataset, or several as one; tells on stderr how it departs from megatron-core's format."""
    import warnings

    from mmfast.data import IndexedDataset
    from mmfast.errors import ForeignFormatWarning

    named = [prefixes] if isinstance(prefixes, Path) else list(prefixes)
    with usage_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ForeignFormatWarning)
        try:
            dataset = IndexedDataset(named, verify=verify)
        except FileNotFoundError as error:
            missing = Path(error.filename)
            wanted = next(
                (p for p in named if missing.name.startswith(p.name)), named[0]
            )  # of several, the one that it would belong to
            raise UsageError(f"there is no dataset {wanted}: {missing.name} is missing") from error
    for finding in dataset.findings:
        console.log(f"note: {finding}")
    return dataset


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Arguments that the library refuses are the user's here."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def file_bytes(prefixes: Sequence[Path], suffix: str) -> int:
    """Size of the files with this suffix."""
    return sum(prefix.with_name(prefix.name + suffix).stat().st_size for prefix in prefixes)


def folders_of(prefixes: Sequence[Path]) -> list[Path]:
    """The folders of datasets, each once."""
    return list(dict.fromkeys(prefix.parent for prefix in prefixes))


def vocabulary_beside(prefixes: Sequence[Path]) -> "Vocabulary | None":
    """The one vocabulary beside the datasets, None if there is none."""
    from mmfast.vocab import FILE_NAME, Vocabulary

    paths = [folder / FILE_NAME for folder in folders_of(prefixes)]
    shared: Vocabulary | None = None
    for path in (path for path in paths if path.exists()):
        found = Vocabulary.load(path)
        if shared is not None:
            found.require_same(shared, here=str(path), there=str(paths[0]))
        shared = shared or found
    return shared


def recipe_beside(folder: Path) -> dict[str, Any]:
    """What `recipe.json` says, nothing if it is not there."""
    path = folder / "recipe.json"
    if not path.exists():
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptDataError(f"{path} is not JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise CorruptDataError(f"{path} must hold a JSON object")
    return recipe


def grid_of(folder: Path, recipe: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images in codes, if the recipe gives them."""
    match recipe.get("grid"):
        case None:
            return None
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise CorruptDataError(
                f"{folder / 'recipe.json'}: grid must be [height, width], found {other!r}"
            )
