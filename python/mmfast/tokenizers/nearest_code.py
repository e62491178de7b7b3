"""Which code of a codebook lies nearest to each vector, without the matrix of all distances.

A vector quantiser compares N latents with K codes. Published ones write all N x K distances to memory:
1.06 GB for one 720x720 image of Emu3 (8,100 latents, 32,768 codes). Codes have few dimensions, so that
the work is memory traffic; here a tile of distances is made, searched and overwritten while it lies in
cache.

Letters: N vectors, K codes, D dimensions.
"""

import torch

# Vectors and codes of one tile. Two float32 buffers: 2 MB on CPU, to stay in a core's cache; 8 MB elsewhere.
_CPU_TILE = (64, 4096)
_DEVICE_TILE = (256, 4096)


def nearest_code(x_nd: torch.Tensor, codebook_kd: torch.Tensor) -> torch.Tensor:
    """int64 `[N]`: index of the code with the least squared distance; of equal ones the lowest index.

    Distances are |x|^2 + |e|^2 - 2 x.e in float32, summed in this order, as the quantisers of Emu3,
    VQGAN and Chameleon do it, so that rounding falls as it does there. Other dtypes are widened first.

    Args:
        x_nd: vectors `[N, D]`.
        codebook_kd: codes `[K, D]`, at least one.

    Raises:
        ValueError: shapes that do not fit each other, or an empty codebook.
    """
    if x_nd.ndim != 2 or codebook_kd.ndim != 2 or x_nd.shape[1] != codebook_kd.shape[1]:
        raise ValueError(
            f"vectors {list(x_nd.shape)} and codebook {list(codebook_kd.shape)} must be [N,D] and [K,D]"
        )
    num_vectors, num_codes = len(x_nd), len(codebook_kd)
    if num_codes == 0:
        raise ValueError("the codebook is empty")
    x, codebook = x_nd.float(), codebook_kd.float()
    codes_dk = codebook.t()
    x_squared = (x**2).sum(dim=1, keepdim=True)
    code_squared = (codebook**2).sum(dim=1)
    rows, columns = _CPU_TILE if x.device.type == "cpu" else _DEVICE_TILE
    rows, columns = min(rows, num_vectors), min(columns, num_codes)
    products, distances = (x.new_empty(rows * columns) for _ in range(2))
    nearest = torch.empty(num_vectors, dtype=torch.int64, device=x.device)
    for top in range(0, num_vectors, max(rows, 1)):
        tile_x = x[top : top + rows]
        least, index = None, None
        for left in range(0, num_codes, columns):
            tile_codes = codes_dk[:, left : left + columns]
            shape = (len(tile_x), tile_codes.shape[1])
            product = products[: shape[0] * shape[1]].view(shape)
            distance = distances[: shape[0] * shape[1]].view(shape)
            torch.mm(tile_x, tile_codes, out=product)
            torch.add(
                x_squared[top : top + rows], code_squared[left : left + columns], out=distance
            )
            distance.sub_(product, alpha=2)
            # `argmin` promises the first of equal ones; `min` with a dimension does not.
            found = distance.argmin(dim=1)
            value = distance.gather(1, found[:, None])[:, 0]
            if least is None or index is None:
                least, index = value, found
            else:
                is_nearer = value < least
                least = torch.where(is_nearer, value, least)
                index = torch.where(is_nearer, found + left, index)
        if index is not None:
            nearest[top : top + rows] = index
    return nearest
