"""Prints a results file of `make bench` as Markdown: a group each, the fastest first.

python benches/table.py benches/results/cpu.json
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def table(results: dict) -> str:
    machine = results["machine_info"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    processor = machine.get("cpu", {}).get("brand_raw", "unknown processor")
    lines = [
        f"{processor}, {machine['cpu_count']} cores, Python {machine['python_version']}, {peers}; "
        f"commit {machine['commit']}.",
        "",
        "| what | median | spread (IQR) | rate | times the fastest |",
        "|---|---|---|---|---|",
    ]
    groups = defaultdict(list)
    for case in results["benchmarks"]:
        groups[case["group"]].append(case)
    for group, cases in groups.items():
        lines.append(f"| **{group}** | | | | |")
        cases.sort(key=lambda case: case["stats"]["median"])
        fastest = cases[0]["stats"]["median"]
        for case in cases:
            median, spread = case["stats"]["median"], case["stats"]["iqr"]
            name = case["name"].removeprefix("test_").replace("_", " ")
            lines.append(
                f"| {name} | {1e3 * median:.3g} ms | {1e3 * spread:.2g} ms | {_rate(case, median)} | "
                f"{median / fastest:.2f} |"
            )
    return "\n".join(lines)


def _rate(case: dict, median: float) -> str:
    info = case["extra_info"]
    if "unit" not in info:
        return ""
    rate = info["amount_per_round"] / median
    if info["unit"] == "B":
        return f"{rate / 1e9:.2f} GB/s"
    return f"{rate:,.0f} {info['unit']}/s"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
