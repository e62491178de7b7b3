"""Holds datasets against megatron-core's own reader and writer.

Runs where megatron-core is installed and mmfast is not (`make peers`). For each prefix with a
`<prefix>.npz` beside it (keys: `flat lengths document_lengths modes multimodal parts`):

- megatron-core's `IndexedDataset` must read the ids, document boundaries and modes of the `.npz` (unless
  there are no ids: it cannot open an empty file);
- megatron-core's `IndexedDatasetBuilder`, given the same by items and by documents, must write the very
  same bytes, and its `add_index` over `parts` the bytes of our merge.

Usage: `python tests/peers/check_megatron.py PREFIX...`
"""

import filecmp
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of every optional accelerator that is not there
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder


def differences_in_reading(prefix: str, content: dict[str, np.ndarray]) -> list[str]:
    """What megatron-core's reader sees differently from `content`."""
    multimodal = bool(content["multimodal"])
    dataset = IndexedDataset(prefix, multimodal=multimodal)
    found = []
    if not np.array_equal(dataset.sequence_lengths, content["lengths"]):
        found.append("sequence lengths")
    boundaries = np.concatenate([[0], np.cumsum(content["document_lengths"])])
    if not np.array_equal(dataset.document_indices, boundaries):
        found.append("document indices")
    ends = np.cumsum(content["lengths"])
    for i in range(len(dataset)):
        ids, mode = dataset[i] if multimodal else (dataset[i], 0)
        expected = content["flat"][ends[i] - content["lengths"][i] : ends[i]]
        if ids.dtype != expected.dtype or not np.array_equal(ids, expected):
            found.append(f"ids of sequence {i}")
        if multimodal and mode != content["modes"][i]:
            found.append(f"mode of sequence {i}")
    return found


def add_items(builder: IndexedDatasetBuilder, content: dict[str, np.ndarray]) -> None:
    sequence = end = 0
    for num_sequences in content["document_lengths"]:
        for _ in range(num_sequences):
            start, end = end, end + content["lengths"][sequence]
            mode = int(content["modes"][sequence]) if builder.multimodal else 0
            builder.add_item(wide(content["flat"][start:end]), mode)
            sequence += 1
        builder.end_document()


def add_documents(builder: IndexedDatasetBuilder, content: dict[str, np.ndarray]) -> None:
    sequence = end = 0
    for num_sequences in content["document_lengths"]:
        lengths = content["lengths"][sequence : sequence + num_sequences].tolist()
        modes = content["modes"][sequence : sequence + num_sequences].tolist()
        start, end = end, end + sum(lengths)
        builder.add_document(wide(content["flat"][start:end]), lengths, modes)
        sequence += num_sequences


def wide(ids: np.ndarray) -> torch.Tensor:
    """A tensor of a type that every version of torch has; the builder casts it back."""
    return torch.from_numpy(ids.astype("float64" if ids.dtype.kind == "f" else "int64"))


def differences_in_writing(prefix: str, content: dict[str, np.ndarray], scratch: Path) -> list[str]:
    """Files of `prefix` whose bytes differ from those megatron-core writes for `content`."""

    def add_parts(builder: IndexedDatasetBuilder, content: dict[str, np.ndarray]) -> None:
        for part in content["parts"]:
            builder.add_index(str(Path(prefix).parent / str(part)))

    found = []
    for add in [add_parts] if len(content["parts"]) else [add_items, add_documents]:
        builder = IndexedDatasetBuilder(
            str(scratch / "peer.bin"),
            dtype=content["flat"].dtype.type,
            multimodal=bool(content["multimodal"]),
        )
        add(builder, content)
        builder.finalize(str(scratch / "peer.idx"))
        found += [
            f"bytes of {suffix} by {add.__name__}"
            for suffix in (".bin", ".idx")
            if not filecmp.cmp(f"{prefix}{suffix}", scratch / f"peer{suffix}", shallow=False)
        ]
    return found


def main() -> int:
    failed = 0
    for prefix in sys.argv[1:]:
        with np.load(f"{prefix}.npz") as file:
            content = dict(file)
        with tempfile.TemporaryDirectory() as scratch:
            found = differences_in_reading(prefix, content) if content["flat"].size else []
            found += differences_in_writing(prefix, content, Path(scratch))
        failed += bool(found)
        sys.stdout.write(f"{'DIFFERS' if found else 'same'} {prefix} {', '.join(found[:5])}\n")
    num_prefixes = len(sys.argv) - 1
    sys.stdout.write(
        f"megatron-core {version('megatron-core')}, numpy {np.__version__}: "
        f"{num_prefixes - failed} passed, {failed} failed\n"
    )
    return 1 if failed or not num_prefixes else 0


if __name__ == "__main__":
    sys.exit(main())
