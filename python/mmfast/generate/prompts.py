"""Keys and values of prompts, computed once for what they have in common.

A prompt is run in pieces of 64 ids at fixed places, each on top of the pieces before it. So a piece's
keys and values depend on the ids up to its end alone, to the last bit, and a prompt that begins as an
earlier one did takes over its pieces: candidates of one prompt, streams, questions about one picture.
Pieces are kept until there are too many, the longest unused ones go first.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from mmfast.generate.cache import Piece
from mmfast.models.decode_attention import BLOCK


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A piece in every layer, and the number by which its successors know it."""

    number: int
    layers: list[Piece]


class Prompts:
    """Runs prompts through one model.

    Args:
        decoder: the model without its head, with attention `"mmfast"`.
        device: where it runs.
        max_positions: ids whose keys and values are kept.
    """

    def __init__(self, decoder: Any, *, device: torch.device, max_positions: int) -> None:
        self._decoder = decoder
        self._device = device
        self._max_positions = max_positions
        self._num_positions = 0
        self._count = 0
        self._kept: collections.OrderedDict[tuple[int, tuple[int, ...]], _Kept] = (
            collections.OrderedDict()
        )
        self.num_computed = 0
        """Ids that were run through the model."""

    def pieces(self, prompt: Sequence[int]) -> list[list[Piece]]:
        """For each piece of the prompt, its keys and values in every layer; none for no ids."""
        found: list[_Kept] = []
        states: DynamicCache | None = None
        number = 0
        for start in range(0, len(prompt), BLOCK):
            ids = tuple(prompt[start : start + BLOCK])
            key = (number, ids)
            if key in self._kept:
                self._kept.move_to_end(key)
            else:
                if states is None:
                    states = self._states(found)
                self._kept[key] = self._run(ids, start, states)
                self._num_positions += len(ids)
            found.append(self._kept[key])
            number = found[-1].number
        while self._num_positions > self._max_positions and len(self._kept) > 1:
            (_, ids), _ = self._kept.popitem(last=False)
            self._num_positions -= len(ids)
        return [kept.layers for kept in found]

    def _states(self, found: Sequence[_Kept]) -> DynamicCache:
        """A cache of transformers with the pieces that were found."""
        # without the configuration it keeps everything, for layers with a window too
        states = DynamicCache()
        if found:
            for layer_idx in range(len(found[0].layers)):
                keys, values = (
                    torch.cat([kept.layers[layer_idx][which] for kept in found], dim=1)[None]
                    for which in (0, 1)
                )
                states.update(keys, values, layer_idx)
        return states

    def _run(self, ids: tuple[int, ...], start: int, states: DynamicCache) -> _Kept:
        positions = torch.arange(start, start + len(ids), device=self._device)[None]
        self._decoder(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=positions,
            past_key_values=states,
            use_cache=True,
        )
        self.num_computed += len(ids)
        self._count += 1
        return _Kept(
            number=self._count,
            layers=[
                (layer.keys[0, :, start:].clone(), layer.values[0, :, start:].clone())
                for layer in states.layers
            ],
        )
