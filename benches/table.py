"""Prints a results file of `make bench` as Markdown: every case in its group, and the promises.

python benches/table.py benches/results/cpu.json
"""

import json
import sys
from pathlib import Path

from targets import PEER_OF_GROUP, TARGETS, Results

# By whether a promise holds by wall clock and by CPU time.
VERDICTS = {
    (True, True): "yes",
    (True, False): "by wall clock only",
    (False, True): "by CPU time only",
    (False, False): "no",
}


def heading(results: dict) -> str:
    machine = results["machine_info"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    processor = machine.get("cpu", {}).get("brand_raw", "unknown processor")
    return (
        f"{processor}, {machine['cpu_count']} cores, Python {machine['python_version']}, {peers}; "
        f"commit {machine['commit']}; load {machine.get('load_at_end', 'unknown')} at the end."
    )


def cases(results: Results) -> str:
    """A row a case, the fastest first, with its rate against the peer that is named for its group."""
    lines = [
        "| what | median | spread (IQR) | CPU | rate | against the peer | by CPU | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, contenders in results.groups.items():
        peer = PEER_OF_GROUP.get(group)
        if peer not in contenders:
            peer = None
        lines.append(f"| **{group}** | | | | | {f'1 = {peer}' if peer else ''} | | |")
        for contender in sorted(contenders, key=lambda name: -results.rate(group, name, "wall")):
            stats = contenders[contender]["stats"]
            ratios = ("", "")
            if peer is not None:
                ratios = tuple(
                    _short(results.rate(group, contender, clock) / results.rate(group, peer, clock))
                    for clock in ("wall", "cpu")
                )
            lines.append(
                f"| {contender} | {_time(stats['median'])} | {_time(stats['iqr'])} "
                f"| {_time(results.seconds(group, contender, 'cpu'))} "
                f"| {_rate(results, group, contender)} | {ratios[0]} | {ratios[1]} "
                f"| {_facts(contenders[contender])} |"
            )
    return "\n".join(lines)


def promises(results: Results) -> str:
    """A row a promise: its bound, what was reached by wall clock and by CPU time, whether it holds."""
    lines = [
        "| promise | target | reached | by CPU time | holds |",
        "|---|---|---|---|---|",
    ]
    for target in TARGETS:
        try:
            reached = [target.value(results, clock) for clock in ("wall", "cpu")]
        except KeyError as missing:
            lines.append(
                f"| {target.promise} | {target.bound()} | not measured: {missing} | | no |"
            )
            continue
        wall, cpu = (target.unit.format(value) for value in reached)
        verdict = VERDICTS[tuple(target.holds(value) for value in reached)]
        lines.append(f"| {target.promise} | {target.bound()} | {wall} | {cpu} | {verdict} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _rate(results: Results, group: str, contender: str) -> str:
    unit = results.groups[group][contender]["extra_info"]["unit"]
    rate = results.rate(group, contender, "wall")
    return f"{rate / 1e9:.2f} GB/s" if unit == "B" else f"{_short(rate)} {unit}/s"


def _short(number: float) -> str:
    """Three digits or all before the point: 0.0123, 1.23, 12,345."""
    return f"{number:,.0f}" if number >= 1_000 else f"{number:#.3g}".rstrip(".")


def _facts(case: dict) -> str:
    """What else was noted, e.g. bins or memory."""
    measured = {"contender", "amount_per_round", "unit", "cpu_seconds"}
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,.6g}"
        if isinstance(value, float)
        else f"{name} {value:,}"
        for name, value in case["extra_info"].items()
        if name not in measured
    )


if __name__ == "__main__":
    raw = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    parsed = Results(raw)
    print("\n\n".join([heading(raw), promises(parsed), cases(parsed)]))
