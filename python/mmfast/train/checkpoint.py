"""Sharded checkpoints for resuming a run: model, optimizer, position in the data, random state.

A checkpoint is a folder `checkpoints/step-N`: torch's distributed format (each rank writes its own
shards), `state.json` and `vocabulary.json`. It is written as `step-N.tmp`, made durable, and renamed;
so a folder without `.tmp` is always whole, and a run killed while saving goes on from the one before.
Writing happens beside training: what is saved is copied first, then written in a thread, and published
between two later steps once every rank has written its part.

The distributed format keeps a pickled index, and unpickling can run code: resume only from
checkpoints that you or your group wrote. To share a model, share the export (`model/`), which is
safetensors and JSON.
"""

import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from mmfast.distributed import rank, world_size
from mmfast.errors import CheckpointError, CorruptDataError, UsageError
from mmfast.files import sync_folder, write_json
from mmfast.train.agreement import together
from mmfast.vocab import Vocabulary

FORMAT_VERSION = 1
STATE_FILE = "state.json"
_PREFIX = "step-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands: everything that is not a tensor.

    Attributes:
        step: optimizer steps done.
        tokens: real tokens trained on, over all ranks.
        documents: documents trained on.
        skipped_steps: steps whose gradients were not finite.
        seconds: wall-clock time spent training, earlier parts of the run included.
        loader: the data stream's state after the last step's batch.
        world_size: number of ranks that wrote the checkpoint.
        model: the model's shape, compared on resume.
    """

    step: int = 0
    tokens: int = 0
    documents: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    loader: dict[str, Any] = dataclasses.field(default_factory=dict)
    world_size: int = 1
    model: dict[str, Any] = dataclasses.field(default_factory=dict)


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time; every rank makes one and calls it at the same steps.

    Args:
        folder: where `step-N` are.
        vocabulary: saved with each.
        keep_latest: how many of them are kept, the newest.
        keep_every: those whose step is a multiple are kept for good; 0 for none.
        in_background: whether `save` returns before the files are written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocabulary: Vocabulary,
        keep_latest: int,
        keep_every: int = 0,
        in_background: bool = True,
    ) -> None:
        self.folder = folder
        self.vocabulary = vocabulary
        self.keep_latest = keep_latest
        self.keep_every = keep_every
        self.in_background = in_background
        # A group of its own: its collectives must not mix with those of the steps that go on.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._pending: _Pending | None = None

    def save(
        self, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: RunState
    ) -> None:
        """Begins to write `folder/step-N`; an earlier one is finished first.

        Raises:
            CheckpointError: this or the earlier one could not be written.
        """
        self.finish()
        final = self.folder / f"{_PREFIX}{state.step}"
        temporary = final.with_name(final.name + ".tmp")
        with together(), _failing_at(final):
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        written = dcp.async_save(
            {**_tensors(model, optimizer), **_random_state()},
            checkpoint_id=str(temporary),
            process_group=self._group,
        )
        self._pending = _Pending(written=written, temporary=temporary, final=final, state=state)
        if not self.in_background:
            self.finish()

    @property
    def is_written(self) -> bool:
        """Whether this rank has a checkpoint to publish: its part is written, or failed to be."""
        return self._pending is not None and self._pending.written.done()

    def finish(self) -> None:
        """Waits for the checkpoint in the making on all ranks, publishes it and removes old ones.

        Raises:
            CheckpointError: it could not be written; what it left is removed, older ones are whole.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            with together(), _failing_at(pending.final):
                pending.written.result()
            with together(), _failing_at(pending.final):
                if rank() == 0:
                    self._publish(pending)
        except CheckpointError:
            if rank() == 0:
                shutil.rmtree(pending.temporary, ignore_errors=True)
            raise

    def _publish(self, pending: "_Pending") -> None:
        self.vocabulary.save(pending.temporary)
        document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(pending.state)}
        write_json(pending.temporary / STATE_FILE, document)
        publish(pending.temporary, pending.final)
        for old in list_checkpoints(self.folder)[: -self.keep_latest]:
            if not (self.keep_every and _step_of(old) % self.keep_every == 0):
                shutil.rmtree(old)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pending:
    written: Any  # a future
    temporary: Path
    final: Path
    state: RunState


@contextmanager
def _failing_at(final: Path) -> Iterator[None]:
    """Turns what a full disk and its like raise into an error that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        cause = _operating_system_error(error)
        what = (
            "the disk is full; free some space, or lower train.keep_latest"
            if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT)
            else f"{_first_line(cause or error)}; see to that"
        )
        raise CheckpointError(
            f"cannot write the checkpoint {final}: {what}, then start the same command again. It goes on "
            "from the newest whole checkpoint beside it, which is untouched."
        ) from error


def _operating_system_error(error: BaseException) -> OSError | None:
    """The OSError behind an error of the distributed format, which keeps each rank's own."""
    if isinstance(error, OSError):
        return error
    for wrapped in (getattr(error, "failures", None) or {}).values():
        if isinstance(wrapped[0], OSError):
            return wrapped[0]
    return None if error.__cause__ is None else _operating_system_error(error.__cause__)


def load_checkpoint(
    path: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Fills model, optimizer and, at an equal world size, the random state, in place.

    Raises:
        CorruptDataError: a file is missing or damaged.
    """
    tensors = _tensors(model, optimizer)
    if read_state(path).world_size == world_size():
        tensors.update(_random_state())
    try:
        dcp.load(tensors, checkpoint_id=str(path), no_dist=not dist.is_initialized())
    except (dcp.api.CheckpointException, OSError, RuntimeError, EOFError) as error:
        cause = _first_line(_operating_system_error(error) or error)
        raise CorruptDataError(
            f"the checkpoint {path} cannot be read: {cause}. Remove it to resume from the "
            "one before, or start again with --resume never in another output folder."
        ) from error
    for key, value in tensors.items():
        if key == _rng_key("cpu"):
            torch.set_rng_state(value)
        elif key == _rng_key("cuda"):
            torch.cuda.set_rng_state(value)


def read_state(path: Path) -> RunState:
    """The checkpoint's `state.json`.

    Raises:
        UsageError: `path` is no checkpoint.
        CorruptDataError: the file is damaged or of another version.
    """
    file = path / STATE_FILE
    if not file.is_file():
        raise UsageError(f"{path} is not a checkpoint: it has no {STATE_FILE}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        version = document.pop("format_version")
        if version != FORMAT_VERSION:
            raise CorruptDataError(
                f"{file} has format {version}, this build reads {FORMAT_VERSION}"
            )
        return RunState(**document)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptDataError(f"{file} is not a run state: {error}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; leftovers of a killed save are not among them."""
    whole = (p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit())
    return sorted(whole, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def remove_after(folder: Path, step: int) -> list[Path]:
    """Deletes the checkpoints of later steps than `step`, and returns what they were."""
    later = [path for path in list_checkpoints(folder) if _step_of(path) > step]
    for path in reversed(later):
        shutil.rmtree(path)
    return later


def remove_leftovers(folder: Path) -> None:
    """Deletes what a save that was killed has left."""
    for path in folder.glob(f"{_PREFIX}*.tmp"):
        shutil.rmtree(path)


def publish(temporary: Path, final: Path) -> None:
    """The moment from which a checkpoint counts; an earlier one of that name gives way to it."""
    sync_folder(temporary)
    replaced = final.with_name(final.name + ".old.tmp")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and AdamW moments by name; moments that do not exist yet are made, all zero."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        if not parameter.requires_grad:
            continue
        moments = optimizer.state[parameter]
        if not moments:
            moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            moments["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
        tensors.update({f"optimizer.{key}.{name}": value for key, value in moments.items()})
    return tensors


def _random_state() -> dict[str, torch.Tensor]:
    state = {_rng_key("cpu"): torch.get_rng_state()}
    if torch.cuda.is_available():
        state[_rng_key("cuda")] = torch.cuda.get_rng_state()
    return state


def _rng_key(device: str) -> str:
    return f"rng.{device}.rank{rank()}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
