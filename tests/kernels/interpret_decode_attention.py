"""Runs the decoding kernels in Triton's interpreter against torch's reference. Prints JSON.

A script, since the interpreter must be chosen before Triton is imported.
"""

import json

import torch

from mmfast.kernels.decode_attention import decode_attention
from mmfast.models.decode_attention import BLOCK, cache_mask
from mmfast.models.decode_attention import decode_attention as reference

SHAPES = (
    # R, K, G, D, blocks of the longest row, blocks of the cache
    (3, 2, 2, 8, 3, 5),
    (1, 1, 1, 96, 2, 2),
    (2, 1, 4, 33, 1, 4),
    (4, 3, 1, 16, 6, 7),
)


def main() -> None:
    results = []
    generator = torch.Generator().manual_seed(0)
    # A window that hides whole blocks before it.
    for dtype, window in ((torch.float32, None), (torch.float32, 70), (torch.bfloat16, None)):
        for R, K, G, D, num_blocks, size in SHAPES:
            query = torch.randn(R, K * G, 1, D, generator=generator).to(dtype)
            key, value = torch.randn(2, size, R, K, BLOCK, D, generator=generator).to(dtype)
            positions = torch.randint(0, num_blocks * BLOCK, (R,), generator=generator)
            positions[0] = num_blocks * BLOCK - 1
            positions[-1] = 0 if R > 1 else positions[-1]
            found = [
                decode_attention(
                    query[:, :, 0], key, value, mask=cache_mask(positions, n, window), scaling=0.3
                )
                for n in range(num_blocks, size + 1)
            ]
            expected = reference(
                query.float(),
                key.float(),
                value.float(),
                mask=cache_mask(positions, num_blocks, window),
                scaling=0.3,
            )
            results.append(
                {
                    "shape": [R, K, G, D, num_blocks, size],
                    "dtype": str(dtype),
                    "window": window,
                    "difference": float((found[0].float() - expected[:, 0]).abs().max()),
                    "is_invariant": all(torch.equal(found[0], other) for other in found),
                }
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
