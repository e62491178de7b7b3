"""The training loop, from top to bottom: `train` sets a run up, `_Run.fit` walks its steps.

A step is one global batch. Its loss is Σ w·nll / Σ w over all rows of all ranks: the ranks add up
Σ w before the first backward, and gradients are summed, so that neither the number of ranks nor the
size of a micro-batch changes the result beyond rounding.
"""

import dataclasses
import gc
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
from mmfast.files import write_json
from mmfast.models import (
    build_decoder,
    initialise,
    load_exported,
    parameter_count,
)
from mmfast.train import checkpoint, datasets
from mmfast.train.agreement import raise_together, together
from mmfast.train.checkpoint import RunState
from mmfast.train.config import TrainConfig
from mmfast.train.export import export_model
from mmfast.train.labels import LabelRules
from mmfast.train.loss import NUM_MODALITIES, DecoderWithLoss
from mmfast.train.metrics import MetricsLog, StepRecord, write_summary
from mmfast.train.optimizer import build_optimizer, clipped_step, gradient_norm, learning_rate
from mmfast.train.parallel import shard_model
from mmfast.train.step import backward_batch, forward_rows
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
            # Not called otherwise, with False: torch loads its compiler for this, two seconds.
            torch.use_deterministic_algorithms(mode=True)
        with together():
            self.dataset = datasets.open_folder(config.data)
            resume_path = _resume_path(self.checkpoints, resume)
            self.state = RunState(world_size=world_size(), model=_shape(config))
            if resume_path is not None:
                self.state = _checked_state(resume_path, config, self.dataset.vocabulary)
            self.rules = LabelRules(config.loss, self.dataset.vocabulary)
            self.loader = datasets.open_loader(config, self.dataset.vocabulary)
            if resume_path is not None:
                self.loader.load_state_dict(self.state.loader)
            if config.data.validation_prefix:
                # Settings that it cannot be opened with come to light before any training.
                datasets.open_validation_loader(config, self.dataset.vocabulary)
        torch.manual_seed(config.seed)
        self.model = self._build_model(fresh=resume_path is None)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, config.optimizer)
        if resume_path is not None:
            checkpoint.load_checkpoint(resume_path, model=self.model, optimizer=self.optimizer)
        self.saved_step = self.state.step
        barrier()  # nobody writes before everybody has found its inputs in order
        with together():
            if rank() == 0:
                checkpoint.remove_leftovers(self.checkpoints)
                self._remove_later_checkpoints()
                save_config(config, self.output / "config.yaml")
                _write_environment(self.output / "env.json", self.device)
        origin = f"resuming {resume_path} at step {self.state.step}" if resume_path else "starting"
        log(
            f"{origin}: {parameter_count(self.model):,} parameters, {world_size()} processes on "
            f"{self.device.type}, vocabulary {self.dataset.vocabulary.size}, output {self.output}"
        )

    def _remove_later_checkpoints(self) -> None:
        """Going on from an older checkpoint gives up what came after it: one folder, one history."""
        removed = checkpoint.remove_after(self.checkpoints, self.state.step)
        if removed:
            names = ", ".join(path.name for path in removed)
            log(f"going on from step {self.state.step}: removed the later {names}")

    def _build_model(self, *, fresh: bool) -> DecoderWithLoss:
        config = self.config
        decoder = build_decoder(config.model, self.dataset.vocabulary)
        model = DecoderWithLoss(decoder, z_loss=config.loss.z_loss)
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
        # What exists by now stays; a collection then looks at the steps' objects only.
        gc.collect()
        gc.freeze()
        batches = iter(self.loader)
        tokens, documents = state.tokens, state.documents
        for step in range(state.step, loop.steps):
            started = time.perf_counter()
            batch, refusal = _try_next(batches, self.rules)
            wait_secs = time.perf_counter() - started
            num_refusals, weight_sum, num_tokens, num_documents, num_positions, stops = (
                _sum_over_ranks(float(refusal is not None), *_figures(batch), float(stop.is_set()))
            )
            if num_refusals:
                raise_together(refusal)
            if batch is None:
                log(f"the data ends after step {step}: {self.loader.limit()}")
                break
            lr = learning_rate(
                step,
                num_steps=loop.steps,
                config=self.config.schedule,
                peak=self.config.optimizer.learning_rate,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = lr

            sums = backward_batch(
                self.model,
                batch,
                weight_sum=weight_sum,
                rules=self.rules,
                config=self.config,
                device=self.device,
            )
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
            if _due(done, loop.log_every) or stops:
                metrics.flush(announce=True)
            if _due(done, loop.validate_every) and done < loop.steps:
                self._validate(done, metrics)
            self.state = dataclasses.replace(
                self.state,
                step=done,
                tokens=tokens,
                documents=documents,
                loader=self.loader.state_dict(),
                world_size=world_size(),
            )
            if stops or (_due(done, loop.checkpoint_every) and done < loop.steps):
                self._save(metrics)
            if stops:
                log(f"stopped by SIGTERM after step {done}; the checkpoint is written")
                return {"stopped_at": done}
            if _due(done, STEPS_PER_COLLECTION):
                gc.collect()
        if self.state.step == 0:
            raise UsageError("the data ends before its first global batch; nothing was trained")
        metrics.flush(announce=True)
        if not self._is_validated(metrics):
            self._validate(self.state.step, metrics)
        if self.state.step > self.saved_step:
            self._save(metrics)
        return self._finish()

    def _is_validated(self, metrics: MetricsLog) -> bool:
        """Whether the current step's validation is on record, as rank 0 sees it."""
        on_record = rank() == 0 and metrics.validated_step == self.state.step
        return _sum_over_ranks(float(on_record))[0] > 0

    @torch.no_grad()
    def _validate(self, step: int, metrics: MetricsLog) -> None:
        """Loss on the first global batches of the held-out stream, the same ones every time."""
        if not self.config.data.validation_prefix:
            return
        metrics.flush(announce=False)
        self.model.eval()
        totals = torch.zeros(2, NUM_MODALITIES, dtype=torch.float64, device=self.device)
        loader = datasets.open_validation_loader(self.config, self.dataset.vocabulary)
        batches = iter(loader)
        for _ in range(self.config.train.validation_batches):
            with together():
                batch = datasets.next_batch(batches)
            assert batch is not None, "a validation stream has no end"
            sums = forward_rows(
                self.model,
                batch,
                slice(None),
                rules=self.rules,
                config=self.config,
                device=self.device,
            )
            totals += sums.by_modality
        loader.close()
        self.model.train()
        dist.all_reduce(totals)
        metrics.validation(step, totals)

    def _save(self, metrics: MetricsLog) -> None:
        """Writes what is known up to the current step: first the metrics, then the checkpoint."""
        metrics.flush(announce=False)
        metrics.sync()
        self.state = dataclasses.replace(
            self.state, skipped_steps=metrics.skipped_steps, seconds=metrics.seconds
        )
        checkpoint.save_checkpoint(
            self.checkpoints,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state,
            vocabulary=self.dataset.vocabulary,
            keep_latest=self.config.train.keep_latest,
        )
        self.saved_step = self.state.step

    def _finish(self) -> dict[str, Any]:
        self.loader.close()
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


def _try_next(batches: Iterator[Batch], rules: LabelRules) -> tuple[Batch | None, Exception | None]:
    """The next batch with its weights, or what kept this rank from getting it."""
    try:
        batch = datasets.next_batch(batches)
        return (None if batch is None else rules.weighed(batch)), None
    except Exception as error:  # noqa: BLE001 -- raised once all ranks know of it
        return None, error


def _figures(batch: Batch | None) -> tuple[float, float, float, float]:
    """Σ w, tokens, documents and positions of this rank's part of a batch."""
    if batch is None:
        return 0.0, 0.0, 0.0, 0.0
    return batch.weight_sum, batch.num_tokens, batch.num_documents, batch.input_ids.numel()


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
    path = Path(resume)
    if found and path.resolve().parent != folder.resolve():
        raise UsageError(
            f"{folder.parent} already holds a run with {found[-1].name}, and {path} belongs to another; "
            "choose another output, or go on with --resume auto"
        )
    return path


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
    for key in ("preset", "init_from", "init_std", "residual_init", "position_std"):
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
    write_json(path, environment)


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
        gc.unfreeze()
        if was_enabled:
            gc.enable()
