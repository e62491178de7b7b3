"""Draws from small ranges of ids in one kernel: one program a row, one read of its logits, which stay in registers."""

from mmfast.kernels.draw_in_registers import draw_in_registers, store_certain, store_status
from mmfast.kernels.sampling_keys import load_keys
from mmfast.kernels.sampling_numbers import tl, triton


@triton.jit(do_not_specialize=["num_ids"])
def draw_range_kernel(outputs, inputs, parameters, num_ids, BLOCK: tl.constexpr):
    """Grid (rows,); `num_ids` <= `BLOCK`."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK)
    key, exists, is_excluded = load_keys(inputs, row, ids, num_ids)
    top_key = tl.max(key, axis=0)
    is_infinite, is_empty = store_status(
        outputs, row, top_key, tl.sum(is_excluded.to(tl.int32), axis=0) > 0
    )
    if (tl.load(parameters.greedy + row) != 0) | is_infinite | is_empty:
        # of an empty row the lowest id that exists
        highest = tl.min(tl.where(exists & (key == top_key), ids, BLOCK), axis=0)
        store_certain(outputs, row, tl.where(highest < num_ids, highest, 0), is_empty)
    else:
        full_mass = tl.full((), 0, tl.int64)
        draw_in_registers(
            outputs, parameters, row, key, None, None, num_ids, num_ids, top_key, full_mass
        )
