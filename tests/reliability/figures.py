"""How much a test tries: little in `make test`, much in `make reliability`.

The latter sets `MMFAST_RELIABILITY` and gathers what the tests report into `docs/reliability.md`. Rust's counterpart is `rust/mmfast-core/tests/reliability/figures.rs`.
"""

import json
import os


def is_long() -> bool:
    """Whether this is the long run."""
    return bool(os.environ.get("MMFAST_RELIABILITY"))


def scaled(short: int, long: int) -> int:
    """`long` in the long run, else `short`."""
    return long if is_long() else short


def report(*, count: int, unit: str, seed: int | None, result: str) -> None:
    """Tells `make reliability` what was tried and what came of it."""
    figures = {"count": count, "unit": unit, "seed": seed, "result": result}
    print(f"reliability: {json.dumps(figures)}", flush=True)
