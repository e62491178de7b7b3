"""Draws from gathered candidates: one program a row, which reads nothing but the buffer.

A row with more candidates than the buffer holds is left to `draw_streaming`.
"""

from mmfast.kernels.draw_in_registers import draw_in_registers, store_certain, store_status
from mmfast.kernels.gather_candidates import load_mass
from mmfast.kernels.sampling_numbers import NO_KEY, tl, triton


@triton.jit(do_not_specialize=["num_ids"])
def draw_candidates_kernel(
    outputs,
    candidates,
    found,
    tiles,
    parameters,
    num_ids,
    MAX_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
):
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    num_candidates = tl.load(found.num_candidates + row)
    if num_candidates <= MAX_CANDIDATES:
        places = tl.arange(0, MAX_CANDIDATES)
        is_there = places < num_candidates
        keys_ptr = candidates.keys + row * MAX_CANDIDATES
        ids_ptr = candidates.ids + row * MAX_CANDIDATES
        key = tl.load(keys_ptr + places, mask=is_there, other=NO_KEY)
        top_key = tl.max(key, axis=0)

        splits = tl.arange(0, MAX_SPLITS)
        slots = row * found.num_splits + splits
        is_split = splits < found.num_splits
        num_excluded = tl.sum(tl.load(found.num_excluded + slots, mask=is_split, other=0), axis=0)
        is_infinite, is_empty = store_status(outputs, row, top_key, num_excluded > 0)
        if (tl.load(parameters.greedy + row) != 0) | is_infinite | is_empty:
            lowest = tl.min(tl.load(found.lowest + slots, mask=is_split, other=num_ids), axis=0)
            ids = tl.load(ids_ptr + places, mask=is_there & (key == top_key), other=num_ids)
            token = tl.where(is_empty, lowest, tl.min(ids, axis=0))
            store_certain(outputs, row, tl.where(token < num_ids, token, 0), is_empty)
        else:
            full_mass = tl.full((), 0, tl.int64)
            if tiles is not None:
                full_mass = load_mass(tiles, row, MAX_TILES)
            draw_in_registers(
                outputs,
                parameters,
                row,
                key,
                keys_ptr,
                ids_ptr,
                num_candidates,
                num_ids,
                top_key,
                full_mass,
            )
