"""Runs a recipe over its input with any number of processes, to one dataset.

The bytes written do not depend on the number of processes. The input is cut into shards of a fixed
number of records. Rank r of R writes shards r, r+R, …, each a small dataset of its own with a JSON file
of counts beside it. When all are there, rank 0 joins them in input order and publishes the dataset, its
`.idx` last. A shard is finished when its JSON file exists, so a job that was killed goes on where it
stopped; `overwrite` starts over.

    <prefix>.shards/plan.json           what is being prepared; a shard of another plan is never used
    <prefix>.shards/00000.bin .idx .mmf documents of records 0..1023
    <prefix>.shards/00000.json          its counts: the commit marker
    <prefix>.prepare.json               the report, of failed jobs as well
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfast.console import log, progress
from mmfast.data import IndexedDatasetBuilder
from mmfast.distributed import WORK_TIMEOUT, barrier, process_group, rank, world_size
from mmfast.errors import (
    BadRecordError,
    CorruptDataError,
    InternalError,
    MmfastError,
    UsageError,
)
from mmfast.files import read_json_object, sync_folder, write_json
from mmfast.prepare.options import JobOptions
from mmfast.prepare.protocol import Document, Preparation
from mmfast.vocab import FILE_NAME as VOCABULARY_FILE
from mmfast.vocab import Vocabulary

FORMAT_VERSION = 1
DTYPE = "int32"


def describe_job(preparation: Preparation, options: JobOptions) -> dict[str, Any]:
    """What `run_job` would do, as JSON."""
    num_shards = _num_shards(preparation, options)
    fingerprint = _fingerprint(preparation, options)
    done = 0
    if not options.overwrite:
        shards = range(num_shards)
        done = sum(_finished_shard(options, shard, fingerprint) is not None for shard in shards)
    return {
        "output": str(options.output),
        "records": preparation.num_records,
        "shards": num_shards,
        "shards_done": done,
        "processes": world_size(),
        "threads": options.threads,
        "plan": preparation.plan(),
    }


def run_job(recipe: str, preparation: Preparation, options: JobOptions) -> dict[str, Any] | None:
    """Prepares the dataset; returns the report on rank 0 and None elsewhere.

    A dataset that is already there for the same plan is left as it is, unless `overwrite` is set.

    Raises:
        UsageError: the output exists for another plan and `overwrite` is not set, or no records.
        MmfastError: no document, or too many bad records; the report is written, shards are kept, and the same
            command with a larger `--max-bad-fraction` needs no second pass.
    """
    if preparation.num_records == 0:
        raise UsageError("the input holds no records")
    started = time.monotonic()
    fingerprint = _fingerprint(preparation, options)
    finished = None if options.overwrite else _finished_report(options, fingerprint)
    if finished is not None:
        log(
            f"{options.output} is already prepared by the same plan from the same files; nothing to "
            "do (--overwrite prepares it anew)"
        )
        if rank() == 0 and options.shards_folder.exists():
            shutil.rmtree(options.shards_folder)
        return finished if rank() == 0 else None
    with process_group(timeout=WORK_TIMEOUT), _torch_threads(options.threads):
        if rank() == 0:
            _enter_shards_folder(preparation, options, fingerprint)
        barrier()
        _write_shards(preparation, options, fingerprint)
        barrier()
    if rank() != 0:
        return None
    report = _join_shards(recipe, preparation, options, fingerprint, started=started)
    if report["status"] == "failed":
        raise MmfastError(_failure(report, options))
    return report


def _failure(report: dict[str, Any], options: JobOptions) -> str:
    num_bad, records = report["num_skipped"], report["records"]
    bad = f"{num_bad} of {records} records are bad ({_reasons(report['skipped'])})"
    if report["documents"] == 0 and num_bad == records:
        return f"no record can be used: {bad}; examples are in {options.report_path}"
    return (
        f"{bad}, more than --max-bad-fraction {options.max_bad_fraction}; examples are in "
        f"{options.report_path}. Repair the input, or raise the limit: finished shards are kept"
    )


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """A number of CPU threads for the block's duration; a caller's own number comes back after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class _Tally:
    """Counts of one shard."""

    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bad_records: set[int] = dataclasses.field(default_factory=set)
    documents: int = 0
    sequences: int = 0
    tokens: int = 0

    def skip(self, record: int, error: BadRecordError, *, num_examples: int) -> None:
        if record in self.bad_records:
            raise InternalError(f"record {record} was skipped twice; please report this")
        self.bad_records.add(record)
        self.skipped[error.reason] += 1
        examples = self.examples.setdefault(error.reason, [])
        if len(examples) < num_examples:
            examples.append(f"record {record}: {error}")


def _enter_shards_folder(preparation: Preparation, options: JobOptions, fingerprint: str) -> None:
    """Makes the folder for this plan; what another plan left is an error unless it may be replaced."""
    folder = options.shards_folder
    plan_path = folder / "plan.json"
    is_ours = _read_ours(plan_path).get("fingerprint") == fingerprint and not options.overwrite
    if not is_ours and not options.overwrite:
        for path in (options.index_path, plan_path):
            if path.exists():
                raise UsageError(
                    f"{path} belongs to another plan; choose another --output or add --overwrite"
                )
    if not is_ours and folder.exists():
        if any(folder.iterdir()) and not plan_path.exists():
            raise UsageError(f"{folder} is in the way and not a preparation job's; move it")
        shutil.rmtree(folder)
    others = set(options.output.parent.glob("*.idx")) - {options.index_path}
    if others or not options.overwrite:
        preparation.check_folder(options.output.parent)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(plan_path, {"fingerprint": fingerprint, "plan": preparation.plan()})


def _write_shards(preparation: Preparation, options: JobOptions, fingerprint: str) -> None:
    """Writes this rank's shards that are not there yet."""
    num_records = preparation.num_records
    mine = range(rank(), _num_shards(preparation, options), world_size())
    most_bad = options.max_bad_fraction * num_records
    num_bad = 0
    with progress(
        "preparing", total=_records_of(mine, num_records, options), unit="records"
    ) as job:
        for shard in mine:
            records = _shard_records(shard, num_records, options)
            done = _finished_shard(options, shard, fingerprint)
            if done is None:
                started = time.monotonic()
                tally = _write_shard(preparation, options, shard, records)
                done = {
                    "fingerprint": fingerprint,
                    "records": len(records),
                    "skipped": dict(sorted(tally.skipped.items())),
                    "examples": dict(sorted(tally.examples.items())),
                    "documents": tally.documents,
                    "sequences": tally.sequences,
                    "tokens": tally.tokens,
                    "seconds": round(time.monotonic() - started, 3),
                }
                write_json(_shard_path(options, shard, ".json"), done)
            num_bad += sum(done["skipped"].values())
            job.advance(len(records), skipped=num_bad)
            if num_bad > most_bad:
                # More work cannot make the job succeed; the report is written from what is there.
                return


def _write_shard(
    preparation: Preparation, options: JobOptions, shard: int, records: range
) -> _Tally:
    tally = _Tally()

    def skip(record: int, error: BadRecordError) -> None:
        tally.skip(record, error, num_examples=options.num_examples)

    documents = preparation.documents(records, skip)
    first = next(documents, None)
    if first is None:
        return tally
    prefix = _shard_path(options, shard, "")
    with IndexedDatasetBuilder(prefix, dtype=DTYPE, multimodal=preparation.multimodal) as builder:
        for document in _chain(first, documents):
            lengths = [len(segment.ids) for segment in document]
            modes = [segment.mode for segment in document]
            builder.add_document(
                np.concatenate([segment.ids for segment in document]),
                lengths,
                modes if preparation.multimodal else None,
            )
            tally.documents += 1
            tally.sequences += len(lengths)
            tally.tokens += sum(lengths)
        builder.finalize()
    return tally


def _join_shards(
    recipe: str, preparation: Preparation, options: JobOptions, fingerprint: str, *, started: float
) -> dict[str, Any]:
    """Rank 0: the shards in order as one dataset, the report, then the shards are removed."""
    num_shards = _num_shards(preparation, options)
    shards: list[tuple[int, dict[str, Any]]] = []
    for shard in range(num_shards):
        done = _finished_shard(options, shard, fingerprint)
        if done is not None:
            shards.append((shard, done))
    skipped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for _, done in shards:
        skipped.update(done["skipped"])
        for reason, texts in done["examples"].items():
            known = examples.setdefault(reason, [])
            known += texts[: options.num_examples - len(known)]
    records = sum(done["records"] for _, done in shards)
    num_skipped = skipped.total()
    num_documents = sum(done["documents"] for _, done in shards)
    too_many = num_skipped > options.max_bad_fraction * preparation.num_records
    if len(shards) < num_shards and not too_many:
        raise MmfastError(
            f"{num_shards - len(shards)} of {num_shards} shards are missing in {options.shards_folder}; "
            "are all processes on one file system? Run the same command again to write them"
        )
    failed = too_many or num_documents == 0
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "status": "failed" if failed else "complete",
        "recipe": recipe,
        "fingerprint": fingerprint,
        "records": records,
        "used": records - num_skipped,
        "num_skipped": num_skipped,
        "skipped": dict(skipped.most_common()),
        "examples": examples,
        "documents": num_documents,
        "sequences": sum(done["sequences"] for _, done in shards),
        "tokens": sum(done["tokens"] for _, done in shards),
        "shards": num_shards,
        "processes": world_size(),
        "threads": options.threads,
        "process_seconds": round(sum(done["seconds"] for _, done in shards), 3),
        "plan": preparation.plan(),
    }
    if failed:
        _write_report(options, report, started=started)
        return report
    # Without a report a dataset counts as unfinished, so the report goes before it and comes after it.
    options.report_path.unlink(missing_ok=True)
    _retire_old_dataset(preparation, options)
    folder = options.output.parent
    preparation.publish(folder)
    has_vocabulary = (folder / VOCABULARY_FILE).exists()
    with IndexedDatasetBuilder(
        options.output,
        dtype=DTYPE,
        multimodal=preparation.multimodal,
        vocabulary_fingerprint=Vocabulary.load(folder).fingerprint if has_vocabulary else None,
        provenance={"recipe": recipe, "plan": _fingerprint(preparation, options)},
    ) as builder:
        for shard, done in shards:
            if done["documents"]:
                builder.add_index(_shard_path(options, shard, ""))
        builder.finalize()
    _write_report(options, report, started=started)
    shutil.rmtree(options.shards_folder)
    return report


def _retire_old_dataset(preparation: Preparation, options: JobOptions) -> None:
    """An old dataset of another vocabulary or recipe goes before the files that would misname its ids.

    Without its `.idx` it does not open, so that nobody meets old ids beside the new vocabulary,
    wherever the job is killed from here on.
    """
    folder = options.output.parent
    try:
        preparation.check_folder(folder)
    except MmfastError:
        options.index_path.unlink(missing_ok=True)
        sync_folder(folder)


def _write_report(options: JobOptions, report: dict[str, Any], *, started: float) -> None:
    seconds = time.monotonic() - started
    report["seconds"] = round(seconds, 3)
    report["records_per_sec"] = round(report["records"] / max(seconds, 1e-9), 1)
    write_json(options.report_path, report)


def _num_shards(preparation: Preparation, options: JobOptions) -> int:
    return -(-preparation.num_records // options.shard_records)


def _shard_records(shard: int, num_records: int, options: JobOptions) -> range:
    first = shard * options.shard_records
    return range(first, min(first + options.shard_records, num_records))


def _records_of(shards: range, num_records: int, options: JobOptions) -> int:
    return sum(len(_shard_records(shard, num_records, options)) for shard in shards)


def _shard_path(options: JobOptions, shard: int, suffix: str) -> Path:
    return options.shards_folder / f"{shard:05}{suffix}"


def _fingerprint(preparation: Preparation, options: JobOptions) -> str:
    identity = {
        "plan": preparation.plan(),
        "shard_records": options.shard_records,
        "threads": options.threads,
        "dtype": DTYPE,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _finished_shard(options: JobOptions, shard: int, fingerprint: str) -> dict[str, Any] | None:
    done = _read_ours(_shard_path(options, shard, ".json"))
    return done if done.get("fingerprint") == fingerprint else None


def _finished_report(options: JobOptions, fingerprint: str) -> dict[str, Any] | None:
    if not options.index_path.exists():
        return None
    report = _read_ours(options.report_path)
    same = report.get("fingerprint") == fingerprint and report.get("status") == "complete"
    return report if same else None


def _chain(first: Document, rest: Iterator[Document]) -> Iterator[Document]:
    yield first
    yield from rest


def _reasons(skipped: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in skipped.items())


def _read_ours(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty if it is missing or torn, which means not finished."""
    try:
        return read_json_object(path)
    except (FileNotFoundError, CorruptDataError):
        return {}
