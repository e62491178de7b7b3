"""Runs the long tests one after the other and writes `docs/reliability.md`.

    make reliability                 all rows
    make reliability ROWS=faults     some rows; the others stay in the table as they were found last

What was found is kept in `results.json`, the page is made from it.
"""

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.reliability.rows import ROWS, Figures, Row

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """# What survives

`make reliability` tries to break what the data plane promises, at length, and makes this page of what it
found (`tests/reliability/run.py`). `make test` runs every row with smaller counts. A row that finds
something else than what was promised fails, and its place in the table is empty until it holds again.

| promise | tried | seed | found | commit | date, cores, duration |
|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", help=f"some of: {', '.join(names)}")
    chosen = parser.parse_args().rows
    unknown = set(chosen) - set(names)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit = tested_commit()
    build = ["cargo", "test", "--locked", "--quiet", "--workspace", "--no-run"]
    subprocess.run(build, cwd=ROOT, check=True)
    rows = [row for row in ROWS if not chosen or row.name in chosen]
    failed = []
    begun = time.monotonic()
    for number, row in enumerate(rows, start=1):
        print(f"[{number}/{len(rows)}] {row.name} …", flush=True)
        row_begun = time.monotonic()
        found = run(row)
        secs = round(time.monotonic() - row_begun)
        results.pop(row.name, None)
        if found is None:
            failed.append(row.name)
        else:
            print(f"    {found.count:,} {found.unit}: {found.result}; {secs} s", flush=True)
            results[row.name] = {
                **found._asdict(),
                "commit": commit,
                "date": str(dt.datetime.now(tz=dt.UTC).date()),
                "cores": os.cpu_count(),
                "duration_secs": secs,
            }
        write(results)
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def write(results: dict[str, Any]) -> None:
    """Keeps the results and makes the page of them."""
    known = {row.name: results[row.name] for row in ROWS if row.name in results}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    PAGE.write_text(HEAD + "".join(line(row, known.get(row.name)) for row in ROWS))


def line(row: Row, found: dict[str, Any] | None) -> str:
    """A row of the table."""
    if found is None:
        return f"| {row.promise} | not yet | | | | |\n"
    tried = f"{found['count']:,} {found['unit']}"
    seed = "" if found["seed"] is None else found["seed"]
    circumstances = f"{found['date']}, {found['cores']}, {found['duration_secs']} s"
    fields = (row.promise, tried, seed, found["result"], found["commit"], circumstances)
    return f"| {' | '.join(map(str, fields))} |\n"


def run(row: Row) -> Figures | None:
    """What the row found, or nothing if it failed; then its output is shown."""
    environment = {**os.environ, "MMFAST_RELIABILITY": "1", **row.environment}
    done = subprocess.run(
        row.command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = row.parse(done.stdout) if done.returncode == 0 else None
    if found is None or found.count == 0:
        print(done.stdout, file=sys.stderr)
        return None
    return found


def tested_commit() -> str:
    """The commit at hand; said so if files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", ":!docs", f":!{RESULTS.relative_to(ROOT)}")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


if __name__ == "__main__":
    sys.exit(main())
