"""A process that writes one dataset after the other until it is killed, and says what it promises.

    python producer.py PREFIX

It writes generations, numbered from 1, each in place of the one before: with a journal, without, or
merged from the one before and a part of its own. It says on standard output
`ready`, then, once it is so, `begun G N`, `acknowledged G N`, `published G 0` for generation G with N
documents durable, and `publishing G 0` when one is complete.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, merge_datasets


class Document(NamedTuple):
    """One document: ids of its sequences back to back, length and mode of each."""

    ids: npt.NDArray[np.int64]
    lengths: list[int]
    modes: list[int]


def kind(generation: int) -> str:
    """How a generation is written."""
    return ("plain", "journaled", "journaled", "merged")[generation % 4]


def own_documents(generation: int) -> list[Document]:
    """What a generation does not have from the one before. The last document is its number."""
    rng = np.random.default_rng([generation, 1])
    documents = []
    for _ in range(rng.integers(30)):
        lengths = [int(length) for length in rng.integers(60, size=rng.integers(4))]
        ids = rng.integers(1 << 30, size=sum(lengths))
        documents.append(Document(ids, lengths, list(range(len(lengths)))))
    return [*documents, Document(np.array([generation]), [1], [0])]


def documents_of(generation: int) -> list[Document]:
    """All documents of a generation."""
    before = documents_of(generation - 1) if kind(generation) == "merged" else []
    return before + own_documents(generation)


def flush_points(generation: int) -> list[int]:
    """Numbers of documents after which a generation is flushed."""
    rng = np.random.default_rng([generation, 2])
    counts = range(1, len(own_documents(generation)) + 1)
    return [count for count in counts if rng.integers(3) == 0]


def published(prefix: Path) -> list[Document]:
    """The documents that are there, each byte checked; none if there is no dataset."""
    try:
        dataset = IndexedDataset(prefix, verify="full")
    except FileNotFoundError:
        return []
    documents = []
    for number in range(dataset.num_documents):
        segments = dataset.document(number)
        ids = np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in segments)])
        lengths = [len(segment.ids) for segment in segments]
        documents.append(Document(ids, lengths, [segment.mode for segment in segments]))
    return documents


def generation_of(documents: list[Document]) -> int:
    """Number of the generation that these are, 0 for none."""
    return int(documents[-1].ids[0]) if documents else 0


def resume(prefix: Path) -> IndexedDatasetBuilder:
    """A builder that goes on where a journal says."""
    return IndexedDatasetBuilder(prefix, dtype="int32", multimodal=True, resume=True)


def produce(prefix: Path, tell: Callable[[str, int, int], None]) -> None:
    """Writes the generation after the one that is there."""
    generation = generation_of(published(prefix)) + 1
    if kind(generation) == "journaled":
        with resume(prefix) as builder:
            found = builder.written.num_documents
            tell("begun", generation, found)
            for count, document in enumerate(own_documents(generation), start=1):
                if count <= found:
                    continue
                builder.add_document(document.ids, document.lengths, document.modes)
                if count in flush_points(generation):
                    tell("acknowledged", generation, builder.flush().num_documents)
            tell("publishing", generation, 0)
    else:
        tell("begun", generation, 0)
        is_merged = kind(generation) == "merged"
        part = prefix.with_name("part") if is_merged else prefix
        with IndexedDatasetBuilder(part, dtype="int32", multimodal=True) as builder:
            for document in own_documents(generation):
                builder.add_document(document.ids, document.lengths, document.modes)
        if is_merged:
            merge_datasets(prefix, [prefix, part])
    tell("published", generation, 0)


def main() -> None:
    def tell(word: str, generation: int, count: int) -> None:
        print(word, generation, count, flush=True)

    print("ready", flush=True)
    while True:
        produce(Path(sys.argv[1]), tell)


if __name__ == "__main__":
    main()
