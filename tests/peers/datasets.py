"""Writes datasets with mmfast and, beside each, what they hold as a plain `.npz`.

`check_megatron.py` reads both in an environment of its own, where megatron-core is installed and
mmfast is not. Usage: `python tests/peers/datasets.py FOLDER [PREFIX...]`; a dataset that exists
already can be named by its prefix, and gets its `.npz` too.
"""

import sys
from pathlib import Path

import numpy as np

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, merge_datasets

NUM_DOCUMENTS = 200
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16")


def random_content(generator: np.random.Generator, dtype: str) -> dict[str, np.ndarray]:
    """Documents of 0 to 4 sequences of 0 to 60 ids over the dtype's whole range."""
    document_lengths = generator.integers(0, 5, NUM_DOCUMENTS)
    lengths = generator.integers(0, 61, document_lengths.sum())
    num_ids = lengths.sum()
    if np.dtype(dtype).kind == "f":
        flat = generator.normal(size=num_ids).astype(dtype)
    else:
        info = np.iinfo(dtype)
        flat = generator.integers(info.min, info.max, num_ids, dtype=dtype, endpoint=True)
    modes = generator.integers(0, 128, len(lengths)).astype(np.uint8)
    return {
        "flat": flat,
        "lengths": lengths,
        "document_lengths": document_lengths,
        "modes": modes,
    }


def write(prefix: Path, content: dict[str, np.ndarray], *, multimodal: bool) -> None:
    flat = content["flat"]
    with IndexedDatasetBuilder(prefix, dtype=flat.dtype, multimodal=multimodal) as builder:
        builder.add_documents(
            flat,
            content["lengths"],
            content["document_lengths"],
            content["modes"] if multimodal else None,
        )
    np.savez(f"{prefix}.npz", multimodal=multimodal, parts=[], **content)


def describe(prefix: str) -> None:
    """Writes what an existing dataset holds, as mmfast reads it."""
    dataset = IndexedDataset(prefix)
    modes = dataset.sequence_modes
    np.savez(
        f"{prefix}.npz",
        flat=dataset.tokens,
        lengths=dataset.sequence_lengths,
        document_lengths=np.diff(dataset.document_indices),
        modes=np.zeros(len(dataset), np.uint8) if modes is None else modes,
        multimodal=dataset.multimodal,
        parts=[],
    )


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for dtype in DTYPES:
        for multimodal in (False, True):
            kind = "multimodal" if multimodal else "text"
            write(
                folder / f"{dtype}-{kind}", random_content(generator, dtype), multimodal=multimodal
            )
    parts = [f"part-{i}" for i in range(3)]
    contents = [random_content(generator, "int32") for _ in parts]
    for part, content in zip(parts, contents, strict=True):
        write(folder / part, content, multimodal=True)
    merge_datasets(folder / "merged", [folder / part for part in parts])
    whole = {name: np.concatenate([c[name] for c in contents]) for name in contents[0]}
    np.savez(folder / "merged.npz", multimodal=True, parts=parts, **whole)
    for prefix in sys.argv[2:]:
        describe(prefix)


if __name__ == "__main__":
    main()
