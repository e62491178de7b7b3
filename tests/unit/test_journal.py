"""A builder that resumes: what it acknowledged outlives kills, exceptions and full disks."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mmfast.data import IndexedDataset, IndexedDatasetBuilder, merge_datasets
from mmfast.errors import CorruptDataError, UsageError, VocabularyMismatchError

DOCUMENTS = [list(range(number, 2 * number)) for number in range(50)]


def produce(builder: IndexedDatasetBuilder, *, flush_every: int = 10) -> None:
    """Adds the documents that are not there yet."""
    for number in range(builder.written.num_documents, len(DOCUMENTS)):
        builder.add_document(DOCUMENTS[number], [len(DOCUMENTS[number])])
        if (number + 1) % flush_every == 0:
            builder.flush()


def resumed(prefix: Path, **more) -> IndexedDatasetBuilder:
    return IndexedDatasetBuilder(prefix, dtype="uint16", resume=True, **more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def require_complete(prefix: Path) -> None:
    dataset = IndexedDataset(prefix, verify="full")
    assert [document.tolist() for document in dataset] == DOCUMENTS
    assert names(prefix.parent) == [f"{prefix.name}{end}" for end in (".bin", ".idx", ".mmf")]


def test_a_killed_producer_goes_on_after_what_was_acknowledged(tmp_path: Path) -> None:
    script = """
        import itertools, sys
        from mmfast.data import IndexedDatasetBuilder
        builder = IndexedDatasetBuilder(sys.argv[1], dtype="uint16", resume=True)
        for number in range(builder.written.num_documents, 30):
            builder.add_document(range(number, 2 * number), [number])
            if number % 7 == 6:
                print(builder.flush().num_documents, flush=True)
        print("waiting", flush=True)
        sys.stdin.read()
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(5)]
    assert lines == ["7", "14", "21", "28", "waiting"]
    with pytest.raises(UsageError, match="another writer"):
        resumed(tmp_path / "a")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    with resumed(tmp_path / "a") as builder:
        assert builder.written == builder.durable == (28, 28, sum(range(28)))
        produce(builder)
    require_complete(tmp_path / "a")


def test_an_exception_keeps_every_document_that_had_ended(tmp_path: Path) -> None:
    def stopped() -> None:
        with resumed(tmp_path / "a") as builder:
            for document in DOCUMENTS[:13]:
                builder.add_document(document, [len(document)])
            builder.add_item([1, 2, 3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert names(tmp_path) == ["a.bin.tmp", "a.journal"]
    with resumed(tmp_path / "a") as builder:
        assert builder.written.num_documents == 13
        produce(builder)
    require_complete(tmp_path / "a")


def test_an_aborted_builder_keeps_what_was_flushed_and_a_discarded_one_nothing(
    tmp_path: Path,
) -> None:
    builder = resumed(tmp_path / "a")
    builder.add_document([1], [1])
    assert builder.durable == (0, 0, 0)
    assert builder.flush() == builder.durable == (1, 1, 1)
    builder.add_document([2], [1])
    builder.abort()
    builder = resumed(tmp_path / "a")
    assert builder.written == (1, 1, 1)
    builder.discard()
    builder.discard()
    assert names(tmp_path) == []


def test_without_resume_a_journal_is_discarded(tmp_path: Path) -> None:
    builder = resumed(tmp_path / "a")
    builder.add_document([1], [1])
    builder.flush()
    builder.abort()
    with IndexedDatasetBuilder(tmp_path / "a", dtype="uint16") as builder:
        assert builder.written == (0, 0, 0)
        with pytest.raises(ValueError, match="resume=True"):
            builder.flush()
        builder.add_document([7], [1])
    assert IndexedDataset(tmp_path / "a")[0].tolist() == [7]
    assert names(tmp_path) == ["a.bin", "a.idx", "a.mmf"]


def test_a_merge_discards_the_journal_of_its_output(tmp_path: Path) -> None:
    with IndexedDatasetBuilder(tmp_path / "part") as builder:
        builder.add_document([7], [1])
    builder = resumed(tmp_path / "a")
    builder.add_document([1], [1])
    builder.flush()
    builder.abort()
    merge_datasets(tmp_path / "a", [tmp_path / "part"])
    assert not (tmp_path / "a.journal").exists()
    assert IndexedDataset(tmp_path / "a")[0].tolist() == [7]


def test_a_finished_dataset_has_no_journal_and_is_written_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with resumed(tmp_path / "a") as builder:
            assert builder.written == (0, 0, 0)
            produce(builder)
        assert builder.written == builder.durable
        require_complete(tmp_path / "a")


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    builder = resumed(tmp_path / "a")
    builder.add_document([1], [1])
    builder.flush()
    builder.abort()
    with pytest.raises(ValueError, match="uint16 without modes, not for int32 with"):
        IndexedDatasetBuilder(tmp_path / "a", multimodal=True, resume=True)
    with pytest.raises(VocabularyMismatchError, match="begun with the vocabulary null"):
        resumed(tmp_path / "a", vocabulary_fingerprint="v1")
    journal = (tmp_path / "a.journal").read_bytes()
    (tmp_path / "a.journal").write_bytes(journal[:40] + b"?" + journal[41:])
    with pytest.raises(CorruptDataError, match=r"header does not match.*begin anew"):
        resumed(tmp_path / "a")
    (tmp_path / "a.journal").write_bytes(journal)
    (tmp_path / "a.bin.tmp").unlink()
    with pytest.raises(CorruptDataError, match=r"a\.journal acknowledges 2 bytes"):
        resumed(tmp_path / "a")


def test_large_batches_are_acknowledged_on_the_way(tmp_path: Path) -> None:
    batch = np.zeros(5_000_000, dtype="uint16")
    builder = resumed(tmp_path / "a")
    for _ in range(8):
        builder.add_documents(batch, [2_000_000, 3_000_000])
    assert builder.durable.num_documents == 14
    builder.abort()
    builder = resumed(tmp_path / "a")
    assert builder.written == (14, 14, 35_000_000)
    builder.discard()


def test_an_empty_dataset_may_be_resumed_and_finished(tmp_path: Path) -> None:
    resumed(tmp_path / "a").abort()
    with resumed(tmp_path / "a") as builder:
        assert builder.flush() == (0, 0, 0)
    assert len(IndexedDataset(tmp_path / "a", verify="full")) == 0
    assert names(tmp_path) == ["a.bin", "a.idx", "a.mmf"]


def test_a_disk_that_fills_up_costs_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    """The limit on the size of files stands in for the disk."""
    script = """
        import resource, signal, sys
        from mmfast.data import IndexedDatasetBuilder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        def fill():
            with IndexedDatasetBuilder(sys.argv[1], dtype="uint16", resume=True) as builder:
                for number in range(100):
                    builder.add_documents([number] * 10_000, [10_000])
                    print(builder.flush().num_documents)
        try:
            fill()
        except OSError as error:
            print(type(error).__name__, *error.__notes__)
        """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "a")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    *acknowledged, failure = process.stdout.splitlines()
    assert failure.startswith("OSError documents since the last flush could not be kept:")
    assert acknowledged[-1] == "52"
    with resumed(tmp_path / "a") as builder:
        assert builder.written.num_documents == 52
        builder.add_document([7], [1])
    assert IndexedDataset(tmp_path / "a", verify="full")[51].tolist() == [51] * 10_000
