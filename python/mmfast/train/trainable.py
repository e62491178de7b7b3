"""Which parameters a run trains, and which rows of the two tables: `train.trainable`, `train.trainable_rows`.

A parameter that is not trained has no gradient and no optimizer state. Of the embedding table and the
output layer some rows can be trained alone: the gradient of the others is set to zero before anything
reads it, and they are not decayed, so they stay as they are, bit for bit.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import ConfigError
from mmfast.models.lora import is_adapter
from mmfast.train.config import TrainConfig
from mmfast.train.labels import ids_of
from mmfast.train.parallel import local_part
from mmfast.vocab import Vocabulary

NEW_ROWS = "new"


def freeze(decoder: nn.Module, config: TrainConfig) -> None:
    """Lets only the chosen parameters want a gradient: those of `train.trainable`, and adapters.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    patterns = config.train.trainable
    names = [name for name, _ in decoder.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            shown = ", ".join(names[:3])
            raise ConfigError(
                f"train.trainable: no parameter matches {pattern!r}; they are named {shown}, …"
            )
    if not patterns and config.lora.rank == 0:
        return
    for name, parameter in decoder.named_parameters():
        chosen = is_adapter(name) or any(fnmatch.fnmatchcase(name, p) for p in patterns)
        parameter.requires_grad_(chosen)


class RowFilter:
    """Keeps gradients of the tables to the chosen rows.

    Args:
        decoder: sharded or not.
        names: code ranges of the vocabulary, `time`, or `new` for ids that the model started from lacks;
            empty keeps every row.
        vocabulary: says where they are.
        num_old_rows: rows of the tables of the model started from; 0 when it started from nothing.

    Raises:
        ConfigError: a name means nothing.
    """

    def __init__(
        self, decoder: Any, names: Sequence[str], *, vocabulary: Vocabulary, num_old_rows: int
    ) -> None:
        self.tables: list[nn.Parameter] = []
        if not names:
            return
        tables = (decoder.get_input_embeddings().weight, decoder.get_output_embeddings().weight)
        self.tables = [table for table in dict.fromkeys(tables) if table.requires_grad]
        num_rows = tables[0].shape[0]
        kept = torch.zeros(num_rows, dtype=torch.bool)
        for name in names:
            if name == NEW_ROWS:
                if num_old_rows == 0:
                    raise ConfigError(
                        "train.trainable_rows names `new`, but the run starts from no model: give "
                        "model.from=FOLDER"
                    )
                kept[num_old_rows:] = True
            else:
                first, end = ids_of(name, vocabulary, key="train.trainable_rows")
                kept[first:end] = True
        self._dropped = [~kept[_local_rows(table)].to(table.device) for table in self.tables]

    def apply(self) -> None:
        """Sets the gradient of the other rows to zero; call it after the backward."""
        for table, dropped in zip(self.tables, self._dropped if self.tables else (), strict=True):
            if table.grad is not None:
                local_part(table.grad).masked_fill_(dropped[:, None], 0.0)


def _local_rows(table: Tensor) -> slice:
    """Rows of a table that this rank holds: FSDP cuts the first dimension in equal parts."""
    from torch.distributed.tensor import DTensor

    if not isinstance(table, DTensor):
        return slice(None)
    mesh = table.device_mesh
    last = mesh.ndim - 1
    rows = -(-table.shape[0] // mesh.size(last))
    first = mesh.get_local_rank(last) * rows
    return slice(first, first + table.to_local().shape[0])
