"""Training: FSDP2 over transformers classes, exact resume, export to the Hugging Face layout."""

from typing import TYPE_CHECKING

from mmfast.lazy import lazy_names

if TYPE_CHECKING:
    from mmfast.train.config import TrainConfig, load_train_config
    from mmfast.train.trainer import train

__all__ = ["TrainConfig", "load_train_config", "train"]

_MODULE_OF_NAME = {
    "TrainConfig": "mmfast.train.config",
    "load_train_config": "mmfast.train.config",
    "train": "mmfast.train.trainer",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF_NAME)
