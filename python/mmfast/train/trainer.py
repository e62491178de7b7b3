"""The training loop, from top to bottom: `train` sets a run up, `_Run.fit` walks its steps.

A step is one global batch. Its loss is Σ w·nll / Σ w over all rows of all ranks: the ranks add up
Σ w before the first backward, and gradients are summed, so that neither the number of ranks nor the
size of a micro-batch changes the result beyond rounding.
"""

import dataclasses
import gc
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmfast.config import save_config
from mmfast.console import log
from mmfast.data import Batch
from mmfast.distributed import barrier, local_rank, process_group, rank, world_size
from mmfast.errors import UsageError
from mmfast.models import (
    add_adapters,
    build_decoder,
    initialise,
    load_exported,
    load_pretrained,
    num_pretrained_rows,
    parameter_count,
)
from mmfast.train import checkpoint, datasets
from mmfast.train.agreement import raise_together, together
from mmfast.train.checkpoint import CheckpointWriter, RunState
from mmfast.train.config import TrainConfig
from mmfast.train.export import export_model
from mmfast.train.failures import explained
from mmfast.train.flops import StepCost, peak_tflops, step_cost
from mmfast.train.labels import LabelRules
from mmfast.train.loggers import open_loggers
from mmfast.train.loss import NUM_MODALITIES, DecoderWithLoss
from mmfast.train.metrics import MetricsLog, StepRecord, write_summary
from mmfast.train.optimizer import build_optimizer, clipped_step, gradient_norm, learning_rate
from mmfast.train.parallel import shard_model
from mmfast.train.process import StepProfiler, quiet_collector, sigterm_flag, write_environment
from mmfast.train.resume import checked_state, model_shape, resume_path
from mmfast.train.step import backward_batch, forward_rows
from mmfast.train.trainable import RowFilter, freeze

# Python's collector is run between steps, when all ranks reach it together, not in the midst of one.
STEPS_PER_COLLECTION = 50


Draw = Callable[[Path, Path], None]
"""Draws pictures with the exported model in the first folder into the second; every rank calls it."""


def train(config: TrainConfig, *, resume: str = "auto", draw: Draw | None = None) -> dict[str, Any]:
    """Trains, checkpoints and exports; under `torchrun` every rank calls it.

    Args:
        config: the run.
        resume: `auto` goes on from the run folder's latest checkpoint if there is one, `never`
            insists on a fresh run, anything else is the path of a checkpoint. Checkpoints hold
            pickled data: never resume from a stranger's.
        draw: what `train.sample_every` calls, into `samples/step-N`; the command draws
            `train.sample_prompts`.

    Returns:
        What `summary.json` holds; after SIGTERM, whose state is saved, only `{"stopped_at": step}`.

    Raises:
        UsageError: a dataset or checkpoint is not there, or documents exceed the context.
        ConfigError: the checkpoint's model has another shape, or a key names what does not exist.
        VocabularyMismatchError: the checkpoint's or model's vocabulary is not the data's.
        StateMismatchError: the checkpoint's data state belongs to another stream.
        CheckpointError: a checkpoint cannot be written.
        TrainingError: memory is short, or another process is gone.
    """
    checkpoints = Path(config.output) / "checkpoints"
    with (
        process_group(),
        sigterm_flag() as stop,
        quiet_collector(),
        explained(config, checkpoints),
    ):
        return _Run(config, resume, draw).fit(stop)


class _Run:
    def __init__(self, config: TrainConfig, resume: str, draw: Draw | None) -> None:
        self.config = config
        self.draw = draw
        self.output = Path(config.output)
        self.checkpoints = self.output / "checkpoints"
        self.device = (
            torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
        )
        if config.train.deterministic:
            # Not called otherwise, with False: torch loads its compiler for this, two seconds.
            torch.use_deterministic_algorithms(mode=True)
        with together():
            self.dataset = datasets.open_folder(config.data, config.tokenizer)
            self.validations = datasets.validations(config.data)
            vocabulary = self.dataset.vocabulary
            path = resume_path(self.checkpoints, resume)
            self.state = RunState(world_size=world_size(), model=model_shape(config))
            if path is not None:
                self.state = checked_state(path, config, vocabulary)
            self.rules = LabelRules(config.loss, vocabulary)
            self.loader = datasets.open_loader(config, vocabulary)
            if path is not None:
                self.loader.load_state_dict(self.state.loader)
            for task in self.validations.values():
                # Settings that it cannot be opened with come to light before any training.
                datasets.open_validation_loader(config, task, vocabulary)
        torch.manual_seed(config.seed)
        self.model = self._build_model(fresh=path is None)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.rows = self._row_filter()
        self.optimizer = build_optimizer(self.model, config.optimizer, undecayed=self.rows.tables)
        if path is not None:
            checkpoint.load_checkpoint(path, model=self.model, optimizer=self.optimizer)
        self.saved_step = self.state.step
        self.writer = CheckpointWriter(
            self.checkpoints,
            vocabulary=vocabulary,
            keep_latest=config.train.keep_latest,
            keep_every=config.train.keep_every,
            in_background=config.train.background_checkpoints,
        )
        barrier()  # nobody writes before everybody has found its inputs in order
        with together():
            if rank() == 0:
                checkpoint.remove_leftovers(self.checkpoints)
                self._remove_later_checkpoints()
                save_config(config, self.output / "config.yaml")
                write_environment(self.output / "env.json", self.device)
        num_trained = sum(parameter.numel() for parameter in self.parameters)
        num_parameters = parameter_count(self.model)
        origin = f"resuming {path} at step {self.state.step}" if path else "starting"
        trained = "" if num_trained == num_parameters else f", {num_trained:,} of them trained"
        log(
            f"{origin}: {num_parameters:,} parameters{trained}, {world_size()} processes on "
            f"{self.device.type}, vocabulary {vocabulary.size}, output {self.output}"
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
        if config.lora.rank:
            add_adapters(
                decoder,
                rank=config.lora.rank,
                alpha=config.lora.alpha,
                targets=config.lora.targets,
            )
        freeze(decoder, config)
        model = DecoderWithLoss(decoder, z_loss=config.loss.z_loss)
        shard_model(model, config.parallel, device=self.device)
        model.to_empty(device=self.device)
        # Also on resume: it fills the buffers that no checkpoint holds.
        initialise(decoder, config.model, seed=config.seed)
        if fresh and config.model.init_from:
            folder = Path(config.model.init_from)
            if config.model.architecture == "pretrained":
                how = config.model.embedding_init
                load_pretrained(decoder, folder, embedding_init=how, seed=config.seed)
            else:
                load_exported(decoder, folder, self.dataset.vocabulary)
        return model.train()

    def _row_filter(self) -> RowFilter:
        config = self.config
        num_old_rows = 0
        if config.train.trainable_rows and config.model.architecture == "pretrained":
            num_old_rows = num_pretrained_rows(Path(config.model.init_from))
        return RowFilter(
            self.model.decoder,
            config.train.trainable_rows,
            vocabulary=self.dataset.vocabulary,
            num_old_rows=num_old_rows,
        )

    def fit(self, stop: threading.Event) -> dict[str, Any]:
        """Walks the remaining steps, then exports."""
        loop, state = self.config.train, self.state
        metrics = self._open_metrics()
        cost = step_cost(self.model.decoder)
        profiler = StepProfiler(self.output, first_step=loop.profile_step)
        # What exists by now stays; a collection then looks at the steps' objects only.
        gc.collect()
        gc.freeze()
        batches = iter(self.loader)
        tokens, documents = state.tokens, state.documents
        for step in range(state.step, loop.steps):
            profiler.before(step + 1)
            started = time.perf_counter()
            batch, refusal = _try_next(batches, self.rules)
            wait_secs = time.perf_counter() - started
            (
                num_refusals,
                weight_sum,
                num_tokens,
                num_documents,
                num_positions,
                num_pairs,
                stops,
                num_written,
            ) = _sum_over_ranks(
                float(refusal is not None),
                *_figures(batch, cost),
                float(stop.is_set()),
                float(self.writer.is_written),
            )
            if num_refusals:
                raise_together(refusal)
            if num_written == world_size():
                self.writer.finish()
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
            self.rows.apply()
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
                    full_flops=cost.full(num_tokens, num_pairs),
                    causal_flops=cost.causal(num_tokens, num_pairs),
                )
            )
            done = step + 1
            profiler.after(done)
            if _due(done, loop.log_every) or stops:
                metrics.flush(announce=True)
            if _due(done, loop.validate_every) and done < loop.steps:
                self._validate(done, metrics)
            if _due(done, loop.sample_every) and self.draw is not None:
                self._sample(done, self.draw, metrics)
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
                self.writer.finish()
                log(f"stopped by SIGTERM after step {done}; the checkpoint is written")
                return {"stopped_at": done}
            if _due(done, STEPS_PER_COLLECTION):
                gc.collect()
        profiler.close()
        if self.state.step == 0:
            raise UsageError("the data ends before its first global batch; nothing was trained")
        metrics.flush(announce=True)
        if not self._is_validated(metrics):
            self._validate(self.state.step, metrics)
        if self.state.step > self.saved_step:
            self._save(metrics)
        self.writer.finish()
        metrics.close()
        return self._finish()

    def _open_metrics(self) -> MetricsLog:
        state, loop = self.state, self.config.train
        loggers = []
        with together():
            if rank() == 0:
                described = dataclasses.asdict(self.config)
                loggers = open_loggers(
                    loop.loggers, self.output, config=described, start_step=state.step
                )
        return MetricsLog(
            self.output,
            num_steps=loop.steps,
            start_step=state.step,
            start_tokens=state.tokens,
            start_seconds=state.seconds,
            skipped_steps=state.skipped_steps,
            peak_tflops=peak_tflops(loop.peak_tflops, self.device),
            loggers=loggers,
        )

    def _is_validated(self, metrics: MetricsLog) -> bool:
        """Whether the current step's validation is on record, as rank 0 sees it."""
        on_record = rank() == 0 and metrics.validated_step == self.state.step
        return _sum_over_ranks(float(on_record))[0] > 0

    @torch.no_grad()
    def _validate(self, step: int, metrics: MetricsLog) -> None:
        """Loss on the first global batches of each held-out stream, the same ones every time."""
        if not self.validations:
            return
        metrics.flush(announce=False)
        self.model.eval()
        totals = {}
        for name, task in self.validations.items():
            sums = torch.zeros(2, NUM_MODALITIES, dtype=torch.float64, device=self.device)
            loader = datasets.open_validation_loader(self.config, task, self.dataset.vocabulary)
            batches = iter(loader)
            for _ in range(self.config.train.validation_batches):
                with together():
                    batch = datasets.next_batch(batches)
                assert batch is not None, "a validation stream has no end"
                sums += forward_rows(
                    self.model,
                    batch,
                    slice(None),
                    rules=self.rules,
                    config=self.config,
                    device=self.device,
                ).by_modality
            loader.close()
            dist.all_reduce(sums)
            totals[name] = sums
        self.model.train()
        metrics.validation(step, totals)

    def _save(self, metrics: MetricsLog) -> None:
        """Writes what is known up to the current step: first the metrics, then the checkpoint."""
        metrics.flush(announce=False)
        metrics.sync()
        self.state = dataclasses.replace(
            self.state, skipped_steps=metrics.skipped_steps, seconds=metrics.seconds
        )
        self.writer.save(model=self.model, optimizer=self.optimizer, state=self.state)
        self.saved_step = self.state.step

    def _sample(self, step: int, draw: Draw, metrics: MetricsLog) -> None:
        """Draws with the weights of this step; the run's random state is left as it was."""
        metrics.flush(announce=False)
        folder = self.output / "samples" / f"step-{step}"
        model = folder / "model"
        self._export(model, dtype=torch.float32)
        with torch.random.fork_rng():
            draw(model, folder)
        barrier()
        if rank() == 0:
            shutil.rmtree(model)
        metrics.restart_interval()

    def _export(self, folder: Path, *, dtype: torch.dtype) -> None:
        lora = self.config.lora
        export_model(
            self.model.decoder,
            folder,
            config=self.config.model,
            dataset=self.dataset,
            dtype=dtype,
            lora_scale=lora.alpha / lora.rank if lora.rank else 0.0,
        )

    def _finish(self) -> dict[str, Any]:
        self.loader.close()
        self._export(self.output / "model", dtype=getattr(torch, self.config.train.export_dtype))
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


def _figures(batch: Batch | None, cost: StepCost) -> tuple[float, float, float, float, float]:
    """Σ w, tokens, documents, positions and pairs of tokens of this rank's part of a batch."""
    if batch is None:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    return (
        batch.weight_sum,
        batch.num_tokens,
        batch.num_documents,
        batch.input_ids.numel(),
        cost.pairs(batch),
    )


def _sum_over_ranks(*values: float) -> list[float]:
    totals = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(totals)
    result: list[float] = totals.tolist()
    return result
