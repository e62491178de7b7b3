"""Sets of ids as bits: 32 ids a word, for histories of a repetition penalty and for masks of a grammar.

Bit i % 32 of word i // 32 is id i. A bitmap of B rows over V ids is int32 [B, ceil(V / 32)]: an eighth of a
bool mask. Bits beyond V do not matter.
"""

import dataclasses
from collections.abc import Sequence

import torch

WORD_BITS = 32
IdSet = Sequence[tuple[int, int]] | torch.Tensor
"""Half-open ranges of ids, a bool mask [V], or a bitmap [ceil(V / 32)]."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """A bitmap of B rows or of one for all, and the id at which the range that is drawn from begins."""

    words: torch.Tensor
    first_id: int

    def unpacked(self, num_ids: int) -> torch.Tensor:
        """[B or 1, N] bool, from `first_id` on."""
        ids = torch.arange(self.first_id, self.first_id + num_ids, device=self.words.device)
        words = self.words.index_select(1, ids // WORD_BITS)
        bits: torch.Tensor = (words >> (ids % WORD_BITS).to(torch.int32)) & 1
        return bits != 0


def num_words(num_ids: int) -> int:
    """ceil(V / 32)."""
    return -(-num_ids // WORD_BITS)


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Bitmap int32 [..., ceil(V / 32)] of a bool mask [..., V].

    >>> pack_mask(torch.tensor([True, False, True])).tolist()
    [5]
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask must be bool, not {mask.dtype}")
    padding = num_words(mask.shape[-1]) * WORD_BITS - mask.shape[-1]
    padded = torch.nn.functional.pad(mask, (0, padding))
    bits = padded.reshape(*mask.shape[:-1], -1, WORD_BITS).to(torch.int32)
    # no two of them share a bit, so the sum is the union, and the sign bit is the 32nd
    places = torch.arange(WORD_BITS, device=mask.device, dtype=torch.int32)
    return (bits << places).sum(-1, dtype=torch.int32)


def history_bitmap(ids: torch.Tensor, num_ids: int) -> torch.Tensor:
    """Bitmap [B, ceil(V / 32)] of the ids that each row has seen; what a repetition penalty reads.

        >>> history_bitmap(torch.tensor([[0, 2, -1]]), 40).tolist()
        [[5, 0]]

    Args:
        ids: [B, L] int64; negative ones (padding) are left out.
        num_ids: V.

    Raises:
        ValueError: an id of V or more (seen on the CPU only; elsewhere it is left out).
    """
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids are {tuple(ids.shape)} {ids.dtype}; they must be [rows, ids] int64")
    if ids.device.type == "cpu" and ids.numel() and int(ids.max()) >= num_ids:
        raise ValueError(f"the history holds id {int(ids.max())}, outside of {num_ids} ids")
    # one more id takes what is left out
    places = torch.where((ids < 0) | (ids >= num_ids), num_ids, ids)
    seen = torch.zeros(ids.shape[0], num_ids + 1, dtype=torch.bool, device=ids.device)
    return pack_mask(seen.scatter_(1, places, True)[:, :num_ids])


def add_to_history(history: torch.Tensor, tokens: torch.Tensor) -> None:
    """Marks one drawn token a row in a bitmap [B, ceil(V / 32)], in place and without waiting for a device.

    Args:
        history: int32, changed.
        tokens: [B] int64.
    """
    word = (tokens // WORD_BITS)[:, None]
    bit = torch.ones_like(word, dtype=torch.int32) << (tokens % WORD_BITS)[:, None].to(torch.int32)
    history.scatter_(1, word, history.gather(1, word) | bit)


def packed(ids: IdSet, num_ids: int, device: torch.device) -> torch.Tensor:
    """Bitmap [ceil(V / 32)] of a set of ids; `ValueError` for one that does not fit V."""
    if isinstance(ids, torch.Tensor):
        if ids.dtype == torch.int32 and ids.shape == (num_words(num_ids),):
            return ids.to(device)
        if ids.dtype == torch.bool and ids.shape == (num_ids,):
            return pack_mask(ids.to(device))
        raise ValueError(
            f"a set of ids is {tuple(ids.shape)} {ids.dtype}; it must be ranges, a bool mask [{num_ids}] or "
            f"an int32 bitmap [{num_words(num_ids)}]"
        )
    mask = torch.zeros(num_ids, dtype=torch.bool, device=device)
    for low, high in ids:
        if not 0 <= low <= high <= num_ids:
            raise ValueError(f"range [{low}, {high}) is outside of 0..{num_ids}")
        mask[low:high] = True
    return pack_mask(mask)
