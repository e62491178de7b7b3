"""Training: FSDP2 over transformers classes, exact resume, export to the Hugging Face layout."""

from mmfast.train.config import TrainConfig, load_train_config
from mmfast.train.trainer import train

__all__ = ["TrainConfig", "load_train_config", "train"]
