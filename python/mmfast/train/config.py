"""The training configuration: every key, its unit and its default.

A run is started with a preset's name or a YAML file, then `key.path=value` arguments; see
`mmfast.config.load_config`. Values that no run could use are refused here, with the key's name.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from mmfast.config import load_config
from mmfast.models.decoder import PRESET_PACKAGE as MODEL_PRESETS
from mmfast.models.decoder import DecoderConfig
from mmfast.objectives import Cm3, NextToken
from mmfast.train.tokenizer_block import TokenizerBlock

TRAIN_PRESETS = "mmfast.train.presets"
LOGGERS = ("tensorboard", "wandb", "trackio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One dataset of a blend.

    Attributes:
        prefix: path of the dataset without `.bin` and `.idx`.
        weight: share of documents drawn from it, relative to the other sources.
        max_epochs: passes over it before the stream would run dry; None for no limit.
    """

    prefix: str = ""
    weight: float = 1.0
    max_epochs: int | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the weight of source {self.prefix!r} is {self.weight}, not positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How documents become inputs and labels; `kind` says which section counts."""

    kind: Literal["next_token", "cm3"] = "next_token"
    next_token: NextToken = dataclasses.field(default_factory=NextToken)
    cm3: Cm3 = dataclasses.field(default_factory=Cm3)

    @property
    def objective(self) -> NextToken | Cm3:
        """The objective itself."""
        return self.cm3 if self.kind == "cm3" else self.next_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationTask:
    """A question put to the model on held-out documents, e.g. how well it captions.

    Attributes:
        name: stands in `metrics.jsonl` as split `validation NAME`.
        prefix: the dataset; `data.validation_prefix` when empty.
        objective: how its documents become inputs and labels, e.g. CM3 with every caption moved to the end;
            the run's own when None.
    """

    name: str = ""
    prefix: str = ""
    objective: ObjectiveConfig | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a task of data.validation_tasks has no name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on. Give either `prefix` or `sources`.

    Attributes:
        prefix: the one dataset to train on.
        sources: a blend of several.
        validation_prefix: held-out dataset; empty for no validation.
        validation_tasks: further validations, each with a name and, if wanted, an objective of its own.
        bin_tokens: tokens of one packed row.
        window_documents: documents that are packed and shuffled together.
        overlong: what happens to a document longer than a row or than `model.context_length`.
    """

    prefix: str = ""
    sources: list[SourceConfig] = dataclasses.field(default_factory=list)
    validation_prefix: str = ""
    validation_tasks: list[ValidationTask] = dataclasses.field(default_factory=list)
    bin_tokens: int = 512
    window_documents: int = 65536
    overlong: Literal["error", "truncate", "split", "drop"] = "error"

    def __post_init__(self) -> None:
        if self.prefix and self.sources:
            raise ValueError(
                "give data.prefix for one dataset or data.sources for a blend, not both"
            )
        if self.bin_tokens < 2:
            raise ValueError(f"data.bin_tokens is {self.bin_tokens}, but must be at least 2")
        if self.window_documents < 1:
            raise ValueError(f"data.window_documents is {self.window_documents}, not positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What labels count. Names of ids are code ranges of the vocabulary, or `time` for `time_0 …`.

    Attributes:
        modality_weights: factor on the weight of labels by modality, e.g. `{image: 0.5}` (Emu3.5's
            choice); 1 where none is given. Sentinels have a weight of their own: see the objective.
        z_loss: factor on the squared logarithm of the softmax's sum; 1e-5 in Chameleon and Lumina-mGPT.
        closed_ranges: labels in these ranges are scored among the ids of their range alone, as they are
            where generation allows no others.
        soft_std: ordered ids whose neighbours are half right: standard deviation, in ids, of the
            Gaussian that stands for such a label, e.g. `{time: 1.0}` (VILA's LITA-1.5).
    """

    modality_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    z_loss: float = 0.0
    closed_ranges: list[str] = dataclasses.field(default_factory=list)
    soft_std: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.z_loss >= 0:
            raise ValueError(f"loss.z_loss is {self.z_loss}, but is negative")
        for name, weight in self.modality_weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"loss.modality_weights.{name} is {weight}, but is negative")
        for name, std in self.soft_std.items():
            if not std > 0:
                raise ValueError(f"loss.soft_std.{name} is {std}, but must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019). Decay applies to matrices, not to norms and biases.

    Patterns of further parameters without decay stand in `undecayed`, e.g. `*embed_positions*`.

    Attributes:
        learning_rate: peak.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squares; 0.95 suits large batches, 0.98-0.999 small ones.
        eps: added to the root of the mean of squares.
        weight_decay: decoupled, multiplied by the learning rate.
        max_grad_norm: gradients are scaled down to this global norm; 0 for no limit.
        undecayed: patterns of parameters.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    undecayed: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate is {self.learning_rate}, not positive")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}, not within [0, 1)")
        for name in ("weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}, but is negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside frozen layers (Hu et al. 2021); the export has them merged.

    Attributes:
        rank: width of the adapters; 0 for none. With adapters nothing else is trained but what
            `train.trainable` names.
        alpha: the adapters' product is scaled by `alpha / rank`.
        targets: linear layers that get one, by name or its last part; patterns are allowed.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: list[str] = dataclasses.field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"]
    )

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}, but is negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, relative to the peak.

    Attributes:
        kind: `cosine` or `linear` fall from the end of the warm-up to the last step; `wsd`
            (warm-up, stable, decay) stays at the peak and falls linearly at the end; `constant`.
        warmup_steps: linear rise from 0.
        decay_fraction: share of all steps in which `wsd` falls.
        final_ratio: learning rate at the last step, as a share of the peak.
    """

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = 50
    decay_fraction: float = 0.2
    final_ratio: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}, but is negative")
        for name in ("decay_fraction", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"schedule.{name} is {getattr(self, name)}, not within [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is spread over processes (FSDP2).

    Attributes:
        wrap: `block` gathers one block at a time; `root` gathers all at once, which is faster for a
            model that fits in one process several times over.
        reshard_after_forward: whether a block's weights are dropped between forward and backward.
        param_dtype: type of weights and activations in forward and backward; the master copy and
            the optimizer stay fp32. `bfloat16` is meant for CUDA.
        reduce_dtype: type in which gradients are summed over processes.
        activation_checkpointing: `full` computes each block anew in the backward instead of keeping it;
            `selective` keeps matrix products and attention and computes the rest anew.
        compile: compile each block with `torch.compile`.
        replicate: copies of the model, each spread over the other processes (HSDP); 1 spreads it over all.
            Usually the number of machines.
        prefetch: blocks whose weights are gathered ahead, in forward and backward; 0 leaves it to torch.
    """

    wrap: Literal["block", "root"] = "block"
    reshard_after_forward: bool = True
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    replicate: int = 1
    prefetch: int = 1

    def __post_init__(self) -> None:
        if self.replicate < 1:
            raise ValueError(f"parallel.replicate is {self.replicate}, but must be at least 1")
        if self.prefetch < 0:
            raise ValueError(f"parallel.prefetch is {self.prefetch}, but is negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length of the run, size of its steps, and what is written when.

    Attributes:
        steps: optimizer steps of the whole run.
        global_batch_bins: packed rows of one step, over all processes.
        micro_batch_bins: rows of one forward in one process; 0 for all of the process's rows.
        log_every: steps between lines on the console; `metrics.jsonl` has a line for each step.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        keep_latest: checkpoints kept, the newest.
        keep_every: checkpoints at multiples of so many steps are kept for good; 0 for none.
        background_checkpoints: go on training while a checkpoint is written; it takes memory for one more
            copy of weights and optimizer state.
        validate_every: steps between validations; 0 for one at the end only.
        validation_batches: global batches of one validation, always the same ones.
        deterministic: on CUDA, refuse operations whose result may differ between two runs.
        export_dtype: type of the exported weights.
        trainable: patterns such as `*.layers.3.*` of the parameters that are trained; empty for all.
        trainable_rows: of embedding table and output layer only these rows are trained: names of code
            ranges, or `new` for ids that the model started from lacks. Empty for all.
        peak_tflops: peak of one device in the type of `parallel.param_dtype`, for the utilisation; 0 goes
            by the device's name.
        loggers: where figures go beside `metrics.jsonl`.
        sample_every: steps between pictures drawn from `sample_prompts`; 0 for none.
        sample_prompts: prompts, JSON lines as `mmfast generate images` takes them.
        profile_step: three steps from this one on are profiled; 0 for none.
    """

    steps: int = 1000
    global_batch_bins: int = 8
    micro_batch_bins: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_latest: int = 2
    keep_every: int = 0
    background_checkpoints: bool = True
    validate_every: int = 0
    validation_batches: int = 8
    deterministic: bool = False
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    trainable: list[str] = dataclasses.field(default_factory=list)
    trainable_rows: list[str] = dataclasses.field(default_factory=list)
    peak_tflops: float = 0.0
    loggers: list[str] = dataclasses.field(default_factory=list)
    sample_every: int = 0
    sample_prompts: str = ""
    profile_step: int = 0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "global_batch_bins",
            "log_every",
            "keep_latest",
            "validation_batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}, but must be at least 1")
        for name in (
            "micro_batch_bins",
            "checkpoint_every",
            "validate_every",
            "keep_every",
            "sample_every",
            "profile_step",
            "peak_tflops",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}, but is negative")
        if self.sample_every and not self.sample_prompts:
            raise ValueError("train.sample_every needs train.sample_prompts, a file of prompts")
        for name in self.loggers:
            if name not in LOGGERS:
                raise ValueError(f"train.loggers names {name!r}; there are {', '.join(LOGGERS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on.

    Attributes:
        output: run folder: configuration, metrics, checkpoints and the exported `model/`.
        seed: of the initial weights, the order of documents and the objective's draws.
        model: shape of the decoder.
        data: what to train on.
        tokenizer: NeMo's block; the data is checked against it.
        objective: how documents become inputs and labels.
        loss: which labels count, and how much.
        train: length, steps, logging, checkpoints.
        lora: adapters.
        optimizer: AdamW.
        schedule: learning rate over the run.
        parallel: FSDP2.
    """

    output: str = "out/run"
    seed: int = 0
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: TokenizerBlock = dataclasses.field(default_factory=TokenizerBlock)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output is empty; name the run's folder")


def load_train_config(source: str, overrides: list[str]) -> TrainConfig:
    """A configuration from the name of a preset or the path of a YAML file, plus overrides.

    Raises:
        ConfigError: as `mmfast.config.load_config` does.
    """
    is_file = source.endswith((".yaml", ".yml")) or "/" in source
    overrides = [part for override in overrides for part in _spelled_out(override)]
    return load_config(
        TrainConfig,
        preset=None if is_file else source,
        preset_package=TRAIN_PRESETS,
        section_presets={"model": MODEL_PRESETS},
        file=Path(source) if is_file else None,
        overrides=overrides,
    )


def _spelled_out(override: str) -> list[str]:
    """`model.from=FOLDER` in full; `from` cannot be a field's name."""
    key, _, value = override.lstrip("-").partition("=")
    if key != "model.from":
        return [override]
    return [f"model.init_from={value}", "model.architecture=pretrained"]
