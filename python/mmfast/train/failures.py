"""What ends training from outside its own logic, said so that one knows what to change."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmfast.distributed import rank, world_size
from mmfast.errors import TrainingError
from mmfast.train.checkpoint import list_checkpoints
from mmfast.train.config import TrainConfig

# How allocators and the two communication libraries put it; matched in lower case.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_LOST_PROCESS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket timeout",
    "timed out waiting",
    "nccl error",
    "remote process exited",
    "watchdog caught collective operation timeout",
)


@contextmanager
def explained(config: TrainConfig, checkpoints: Path) -> Iterator[None]:
    """Turns errors of memory, communication and full disks into `TrainingError`s; others pass as they are."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        text = explanation(error, config, checkpoints)
        if text is None:
            raise
        raise TrainingError(text) from error


def explanation(error: BaseException, config: TrainConfig, checkpoints: Path) -> str | None:
    """What to do about an error, None if it is none of those known here."""
    said = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _has(said, _OUT_OF_MEMORY):
        rows = -(-config.train.global_batch_bins // world_size())
        rows = min(rows, config.train.micro_batch_bins or rows)
        advice = ["lower train.micro_batch_bins"] if rows > 1 else ["lower data.bin_tokens"]
        if config.parallel.activation_checkpointing != "full":
            advice.append("set parallel.activation_checkpointing=full")
        if not config.parallel.reshard_after_forward and world_size() > 1:
            advice.append("set parallel.reshard_after_forward=true")
        return (
            f"process {rank()} ran out of memory with micro-batches of {rows} rows of "
            f"{config.data.bin_tokens:,} tokens: {', or '.join(advice)}. {_where_to_go_on(checkpoints)}"
        )
    if isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return None
        where = error.filename or config.output
        return (
            f"the disk that holds {where} is full: make room there. {_where_to_go_on(checkpoints)}"
        )
    if _has(said, _LOST_PROCESS):
        return (
            f"process {rank()} lost touch with another of the {world_size()}, which has ended or hangs; "
            f"its own error, above or in its log, says why. {_where_to_go_on(checkpoints)}"
        )
    return None


def _has(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)


def _where_to_go_on(checkpoints: Path) -> str:
    found = list_checkpoints(checkpoints)
    if not found:
        return "There is no checkpoint yet; the same command starts anew."
    return f"The same command goes on from {found[-1]}."
