"""One rank's part of a global batch, as torch tensors.

Dimensions: B rows, L tokens a row (`bin_tokens`). A row holds whole documents one after the other and
then padding; attention must not cross documents, for which there are `document_ids` and `cu_seqlens`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mmfast.data.media import BatchMedia

IGNORED_LABEL = -100

ROW_DTYPES = {
    "input_ids": torch.int64,
    "labels": torch.int64,
    "position_ids": torch.int32,
    "document_ids": torch.int32,
    "modality_ids": torch.uint8,
    "loss_weights": torch.float32,
}
"""The tensors of shape [B, L]."""

TENSOR_FIELDS = (*ROW_DTYPES, "cu_seqlens")
FACTS = ("max_seqlen", "weight_sum", "num_tokens", "num_documents", "counts")
STATE_KEYS = ("version", "seed", "window", "bin", "fingerprint")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows for one training step of one rank.

    Attributes:
        input_ids: int64 [B, L]; the vocabulary's `pad` id in padding.
        labels: int64 [B, L]; `labels[b, t]` is the id that follows `input_ids[b, t]` in the same
            document. Already shifted: do not shift again. -100 at a document's last token and padding.
        position_ids: int32 [B, L], from 0 in each document.
        document_ids: int32 [B, L], from 1 in each row; 0 is padding.
        modality_ids: uint8 [B, L], modality of `input_ids`: 0 text, 1 image, 2 video, 3 audio.
        loss_weights: float32 [B, L], weight of `labels`.
        cu_seqlens: int32, ends of the documents in the flattened rows after a leading 0. A row's padding
            counts as one more document, so the last entry is B·L.
        max_seqlen: longest stretch of `cu_seqlens`.
        weight_sum: sum of `loss_weights`.
        num_tokens: tokens that are not padding.
        num_documents: documents; each piece of a split one counts.
        media: placeholders for continuous inputs, row by row, and what they stand for.
        state: the loader's `state_dict()` right after this batch, whoever made it: what a checkpoint keeps.
        counts: what became of the documents of the windows begun so far, by name: `documents truncated
            split dropped empty overlong_groups`.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor
    modality_ids: torch.Tensor
    loss_weights: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    weight_sum: float
    num_tokens: int
    num_documents: int
    media: tuple[BatchMedia, ...] = ()
    state: dict[str, int | str] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_native(
        cls, fields: Mapping[str, Any], rows: Mapping[str, torch.Tensor] | None = None
    ) -> "Batch":
        """Wraps what the native loader gave, without a copy; `rows` are the tensors that it filled."""
        tensors: dict[str, Any] = dict(rows or {})
        if rows is None:
            tensors = {name: torch.from_numpy(fields[name]) for name in ROW_DTYPES}
        return cls(
            **tensors,
            cu_seqlens=torch.from_numpy(fields["cu_seqlens"]),
            media=tuple(BatchMedia(*entry) for entry in fields["media"]),
            state=dict(zip(STATE_KEYS, fields["state"], strict=True)),
            **{name: fields[name] for name in FACTS},
        )

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """The tensors of shape [B, L] by name."""
        return {name: getattr(self, name) for name in ROW_DTYPES}

    @property
    def num_rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    @property
    def padding_fraction(self) -> float:
        """Share of positions that hold padding."""
        return 1.0 - self.num_tokens / self.input_ids.numel()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch with its tensors on a device; `non_blocking` overlaps copies of pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU do not wait."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors: dict[str, Any] = {name: function(getattr(self, name)) for name in TENSOR_FIELDS}
        return dataclasses.replace(self, **tensors)
