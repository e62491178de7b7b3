"""Which datasets a caller names: one prefix, several, or a pattern that stands for several."""

import glob
from collections.abc import Sequence
from pathlib import Path

WILDCARDS = frozenset("*?[")


def expand_prefixes(named: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """Absolute prefixes of the datasets, in the order in which they are named.

    A pattern (`*`, `?`, `[…]`, `**` for any folders) stands for the datasets whose `.idx` it matches, in
    the order of their names. A prefix that is there as it is written is no pattern.

    Raises:
        FileNotFoundError: nothing matches a pattern.
        ValueError: nothing is named.
    """
    several = [named] if isinstance(named, str | Path) else list(named)
    prefixes = tuple(prefix for one in several for prefix in _expand(Path(one).absolute()))
    if not prefixes:
        raise ValueError("there is no dataset to open: no prefix is named")
    return prefixes


def _expand(prefix: Path) -> list[Path]:
    index = prefix.with_name(prefix.name + ".idx") if prefix.name else prefix
    if not WILDCARDS & set(str(prefix)) or index.exists():
        return [prefix]
    found = sorted(glob.glob(str(index), recursive=True))  # noqa: PTH207  (patterns may be absolute)
    if not found:
        raise FileNotFoundError(2, "no dataset matches the pattern", str(index))
    return [Path(path.removesuffix(".idx")) for path in found]
