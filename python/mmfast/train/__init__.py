"""Training: FSDP2 over transformers classes, exact resume, export to the Hugging Face layout."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfast.train.config import TrainConfig, load_train_config
    from mmfast.train.trainer import train

__all__ = ["TrainConfig", "load_train_config", "train"]

_MODULE_OF_NAME = {
    "TrainConfig": "mmfast.train.config",
    "load_train_config": "mmfast.train.config",
    "train": "mmfast.train.trainer",
}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULE_OF_NAME[name]
    except KeyError:
        raise AttributeError(f"module 'mmfast.train' has no attribute {name!r}") from None
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
