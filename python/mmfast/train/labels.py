"""Which labels count, how much, and among which ids: a run's `loss` section applied to a batch.

Everything here happens on the CPU, where the batch is made: Σ w is known before the first backward, and
no device waits for a list of rows.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.data import Batch
from mmfast.data.segment import MODALITY_BITS, MODALITY_NAMES, modality_name
from mmfast.errors import ConfigError
from mmfast.train.config import LossConfig
from mmfast.train.loss import LabelGroup
from mmfast.vocab import Vocabulary

TIME_TOKENS = "time"


class _Choice(NamedTuple):
    """Labels in `[first, end)` are scored among these ids alone, or softly, or both."""

    first: int
    end: int
    closed: bool
    soft_std: float


class LabelRules:
    """A `loss` section for one vocabulary.

    Raises:
        ConfigError: the section names a modality or range that does not exist.
    """

    def __init__(self, config: LossConfig, vocabulary: Vocabulary) -> None:
        self.vocabulary_size = vocabulary.size
        numbers = {modality_key(number): number for number in range(MODALITY_BITS + 1)}
        self.factors = torch.ones(MODALITY_BITS + 1)
        for name, weight in config.modality_weights.items():
            if name not in numbers:
                known = ", ".join(MODALITY_NAMES)
                raise ConfigError(
                    f"loss.modality_weights names modality {name!r}; there are {known}, and modality_4 to "
                    "modality_31 of recipes"
                )
            self.factors[numbers[name]] = weight
        self.weighs = bool((self.factors != 1).any())
        names = dict.fromkeys([*config.closed_ranges, *config.soft_std])
        self.choices = [
            _Choice(
                *ids_of(name, vocabulary, key="loss"),
                closed=name in config.closed_ranges,
                soft_std=config.soft_std.get(name, 0.0),
            )
            for name in names
        ]

    def weighed(self, batch: Batch) -> Batch:
        """The batch with its weights multiplied by those of the labels' modalities."""
        if not self.weighs:
            return batch
        factors = self.factors[label_modality(batch.modality_ids).long()]
        weights = batch.loss_weights * factors
        return dataclasses.replace(
            batch, loss_weights=weights, weight_sum=float(weights.sum(dtype=torch.float64))
        )

    def groups(self, labels: Tensor, weights: Tensor) -> list[LabelGroup]:
        """Rows with weight, by the ids they are scored among; `labels` and `weights` are `[B, L]`."""
        labels, left = labels.flatten(), weights.flatten() > 0
        groups = []
        for choice in self.choices:
            chosen = left & (labels >= choice.first) & (labels < choice.end)
            left = left & ~chosen
            rows = chosen.nonzero().flatten()
            if len(rows):
                first, end = (choice.first, choice.end) if choice.closed else self._all_ids
                soft = (choice.first, choice.end, choice.soft_std)
                groups.append(LabelGroup(rows, first, end, *soft))
        rows = left.nonzero().flatten()
        if len(rows) == len(labels):
            groups.append(LabelGroup(None, *self._all_ids))
        elif len(rows):
            groups.append(LabelGroup(rows, *self._all_ids))
        return groups

    @property
    def _all_ids(self) -> tuple[int, int]:
        return 0, self.vocabulary_size


def modality_key(modality: int) -> str:
    """Name of a modality as it stands in keys: `image`, `modality_4`."""
    return modality_name(modality).replace(" ", "_")


def label_modality(modality_ids: Tensor) -> Tensor:
    """`[B, L]`: modality of each label, which is the next token; the last of a row is never a label."""
    modality = modality_ids & MODALITY_BITS
    return torch.cat([modality[:, 1:], modality[:, -1:]], dim=1)


def to_device(groups: Iterable[LabelGroup], device: torch.device) -> list[LabelGroup]:
    """The groups with their rows on a device."""
    return [
        group
        if group.rows is None
        else group._replace(rows=group.rows.to(device, non_blocking=True))
        for group in groups
    ]


def ids_of(name: str, vocabulary: Vocabulary, *, key: str) -> tuple[int, int]:
    """First id and end of a code range, or of the special tokens `time_0, time_1, …`.

    Raises:
        ConfigError: there is no such range; the text names the configuration's `key`.
    """
    ranges = {r.name: (r.base, r.end) for r in vocabulary.ranges}
    prefix = f"{TIME_TOKENS}_"
    times = sorted(
        token_id
        for role, token_id in vocabulary.special.items()
        if role.startswith(prefix) and role.removeprefix(prefix).isdigit()
    )
    if times and times[-1] - times[0] == len(times) - 1:
        ranges.setdefault(TIME_TOKENS, (times[0], times[-1] + 1))
    if name not in ranges:
        raise ConfigError(
            f"{key} names ids {name!r}, but the vocabulary has "
            f"{', '.join(sorted(ranges)) or 'no code ranges'}"
        )
    return ranges[name]
