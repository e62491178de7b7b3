"""Ranks that fail together: what one of them refuses ends all of them, with the same line.

A rank that raises while the others wait in a collective would leave them there until a timeout, or
with an error about a lost connection. So work that can fail on one rank alone is done between two
collectives, its error is held, and the ranks tell each other before anyone goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from mmfast import errors
from mmfast.distributed import world_size
from mmfast.errors import MmfastError


@contextmanager
def together() -> Iterator[None]:
    """Runs a block without collectives on every rank; raises on all of them if one of them raised.

    It is a barrier as well: nobody leaves before everybody has been through.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 -- held until the ranks have met, then raised
        failure = error
    raise_together(failure)


def raise_together(failure: Exception | None) -> None:
    """Every rank calls it with its own error or None; raises the lowest failing rank's on all.

    Raises:
        MmfastError: another rank failed; of that error's class if it is one of `mmfast.errors`.
        Exception: `failure` itself when this rank is the first that failed.
    """
    if world_size() == 1:
        if failure is not None:
            raise failure
        return
    told: list[tuple[str, str] | None] = [None] * world_size()
    dist.all_gather_object(told, _description(failure))
    first = next(filter(None, told), None)
    if first is None:
        return
    if _description(failure) == first:
        assert failure is not None
        raise failure
    kind, text = first
    raise getattr(errors, kind, MmfastError)(text) from failure


def _description(error: Exception | None) -> tuple[str, str] | None:
    """Class and text, which cross to the other ranks more safely than a pickled exception."""
    if error is None:
        return None
    if isinstance(error, MmfastError | OSError):
        return type(error).__name__, str(error)
    return type(error).__name__, f"{type(error).__name__}: {error}"
