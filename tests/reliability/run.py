"""Runs the long tests one after the other and writes `docs/reliability.md`.

make reliability                 all rows; the table is written anew
make reliability ROWS=faults     some rows; nothing is written
"""

import argparse
import datetime as dt
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.reliability.rows import ROWS, Figures, Row

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reliability.md"
HEAD = """# What survives

`make reliability` tries to break what the data plane promises, at length, and writes this page from
what it found (`tests/reliability/`). `make test` runs every row with smaller counts. A row whose result
is not what was promised fails the run, and no page is written.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", help=f"some of: {', '.join(names)}")
    chosen = parser.parse_args().rows
    unknown = set(chosen) - set(names)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    commit = tested_commit()
    build = ["cargo", "test", "--locked", "--quiet", "--workspace", "--no-run"]
    subprocess.run(build, cwd=ROOT, check=True)
    begun = time.monotonic()
    lines = ["| promise | tried | seed | found | commit | duration |", "|---|---|---|---|---|---|"]
    rows = [row for row in ROWS if not chosen or row.name in chosen]
    failed = []
    for number, row in enumerate(rows, start=1):
        print(f"[{number}/{len(rows)}] {row.name} …", flush=True)
        row_begun = time.monotonic()
        found = run(row)
        secs = time.monotonic() - row_begun
        if found is None:
            failed.append(row.name)
            continue
        print(f"    {found.count:,} {found.unit}: {found.result}; {secs:.0f} s", flush=True)
        seed = "" if found.seed is None else found.seed
        tried = f"{found.count:,} {found.unit}"
        lines.append(
            f"| {row.promise} | {tried} | {seed} | {found.result} | {commit} | {secs:.0f} s |"
        )
    total = f"{(time.monotonic() - begun) / 60:.1f} minutes on {os.cpu_count()} cores"
    if failed:
        print(f"failed: {', '.join(failed)}; {total}", file=sys.stderr)
        return 1
    if not chosen:
        today = dt.datetime.now(tz=dt.UTC).date()
        TABLE.write_text(f"{HEAD}All rows of {today}: {total}.\n\n" + "\n".join(lines) + "\n")
    print(total)
    return 0


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

    changed = git("status", "--porcelain", "--", ":!docs")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


if __name__ == "__main__":
    sys.exit(main())
