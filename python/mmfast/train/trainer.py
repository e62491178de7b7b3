"""The training loop, from top to bottom: `train` sets a run up, `_Run.fit` walks its steps.

A step is one global batch. Its loss is Σ w·nll / Σ w over all rows of all ranks: the ranks add up
Σ w before the first backward, and gradients are summed, so that neither the number of ranks nor the
size of a micro-batch changes the result beyond rounding.
"""

import dataclasses
import gc
import json
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import transformers

from mmfast.config import save_config
from mmfast.console import log
from mmfast.data import Batch
from mmfast.distributed import barrier, local_rank, process_group, rank, world_size
from mmfast.errors import ConfigError, UsageError
from mmfast.models import (
    attention_inputs,
    build_decoder,
    initialise,
    load_exported,
    parameter_count,
)
from mmfast.train import checkpoint, datasets
from mmfast.train.checkpoint import RunState
from mmfast.train.config import TrainConfig
from mmfast.train.export import export_model
from mmfast.train.loss import DecoderWithLoss, LossSums
from mmfast.train.metrics import MetricsLog, StepRecord, write_summary
from mmfast.train.optimizer import build_optimizer, clipped_step, gradient_norm, learning_rate
from mmfast.train.parallel import compute_dtype, set_gradient_sync, shard_model
from mmfast.vocab import Vocabulary

# Python's collector is run between steps, when all ranks reach it together, not in the midst of one.
STEPS_PER_COLLECTION = 50


def train(config: TrainConfig, *, resume: str = "auto") -> dict[str, Any]:
    """Trains, checkpoints and exports; under `torchrun` every rank calls it.

    Args:
        config: the run.
        resume: `auto` goes on from the run folder's latest checkpoint if there is one, `never`
            insists on a fresh run, anything else is the path of a checkpoint. Checkpoints hold
            pickled data: never resume from a stranger's.

    Returns:
        What `summary.json` holds; after SIGTERM, whose state is saved, only `{"stopped_at": step}`.

    Raises:
        UsageError: a dataset or checkpoint is not there, or documents exceed the context.
        ConfigError: the checkpoint's model has another shape.
        VocabularyMismatchError: the checkpoint's or model's vocabulary is not the data's.
        StateMismatchError: the checkpoint's data state belongs to another stream.
    """
    with process_group(), _sigterm_flag() as stop, _quiet_collector():
        run = _Run(config, resume)
        return run.fit(stop)


class _Run:
    def __init__(self, config: TrainConfig, resume: str) -> None:
        self.config = config
        self.output = Path(config.output)
        self.checkpoints = self.output / "checkpoints"
        self.device = (
            torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
        )
        if config.train.deterministic:
            torch.use_deterministic_algorithms(
                mode=True
            )  # not called otherwise: it loads the compiler
        self.dataset = datasets.open_folder(config.data)
        resume_path = _resume_path(self.checkpoints, resume)
        self.state = RunState(world_size=world_size(), model=_shape(config))
        if resume_path is not None:
            self.state = _checked_state(resume_path, config, self.dataset.vocabulary)
        self.loader = datasets.open_loader(config, self.dataset.vocabulary)
        if resume_path is not None:
            self.loader.load_state_dict(self.state.loader)
        self.validation_loader = (
            datasets.open_validation_loader(config, self.dataset.vocabulary)
            if config.data.validation_prefix
            else None
        )
        torch.manual_seed(config.seed)
        self.model = self._build_model(fresh=resume_path is None)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, config.optimizer)
        if resume_path is not None:
            checkpoint.load_checkpoint(resume_path, model=self.model, optimizer=self.optimizer)
        barrier()  # nobody writes before everybody has found its inputs in order
        if rank() == 0:
            checkpoint.remove_leftovers(self.checkpoints)
            save_config(config, self.output / "config.yaml")
            _write_environment(self.output / "env.json", self.device)
        origin = f"resuming {resume_path} at step {self.state.step}" if resume_path else "starting"
        log(
            f"{origin}: {parameter_count(self.model):,} parameters, {world_size()} processes on "
            f"{self.device.type}, vocabulary {self.dataset.vocabulary.size}, output {self.output}"
        )

    def _build_model(self, *, fresh: bool) -> DecoderWithLoss:
        config = self.config
        decoder = build_decoder(config.model, self.dataset.vocabulary)
        model = DecoderWithLoss(decoder)
        shard_model(model, config.parallel, device=self.device)
        model.to_empty(device=self.device)
        # Also on resume: it fills the buffers that no checkpoint holds.
        initialise(decoder, config.model, seed=config.seed)
        if fresh and config.model.init_from:
            load_exported(decoder, Path(config.model.init_from), self.dataset.vocabulary)
        return model.train()

    def fit(self, stop: threading.Event) -> dict[str, Any]:
        """Walks the remaining steps, then exports."""
        loop, state = self.config.train, self.state
        metrics = MetricsLog(
            self.output,
            num_steps=loop.steps,
            start_step=state.step,
            start_tokens=state.tokens,
            start_seconds=state.seconds,
            skipped_steps=state.skipped_steps,
        )
        batches = iter(self.loader)
        tokens, documents = state.tokens, state.documents
        for step in range(state.step, loop.steps):
            started = time.perf_counter()
            batch = next(batches)
            wait_secs = time.perf_counter() - started
            weight_sum, num_tokens, num_documents, num_positions, stops = _sum_over_ranks(
                batch.weight_sum,
                batch.num_tokens,
                batch.num_documents,
                batch.input_ids.numel(),
                float(stop.is_set()),
            )
            lr = learning_rate(
                step,
                num_steps=loop.steps,
                config=self.config.schedule,
                peak=self.config.optimizer.learning_rate,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = lr

            sums = self._backward(batch, weight_sum)
            norm = gradient_norm(self.parameters)
            skipped = clipped_step(
                self.optimizer, norm, max_norm=self.config.optimizer.max_grad_norm
            )
            self.optimizer.zero_grad()

            tokens += int(num_tokens)
            documents += int(num_documents)
            metrics.add(
                StepRecord(
                    step=step + 1,
                    sums=sums,
                    grad_norm=norm,
                    skipped=skipped,
                    lr=lr,
                    tokens=tokens,
                    documents=documents,
                    padding_fraction=1 - num_tokens / num_positions,
                    wait_secs=wait_secs,
                )
            )
            done = step + 1
            is_last = done == loop.steps
            if _due(done, loop.log_every) or is_last or stops:
                metrics.flush(announce=True)
            if self.validation_loader is not None and (_due(done, loop.validate_every) or is_last):
                metrics.flush(announce=False)
                metrics.validation(done, self._validation_sums())
            if _due(done, loop.checkpoint_every) or is_last or stops:
                metrics.flush(announce=False)
                self.state = dataclasses.replace(
                    state,
                    step=done,
                    tokens=tokens,
                    documents=documents,
                    skipped_steps=metrics.skipped_steps,
                    seconds=metrics.seconds,
                    loader=self.loader.state_dict(),
                    world_size=world_size(),
                )
                self._save()
            if stops:
                log(f"stopped by SIGTERM after step {done}; the checkpoint is written")
                return {"stopped_at": done}
            if _due(done, STEPS_PER_COLLECTION):
                gc.collect()
        return self._finish()

    def _backward(self, batch: Batch, weight_sum: float) -> torch.Tensor:
        """Forward and backward of one rank's rows; returns `[2, M]` sums of loss and weight."""
        num_rows = batch.input_ids.shape[0]
        micro = self.config.train.micro_batch_bins or num_rows
        firsts = range(0, num_rows, micro)
        by_modality: torch.Tensor | None = None
        for first in firsts:
            set_gradient_sync(self.model, enabled=first == firsts[-1])
            sums = self._forward(batch, slice(first, first + micro))
            (sums.total / max(weight_sum, 1e-30)).backward()  # type: ignore[no-untyped-call]
            by_modality = (
                sums.by_modality if by_modality is None else by_modality + sums.by_modality
            )
        assert by_modality is not None
        return by_modality

    def _forward(self, batch: Batch, rows: slice) -> LossSums:
        document_ids, position_ids = batch.document_ids[rows], batch.position_ids[rows]
        longest = int(position_ids.max()) + 1
        if longest > self.config.model.context_length:
            raise UsageError(
                f"a document of {longest} tokens exceeds model.context_length "
                f"{self.config.model.context_length}; raise it, lower data.bin_tokens, or set "
                "data.overlong to truncate, split or drop"
            )
        modality = batch.modality_ids[rows] & 0x1F
        # A label is the next token, and so is its modality; the last of a row is never a label.
        label_modality = torch.cat([modality[:, 1:], modality[:, -1:]], dim=1)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.device, non_blocking=True)

        sums: LossSums = self.model(
            moved(batch.input_ids[rows]),
            moved(position_ids),
            moved(batch.labels[rows]),
            moved(batch.loss_weights[rows]),
            moved(label_modality),
            attention_inputs(
                document_ids, device=self.device, dtype=compute_dtype(self.config.parallel)
            ),
        )
        return sums

    @torch.no_grad()
    def _validation_sums(self) -> torch.Tensor:
        """`[2, M]` sums over the first global batches of the held-out stream, the same every time."""
        assert self.validation_loader is not None
        self.model.eval()
        totals: torch.Tensor | None = None
        loader = datasets.open_validation_loader(self.config, self.dataset.vocabulary)
        for _, batch in zip(range(self.config.train.validation_batches), loader, strict=False):
            sums = self._forward(batch, slice(None)).by_modality
            totals = sums if totals is None else totals + sums
        self.model.train()
        assert totals is not None
        dist.all_reduce(totals)
        return totals

    def _save(self) -> None:
        checkpoint.save_checkpoint(
            self.checkpoints,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state,
            vocabulary=self.dataset.vocabulary,
            keep_latest=self.config.train.keep_latest,
        )

    def _finish(self) -> dict[str, Any]:
        export_model(
            self.model.decoder,
            self.output / "model",
            config=self.config.model,
            dataset=self.dataset,
            dtype=getattr(torch, self.config.train.export_dtype),
        )
        figures = {
            "train_tokens": self.state.tokens,
            "train_seconds": round(self.state.seconds, 3),
            "steps": self.state.step,
            "skipped_steps": self.state.skipped_steps,
            "world_size": world_size(),
            "seed": self.config.seed,
        }
        summary = write_summary(self.output, figures) if rank() == 0 else figures
        barrier()
        log(f"exported {self.output / 'model'}")
        return summary


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _sum_over_ranks(*values: float) -> list[float]:
    totals = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(totals)
    result: list[float] = totals.tolist()
    return result


def _resume_path(folder: Path, resume: str) -> Path | None:
    found = checkpoint.list_checkpoints(folder)
    if resume == "auto":
        return found[-1] if found else None
    if resume == "never":
        if found:
            raise UsageError(
                f"{folder.parent} already holds a run with {found[-1].name}; choose another output, "
                "remove it, or go on with --resume auto"
            )
        return None
    return Path(resume)


def _checked_state(path: Path, config: TrainConfig, vocabulary: Vocabulary) -> RunState:
    """The checkpoint's state, once its vocabulary and model are known to be those of this run."""
    state = checkpoint.read_state(path)
    Vocabulary.load(path).require_same(vocabulary, here=f"the checkpoint {path}", there="the data")
    ours = _shape(config)
    differing = [
        f"{key} is {state.model.get(key)!r} there and {value!r} here"
        for key, value in ours.items()
        if state.model.get(key) != value
    ]
    if differing:
        raise ConfigError(f"the checkpoint {path} holds another model: {'; '.join(differing)}")
    return state


def _shape(config: TrainConfig) -> dict[str, Any]:
    """The keys of the model that decide what its tensors are."""
    shape = dataclasses.asdict(config.model)
    for key in ("preset", "init_from", "init_std"):
        del shape[key]
    return shape


def _write_environment(path: Path, device: torch.device) -> None:
    from mmfast import __version__

    environment = {
        "mmfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "world_size": world_size(),
        "threads": torch.get_num_threads(),
    }
    path.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _sigterm_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the handler of before is put back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet_collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
