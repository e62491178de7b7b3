"""Keys and values of R independent rows in fixed memory, each row at a position of its own.

transformers' static cache has one position for the whole batch; here a row may be at its tenth token
while its neighbour is at its thousandth, so that a finished request's row can be given away at once.
Layout of each layer: keys and values [N, R, K, BLOCK, D]: N blocks of positions, R rows, K key-value
heads, D head width; so the first blocks of all rows are one piece of memory, and attention reads no more
of it than the longest row needs. What lies beyond a row's position is zero or stale, always finite, and
never attended to.
"""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from mmfast.models.decode_attention import BLOCK

Piece = tuple[torch.Tensor, torch.Tensor]
"""Keys and values [K, up to BLOCK, D] of one block of a prompt, in one layer."""


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed here
    """One layer's keys and values; memory is taken at the first states seen."""

    def __init__(self, num_rows: int, num_blocks: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.num_blocks = num_blocks
        # Block, row and offset within the block of each row's next token, each [R].
        self.places: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates for states [..., K, *, D]."""
        self.keys, self.values = (
            states.new_zeros(
                self.num_blocks, self.num_rows, states.shape[-3], BLOCK, states.shape[-1]
            )
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> Piece:
        """Writes one token a row, [R, K, 1, D], at each row's position; gives back all of it."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.places is not None
        block, row, offset = self.places
        self.keys[block, row, :, offset] = key_states[:, :, 0]
        self.values[block, row, :, offset] = value_states[:, :, 0]
        return self.keys, self.values

    def fill(self, row: int, pieces: Sequence[Piece]) -> None:
        """Starts a row with a prompt's pieces, and clears what was behind them."""
        if not self.is_initialized:
            if not pieces:
                return
            self.lazy_initialization(*pieces[0])
        for buffer, which in ((self.keys, 0), (self.values, 1)):
            for block, piece in enumerate(pieces):
                states = piece[which]
                buffer[block, row, :, : states.shape[1]] = states
                buffer[block, row, :, states.shape[1] :] = 0
            buffer[len(pieces) :, row] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset for transformers' masks, which attention `"mmfast"` does not use."""
        del query_length
        return self.num_blocks * BLOCK, 0

    def get_seq_length(self) -> int:
        """0: there is no one length, so callers pass `position_ids`."""
        return 0

    def get_max_length(self) -> int:
        """Positions of a row."""
        return self.num_blocks * BLOCK


class RowCache(Cache):  # type: ignore[misc]  # transformers is not typed here
    """Cache of R rows for all layers of a model."""

    def __init__(self, num_layers: int, *, num_rows: int, num_positions: int) -> None:
        """Room for at least `num_positions` tokens in each of `num_rows` rows."""
        self.num_rows = num_rows
        self.num_blocks = -(-num_positions // BLOCK)
        super().__init__(layers=[RowLayer(num_rows, self.num_blocks) for _ in range(num_layers)])

    def set_positions(self, positions: torch.Tensor, rows: torch.Tensor) -> None:
        """Where the next token of `rows` goes, both [R] int64."""
        places = (positions // BLOCK, rows, positions % BLOCK)
        for layer in self.layers:
            layer.places = places

    def fill(self, row: int, pieces: Sequence[Sequence[Piece]]) -> None:
        """Starts `row` with a prompt: for each of its blocks, the piece of each layer."""
        for layer_idx, layer in enumerate(self.layers):
            layer.fill(row, [piece[layer_idx] for piece in pieces])
