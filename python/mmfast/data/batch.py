"""One rank's part of a global batch, as torch tensors.

Dimensions: B rows, L tokens a row (`bin_tokens`). A row holds whole documents one after the other and
then padding; attention must not cross documents, for which there are `document_ids` and `cu_seqlens`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

IGNORED_LABEL = -100

TENSOR_FIELDS = (
    "input_ids",
    "labels",
    "position_ids",
    "document_ids",
    "modality_ids",
    "loss_weights",
    "cu_seqlens",
)


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

    @classmethod
    def from_arrays(cls, fields: Mapping[str, Any]) -> "Batch":
        """Wraps the native loader's arrays without a copy."""
        tensors = {name: torch.from_numpy(fields[name]) for name in TENSOR_FIELDS}
        return cls(
            **tensors,
            max_seqlen=fields["max_seqlen"],
            weight_sum=fields["weight_sum"],
            num_tokens=fields["num_tokens"],
            num_documents=fields["num_documents"],
        )

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
