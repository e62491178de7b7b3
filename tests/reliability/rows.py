"""The promises that `make reliability` puts to the test, one row of the table each.

A row is a command that the short tests run as well; `MMFAST_RELIABILITY` makes it long. It prints lines
`reliability: {"count": …, "unit": …, "seed": …, "result": …}` (`figures.rs`, `figures.py`), or a parser
finds the figures in what it prints. To add a row, add an entry here.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple


class Figures(NamedTuple):
    """What a row found."""

    count: int
    unit: str
    seed: int | None
    result: str


@dataclass(frozen=True)
class Row:
    """A promise and the command that tries to break it."""

    name: str
    promise: str
    command: tuple[str, ...]
    parse: Callable[[str], Figures] = field(default_factory=lambda: reported)
    environment: Mapping[str, str] = field(default_factory=dict)


def reported(output: str) -> Figures:
    """The figures that the test itself reports; counts of several lines are added up."""
    # Anywhere in a line: pytest's dots may stand before it.
    lines = re.findall(r"reliability: (\{.*\})$", output, flags=re.MULTILINE)
    found = [Figures(**json.loads(line)) for line in lines]
    return Figures(
        count=sum(figures.count for figures in found),
        unit=found[0].unit,
        seed=found[0].seed,
        result=found[0].result,
    )


def passed_tests(output: str, result: str) -> Figures:
    """For ordinary tests, run by cargo or pytest: how many there were."""
    counts = [int(count) for count in re.findall(r"(\d+) passed", output)]
    return Figures(count=sum(counts), unit="tests", seed=None, result=result)


def host() -> str:
    """The machine that Rust builds for by itself."""
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return next(line.split()[1] for line in version.splitlines() if line.startswith("host:"))


def rust_test(package: str, program: str, test: str) -> tuple[str, ...]:
    """One test function of a test program."""
    cargo = ("cargo", "test", "--locked", "--quiet", "--package", package, "--test", program)
    return (*cargo, "--", "--exact", test, "--nocapture")


def python_test(*files: str) -> tuple[str, ...]:
    """Test files below `tests`."""
    paths = (f"tests/{file}" for file in files)
    return (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:xdist", *paths)


def core_test(test: str) -> tuple[str, ...]:
    """One test function of `rust/mmfast-core/tests/reliability`."""
    return rust_test("mmfast-core", "reliability", test)


ROWS = (
    Row(
        "native-kills",
        "A process killed with `kill -9` at any time loses no document that it acknowledged, and "
        "leaves the old dataset or the new one: while writing, publishing, merging.",
        rust_test(
            "mmfast-producer",
            "kills",
            "a_process_killed_at_any_time_loses_nothing_that_it_acknowledged",
        ),
    ),
    Row(
        "python-kills",
        "The same for a Python process.",
        python_test("reliability/test_python_kills.py"),
    ),
    Row(
        "faults",
        "Whatever I/O call fails (an error, a short write, a full disk, a crash; call 1, 2, … until "
        "none is left), the old dataset or the new one is there.",
        core_test("faults::whatever_call_fails_the_old_or_the_new_dataset_is_there"),
    ),
    Row(
        "crashed-repairs",
        "A crash while a crash is being repaired is repaired too.",
        core_test("faults::a_crash_while_a_crash_is_being_repaired_is_repaired_too"),
    ),
    Row(
        "power-cuts",
        "Whenever the power is cut, and whatever of the unsynced blocks, sizes and names is lost, kept "
        "or torn, the old dataset or the new one is there, with all that was acknowledged.",
        core_test("power::whenever_the_power_is_cut_the_old_or_the_new_dataset_is_there"),
    ),
    Row(
        "power-cuts-after-a-fault",
        "The same after a write that had failed before.",
        core_test("power::a_power_cut_after_a_failed_write_leaves_the_old_or_the_new_dataset"),
    ),
    Row(
        "changed-bytes",
        "Every change of one byte of a pair of 64 KiB or its sidecar is found by `verify full`, and "
        "the file, block and documents hit are named.",
        core_test(
            "corruption::every_changed_byte_of_a_pair_of_64_kib_is_found_with_its_place",
        ),
    ),
    Row(
        "other-lengths",
        "Every truncation of these files, and up to 1,000 bytes more, are refused.",
        core_test("corruption::every_other_length_of_a_file_of_a_pair_of_64_kib_is_found"),
    ),
    Row(
        "mutated-indices",
        "Whatever is in an `.idx`, it is refused or read within its bounds.",
        core_test("mutations::a_mutated_index_is_refused_or_read_within_its_bounds"),
    ),
    Row(
        "mutated-journals",
        "Whatever is in a `.journal`, its checksums made to fit, it is refused or fits the ids.",
        core_test("mutations::a_mutated_journal_is_refused_or_fits_its_ids"),
    ),
    Row(
        "mutated-sidecars",
        "Whatever is in an `.mmf`, its checksum made to fit, it is refused or fits the pair.",
        core_test("mutations::a_mutated_sidecar_is_refused_or_fits_its_pair"),
    ),
    *(
        Row(name, promise, rust_test("mmfast-core", "indexed_round_trip", test))
        for name, promise, test in (
            (
                "round-trips",
                "What is written is read back, for every dtype, one by one or at once, and the bytes "
                "are those that the format's description gives.",
                "what_is_written_is_read_back",
            ),
            (
                "merges",
                "Merging is associative and equals writing in a row.",
                "merging_is_associative_and_equals_writing_in_a_row",
            ),
            (
                "resumes",
                "A dataset written with any interruptions equals one written in a row, sidecar and all.",
                "a_dataset_written_with_interruptions_equals_one_written_in_a_row",
            ),
        )
    ),
    Row(
        "streams",
        "Any number of ranks gives the same global stream, a stream continued at any step is the "
        "unbroken one, and threads that read ahead change neither.",
        (
            *("cargo", "test", "--locked", "--quiet", "--package", "mmfast-core", "--lib", "--"),
            "stream::tests::any_number_of_ranks_gives_the_same_global_rows",
            "stream::tests::a_stream_continued_at_any_step_is_the_unbroken_stream",
            "stream::tests::prefetching_threads_deliver_the_same_batches_and_positions",
        ),
        partial(passed_tests, result="the same rows"),
    ),
    Row(
        "loaders",
        "The same for loaders in Python, with worker processes, after a fork, and with another batch "
        "size after a resume.",
        python_test("unit/test_loader.py", "unit/test_loader_workers.py"),
        partial(passed_tests, result="the same batches"),
    ),
    Row(
        "megatron-failures",
        "What megatron-core 0.16.1 was seen to get wrong without a word or to die of is an error, or "
        "works.",
        python_test("reliability/test_megatron_failures.py"),
        partial(passed_tests, result="none of the 7 kinds of failure"),
    ),
    Row(
        "training-kills",
        "A training run of two processes, one of them killed with `kill -9` in 20 steps and 50 saves, goes on "
        "each time from a whole checkpoint and learns, bit for bit, what an unbroken run does.",
        python_test("distributed/test_training_kills.py"),
    ),
    Row(
        "cm3leon-digits",
        "A CM3Leon of a third of a million parameters learns digits as the reference run did: below 0.80 nats "
        "an image id after its caption, and at least 0.3 more after the caption of another digit.",
        python_test("acceptance/test_cm3leon_digits.py"),
    ),
    Row(
        "sampling-kernels",
        "Triton's sampling kernels, run by its interpreter, give the reference's tokens, counts, masses and status, "
        "whatever is filtered and however rows are split, up to 8,192 ids.",
        (*python_test("kernels/test_sampling_kernels.py"), "-k", "interpreter"),
    ),
    Row(
        "address-sanitizer",
        "The core's unit tests and its tests of files read and write only memory that is theirs, and "
        "free all of it (AddressSanitizer, LeakSanitizer).",
        (
            *("cargo", "test", "--locked", "--quiet", "--package", "mmfast-core", "--lib"),
            *("--test", "indexed_round_trip", "--test", "indexed_hostile"),
            *("--test", "indexed_checksums", "--target", host()),
        ),
        partial(passed_tests, result="0 findings"),
        {
            "CARGO_TARGET_DIR": "target/asan",
            "MMFAST_RELIABILITY": "",
            "RUSTC_BOOTSTRAP": "1",
            "RUSTFLAGS": "-Zsanitizer=address",
        },
    ),
    Row(
        "thread-sanitizer",
        "Threads that share the rows of a sampling call, or the ids of a row, never touch memory at once that one of "
        "them writes (ThreadSanitizer).",
        (
            *(
                "cargo",
                "test",
                "--locked",
                "--quiet",
                "--package",
                "mmfast-core",
                "--lib",
                "--target",
                host(),
            ),
            *("--", "sample::parallel", "sample::batch", "--test-threads=1"),
        ),
        partial(passed_tests, result="0 findings"),
        {
            "CARGO_TARGET_DIR": "target/tsan",
            "MMFAST_RELIABILITY": "",
            "RUSTC_BOOTSTRAP": "1",
            "RUSTFLAGS": "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer",
            "TSAN_OPTIONS": f"suppressions={Path(__file__).with_name('thread_sanitizer.txt')}",
        },
    ),
    Row(
        "valgrind",
        "The unit tests of the modules with `unsafe` use no memory that was not written (memcheck).",
        (
            *("cargo", "test", "--locked", "--quiet", "--package", "mmfast-core", "--lib"),
            *("--", "indexed::map", "lanes", "sample::widest", "--test-threads=1"),
        ),
        partial(passed_tests, result="0 findings"),
        {
            f"CARGO_TARGET_{host().upper().replace('-', '_')}_RUNNER": (
                "valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite"
            ),
            "MMFAST_RELIABILITY": "",
        },
    ),
)
