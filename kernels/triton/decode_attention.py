"""Attention of one new token a row over a cache in blocks: two kernels, of which none waits for a long row.

Does what `mmfast.models.decode_attention.decode_attention` defines, up to rounding. The first kernel attends
to each block of 64 positions by itself, one program a block, row and key-value head, so that a single long
row fills the device; a block that the mask hides is not read. The second adds a row's blocks up, one after
another, so blocks beyond its length add zeros at the end and change no bit, however many there are.

Legend: N blocks, R rows, H heads, K key-value heads, G = H / K, D head width. Memory traffic: the visible
blocks' keys and values, once for all heads that share them.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        "mmfast.kernels.decode_attention needs Triton, which comes with CUDA builds of torch "
        "(`pip install triton` adds it)"
    ) from error

BLOCK = 64

AOT_SIGNATURES = [
    {"name": f"{dtype}_{width}_{groups}", "dtype": dtype, "GROUPS": groups, "WIDTH": width}
    for dtype, width, groups in (
        ("bf16", 128, 4),
        ("fp32", 96, 1),
        ("fp16", 64, 8),
    )
]
"""Variants that the ahead-of-time compile test builds for every supported architecture."""


def num_warps(width: int) -> int:
    """Warps of a program, for a head width."""
    return 4 if width <= 64 else 8


@triton.jit
def _attend_to_block_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    mask_ptr,
    top_ptr,
    total_ptr,
    output_ptr,
    num_rows,
    num_kv_heads,
    scaling,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Top score, sum of weights and weighted values of one block, for the G heads that share it."""
    block = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    kv_head = tl.program_id(2)
    places = tl.arange(0, BLOCK)
    columns = tl.arange(0, PADDED_WIDTH)
    mask = tl.load(mask_ptr + (block * num_rows + row) * BLOCK + places)
    tile = (block * num_rows + row) * num_kv_heads + kv_head
    if tl.max(mask, axis=0) < 0.0:
        for group in range(GROUPS):
            out = tile * GROUPS + group
            tl.store(top_ptr + out, float("-inf"))
            tl.store(total_ptr + out, 0.0)
            zeros = tl.zeros([PADDED_WIDTH], dtype=tl.float32)
            tl.store(output_ptr + out * WIDTH + columns, zeros, mask=columns < WIDTH)
    else:
        cells = tile * BLOCK * WIDTH + places[:, None] * WIDTH + columns[None, :]
        inside = (columns < WIDTH)[None, :] & (places < BLOCK)[:, None]
        keys = tl.load(key_ptr + cells, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(value_ptr + cells, mask=inside, other=0.0).to(tl.float32)
        for group in range(GROUPS):
            head = (row * num_kv_heads + kv_head) * GROUPS + group
            query = tl.load(query_ptr + head * WIDTH + columns, mask=columns < WIDTH, other=0.0)
            scores = tl.sum(keys * query.to(tl.float32)[None, :], axis=1) * scaling + mask
            top = tl.max(scores, axis=0)
            weights = tl.exp(scores - top)
            out = tile * GROUPS + group
            tl.store(top_ptr + out, top)
            tl.store(total_ptr + out, tl.sum(weights, axis=0))
            summed = tl.sum(weights[:, None] * values, axis=0)
            tl.store(output_ptr + out * WIDTH + columns, summed, mask=columns < WIDTH)


@triton.jit
def _add_blocks_kernel(
    top_ptr,
    total_ptr,
    output_ptr,
    result_ptr,
    num_blocks,
    num_heads,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
):
    """The blocks of one head of one row, added in order; `num_heads` counts those of all rows."""
    head = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED_WIDTH)
    top = tl.load(top_ptr + head)
    block = 1
    while block < num_blocks:
        top = tl.maximum(top, tl.load(top_ptr + block * num_heads + head))
        block += 1
    total = 0.0
    output = tl.zeros([PADDED_WIDTH], dtype=tl.float32)
    block = 0
    while block < num_blocks:
        at = block * num_heads + head
        factor = tl.exp(tl.load(top_ptr + at) - top)
        total += factor * tl.load(total_ptr + at)
        summed = tl.load(output_ptr + at * WIDTH + columns, mask=columns < WIDTH, other=0.0)
        output += factor * summed
        block += 1
    result = (output / total).to(result_ptr.dtype.element_ty)
    tl.store(result_ptr + head * WIDTH + columns, result, mask=columns < WIDTH)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Launches both kernels.

    Args:
        query: [R, H, D] of any strides; up to D = 128 a block stays in registers.
        key: [N or more, R, K, BLOCK, D], contiguous.
        value: likewise.
        mask: [N, R, 1, 1, BLOCK] float32, 0 or -inf; every row sees a position.
        scaling: factor on the scores.

    Returns:
        [R, H, D] in the query's dtype.
    """
    query = query.contiguous()
    R, H, D = query.shape
    N, K = mask.shape[0], key.shape[2]
    top, total = (torch.empty(N, R, H, dtype=torch.float32, device=query.device) for _ in range(2))
    output = torch.empty(N, R, H, D, dtype=torch.float32, device=query.device)
    result = torch.empty_like(query)
    width = triton.next_power_of_2(D)
    _attend_to_block_kernel[(N, R, K)](
        query,
        key,
        value,
        mask,
        top,
        total,
        output,
        R,
        K,
        scaling,
        GROUPS=H // K,
        WIDTH=D,
        PADDED_WIDTH=width,
        BLOCK=BLOCK,
        num_warps=num_warps(D),
    )
    _add_blocks_kernel[(R * H,)](
        top, total, output, result, N, R * H, WIDTH=D, PADDED_WIDTH=width, num_warps=1
    )
    return result
