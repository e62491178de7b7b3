"""Writes datasets with mmfast and, beside each, what they hold as a plain `.npz`.

`check_megatron.py` reads both in an environment of its own, where megatron-core is installed and
mmfast is not. There are

- every dtype over its whole range, with and without modes, documents of 0 to 4 sequences, some empty;
- every way of writing: all at once, by documents, by items, journaled and interrupted;
- nothing: no documents, documents without sequences, sequences without ids;
- merges: of a few datasets, of one that is empty, of many, and between documents of the builder's own.

Usage: `python tests/peers/datasets.py FOLDER [PREFIX...]`; a dataset that exists already can be named by
its prefix, and gets its `.npz` too.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, merge_datasets

NUM_DOCUMENTS = 200
NUM_SHARDS, SHARD_DOCUMENTS = 64, 20
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16")

Content = dict[str, np.ndarray]


def random_content(
    generator: np.random.Generator, dtype: str, num_documents: int = NUM_DOCUMENTS
) -> Content:
    """Documents of 0 to 4 sequences of 0 to 60 ids over the dtype's whole range."""
    document_lengths = generator.integers(0, 5, num_documents)
    lengths = generator.integers(0, 61, document_lengths.sum())
    num_ids = lengths.sum()
    if np.dtype(dtype).kind == "f":
        flat = generator.normal(size=num_ids).astype(dtype)
    else:
        info = np.iinfo(dtype)
        flat = generator.integers(info.min, info.max, num_ids, dtype=dtype, endpoint=True)
    modes = generator.integers(0, 128, len(lengths)).astype(np.uint8)
    return content_of(flat, lengths, document_lengths, modes)


def content_of(
    flat: np.ndarray, lengths: np.ndarray, document_lengths: np.ndarray, modes: np.ndarray
) -> Content:
    return {
        "flat": flat,
        "lengths": lengths,
        "document_lengths": document_lengths,
        "modes": modes,
    }


def empty_content(num_documents: int, sequences_per_document: int, dtype: str = "int32") -> Content:
    """Documents without an id."""
    num_sequences = num_documents * sequences_per_document
    return content_of(
        np.zeros(0, dtype),
        np.zeros(num_sequences, np.int64),
        np.full(num_documents, sequences_per_document),
        np.zeros(num_sequences, np.uint8),
    )


def joined(contents: list[Content]) -> Content:
    return {name: np.concatenate([c[name] for c in contents]) for name in contents[0]}


def documents(content: Content) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, lengths and modes of each document."""
    sequence_ends = np.cumsum(content["document_lengths"])
    id_ends = np.concatenate([[0], np.cumsum(content["lengths"])])
    found = []
    for stop, count in zip(sequence_ends, content["document_lengths"], strict=True):
        ids = content["flat"][id_ends[stop - count] : id_ends[stop]]
        sequences = slice(stop - count, stop)
        found.append((ids, content["lengths"][sequences], content["modes"][sequences]))
    return found


def describe(prefix: str | Path, content: Content, *, multimodal: bool, parts: list[str]) -> None:
    """`parts`: datasets beside it that megatron-core gives the same by merging."""
    np.savez(f"{prefix}.npz", multimodal=multimodal, parts=np.array(parts, dtype=str), **content)


def write(prefix: Path, content: Content, *, multimodal: bool) -> None:
    flat = content["flat"]
    with IndexedDatasetBuilder(prefix, dtype=flat.dtype, multimodal=multimodal) as builder:
        add_all(builder, content)
    describe(prefix, content, multimodal=multimodal, parts=[])


def add_all(builder: IndexedDatasetBuilder, content: Content) -> None:
    modes = content["modes"] if builder.multimodal else None
    builder.add_documents(content["flat"], content["lengths"], content["document_lengths"], modes)


def write_by_documents(prefix: Path, content: Content) -> None:
    with IndexedDatasetBuilder(prefix, dtype="int32", multimodal=True) as builder:
        for ids, lengths, modes in documents(content):
            builder.add_document(ids, lengths, modes)


def write_by_items(prefix: Path, content: Content) -> None:
    with IndexedDatasetBuilder(prefix, dtype="int32", multimodal=True) as builder:
        for ids, lengths, modes in documents(content):
            for sequence, mode in zip(np.split(ids, np.cumsum(lengths)[:-1]), modes, strict=False):
                builder.add_item(sequence, int(mode))
            builder.end_document()


def write_interrupted(prefix: Path, content: Content) -> None:
    """A journaled builder that is left every 30 documents, some of them not acknowledged."""
    todo = documents(content)
    num_done = 0
    while num_done < len(todo):
        with IndexedDatasetBuilder(prefix, dtype="int32", multimodal=True, resume=True) as builder:
            num_done = builder.written.num_documents
            for number, (ids, lengths, modes) in enumerate(todo[num_done:][:30]):
                builder.add_document(ids, lengths, modes)
                if number == 20:
                    builder.flush()
            num_done += len(todo[num_done:][:30])
            if num_done < len(todo):
                builder.abort()


WAYS: dict[str, Callable[[Path, Content], None]] = {
    "by-documents": write_by_documents,
    "by-items": write_by_items,
    "interrupted": write_interrupted,
}


def write_merges(folder: Path, generator: np.random.Generator) -> None:
    parts = [f"part-{i}" for i in range(3)]
    contents = [random_content(generator, "int32") for _ in parts]
    contents.insert(1, empty_content(0, 0))
    parts.insert(1, "part-empty")
    for part, content in zip(parts, contents, strict=True):
        write(folder / part, content, multimodal=True)
    merge_datasets(folder / "merged", [folder / part for part in parts])
    describe(folder / "merged", joined(contents), multimodal=True, parts=parts)

    shards = [f"shards/shard-{i:03}" for i in range(NUM_SHARDS)]
    contents = [random_content(generator, "uint16", SHARD_DOCUMENTS) for _ in shards]
    for shard, content in zip(shards, contents, strict=True):
        write(folder / shard, content, multimodal=False)
    merge_datasets(folder / "merged-many", [folder / shard for shard in shards])
    describe(folder / "merged-many", joined(contents), multimodal=False, parts=shards)

    with IndexedDatasetBuilder(folder / "merged-between", dtype="uint16") as builder:
        add_all(builder, contents[0])
        for shard in shards[1:3]:
            builder.add_index(folder / shard)
        add_all(builder, contents[3])
    describe(folder / "merged-between", joined(contents[:4]), multimodal=False, parts=[])


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for dtype in DTYPES:
        for multimodal in (False, True):
            kind = "multimodal" if multimodal else "text"
            write(
                folder / f"{dtype}-{kind}", random_content(generator, dtype), multimodal=multimodal
            )
    for way, write_so in WAYS.items():
        content = random_content(generator, "int32")
        write_so(folder / way, content)
        describe(folder / way, content, multimodal=True, parts=[])
    for multimodal in (False, True):
        kind = "multimodal" if multimodal else "text"
        for name, shape in {"none": (0, 0), "bare": (3, 0), "hollow": (3, 2)}.items():
            write(folder / f"{name}-{kind}", empty_content(*shape), multimodal=multimodal)
    write_merges(folder, generator)
    for prefix in sys.argv[2:]:
        dataset = IndexedDataset(prefix)
        modes = dataset.sequence_modes
        content = content_of(
            dataset.tokens,
            dataset.sequence_lengths,
            np.diff(dataset.document_indices),
            np.zeros(len(dataset), np.uint8) if modes is None else modes,
        )
        describe(prefix, content, multimodal=dataset.multimodal, parts=[])


if __name__ == "__main__":
    main()
