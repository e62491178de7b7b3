"""Which checkpoint a run goes on from, and whether it is this run's."""

import dataclasses
from pathlib import Path
from typing import Any

from mmfast.errors import ConfigError, UsageError
from mmfast.train.checkpoint import RunState, list_checkpoints, read_state
from mmfast.train.config import TrainConfig
from mmfast.vocab import Vocabulary

# Keys of the model that say where its weights come from, not what its tensors are.
_ORIGIN_KEYS = (
    "preset",
    "init_from",
    "init_std",
    "residual_init",
    "position_std",
    "embedding_init",
)


def resume_path(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume` means for a run with checkpoints in `folder`, None for a fresh run.

    Raises:
        UsageError: the folder holds a run that this would mix with.
    """
    found = list_checkpoints(folder)
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


def checked_state(path: Path, config: TrainConfig, vocabulary: Vocabulary) -> RunState:
    """The checkpoint's state, once its vocabulary and model are known to be those of this run.

    Raises:
        UsageError: `path` is no checkpoint.
        ConfigError: it holds another model.
        VocabularyMismatchError: its vocabulary is not the data's.
        CorruptDataError: a file is damaged.
    """
    state = read_state(path)
    Vocabulary.load(path).require_same(vocabulary, here=f"the checkpoint {path}", there="the data")
    differing = [
        f"{key} is {state.model.get(key)!r} there and {value!r} here"
        for key, value in model_shape(config).items()
        if state.model.get(key) != value
    ]
    if differing:
        raise ConfigError(f"the checkpoint {path} holds another model: {'; '.join(differing)}")
    return state


def model_shape(config: TrainConfig) -> dict[str, Any]:
    """What decides the tensors of a run's model."""
    shape = dataclasses.asdict(config.model)
    for key in _ORIGIN_KEYS:
        del shape[key]
    return {**shape, "lora_rank": config.lora.rank, "lora_targets": list(config.lora.targets)}
