"""What `make bench` prints of its promises follows from the results file alone."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture
def table(monkeypatch):
    """`benches/table.py`, which runs as a script and finds `targets` beside itself."""
    monkeypatch.syspath_prepend(str(BENCHES))
    spec = importlib.util.spec_from_file_location("table", BENCHES / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("targets", None)


def case(group: str, contender: str, wall: float, cpu: float, amount: float = 1.0) -> dict:
    return {
        "group": group,
        "stats": {"median": wall, "iqr": 0.0},
        "extra_info": {
            "contender": contender,
            "amount_per_round": amount,
            "unit": "B",
            "cpu_seconds": cpu,
        },
    }


def promise_row(table, cases: list[dict], promise: str) -> list[str]:
    rows = table.promises(table.Results({"benchmarks": cases})).splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {promise} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize(
    ("wall", "cpu", "verdict"),
    [
        (1.0, 1.0, "yes"),
        (1.0, 9.0, "by wall clock only"),
        (9.0, 1.0, "by CPU time only"),
        (9.0, 9.0, "no"),
    ],
)
def test_a_promise_is_judged_by_wall_clock_and_by_cpu_time(table, wall, cpu, verdict) -> None:
    rows = [
        case("write, batch call", "mmfast add_documents", wall, cpu, amount=4.5e9),
        case("write, batch call", "numpy tofile", 1.0, 1.0, amount=9e9),
    ]
    cells = promise_row(table, rows, "batch write incl. CRC, to page cache")
    assert cells[1] == ">= 4.00 GB/s"
    assert cells[4] == verdict


def test_contenders_with_different_amounts_compare_by_rate(table) -> None:
    rows = [
        case("write, batch call", "mmfast add_documents", 2.0, 2.0, amount=8e9),
        case("write, batch call", "numpy tofile", 0.5, 0.5, amount=4e9),
    ]
    assert promise_row(table, rows, "batch write, of numpy tofile")[2:4] == ["0.50 times"] * 2


def test_a_case_that_did_not_run_leaves_its_promise_open(table) -> None:
    cells = promise_row(table, [], "merge")
    assert cells[2].startswith("not measured")
    assert cells[4] == "no"


def test_the_named_peer_of_a_group_has_rate_one(table) -> None:
    peer = table.PEER_OF_GROUP["merge, 8 parts of 55 MB"]
    rows = [
        case("merge, 8 parts of 55 MB", "mmfast add_index", 1.0, 0.5),
        case("merge, 8 parts of 55 MB", peer, 4.0, 1.0),
    ]
    printed = table.cases(table.Results({"benchmarks": rows})).splitlines()
    ours = next(row for row in printed if row.startswith("| mmfast add_index"))
    theirs = next(row for row in printed if row.startswith(f"| {peer}"))
    assert "| 4.00 | 2.00 |" in ours
    assert "| 1.00 | 1.00 |" in theirs
