"""Keys and values of R independent rows in fixed memory, each row at a position of its own.

transformers' static cache has one position for the whole batch; here a row may be at its tenth token
while its neighbour is at its thousandth, so that a finished request's row can be given away at once.
Layout of each layer: keys and values [R, K, P, D]: R rows, K key-value heads, P positions (a multiple
of the block in which attention walks them), D head width. What lies beyond a row's position is zero or
stale, always finite, and never attended to.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from mmfast.models.decode_attention import BLOCK


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed here
    """One layer's keys and values; memory is taken at the first states seen."""

    def __init__(self, num_rows: int, num_positions: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.num_positions = num_positions
        self.positions: torch.Tensor | None = None
        self.row_idx: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates for states [*, K, *, D]."""
        self.keys, self.values = (
            states.new_zeros(self.num_rows, states.shape[1], self.num_positions, states.shape[3])
            for states in (key_states, value_states)
        )
        self.row_idx = torch.arange(self.num_rows, device=key_states.device)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes one token a row, [R, K, 1, D], at each row's position; gives back all of it."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.positions is not None
        self.keys[self.row_idx, :, self.positions] = key_states[:, :, 0]
        self.values[self.row_idx, :, self.positions] = value_states[:, :, 0]
        return self.keys, self.values

    def fill(self, row: int, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Starts a row with a prompt's states [1, K, L, D], and clears what was behind them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = key_states.shape[2]
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[row, :, :length] = states[0]
            buffer[row, :, length:] = 0

    def clear(self, row: int) -> None:
        """Empties a row."""
        if self.is_initialized:
            self.keys[row] = 0
            self.values[row] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset for transformers' masks, which attention `"mmfast"` does not use."""
        del query_length
        return self.num_positions, 0

    def get_seq_length(self) -> int:
        """0: there is no one length, so callers pass `position_ids`."""
        return 0

    def get_max_length(self) -> int:
        """Positions of a row."""
        return self.num_positions


class RowCache(Cache):  # type: ignore[misc]  # transformers is not typed here
    """Cache of R rows for all layers of a model."""

    def __init__(self, num_layers: int, *, num_rows: int, num_positions: int) -> None:
        """Room for at least `num_positions` tokens in each of `num_rows` rows."""
        self.num_rows = num_rows
        self.num_positions = -(-num_positions // BLOCK) * BLOCK
        super().__init__(layers=[RowLayer(num_rows, self.num_positions) for _ in range(num_layers)])

    def set_positions(self, positions: torch.Tensor) -> None:
        """Where each row's next token goes, [R] int64."""
        for layer in self.layers:
            layer.positions = positions

    def fill(self, row: int, prompt: Cache | None) -> None:
        """Starts `row` with a prompt's cache of batch 1, or empty."""
        for layer_idx, layer in enumerate(self.layers):
            if prompt is None:
                layer.clear(row)
            else:
                source = prompt.layers[layer_idx]
                layer.fill(row, source.keys, source.values)
