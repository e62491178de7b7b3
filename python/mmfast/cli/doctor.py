"""`mmfast doctor`: versions, devices, and which backends run here and why."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Versions, devices and the backends in use, and why.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prints what this installation is and can do."""
    from mmfast.diagnosis import diagnose

    facts = diagnose()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console

    _print_facts(facts, Console(highlight=False))


def _print_facts(facts: dict[str, Any], console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    def section(title: str, rows: list[tuple[str, ...]]) -> None:
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()

    section("versions", [(k, str(v or "not installed")) for k, v in facts["versions"].items()])
    machine = facts["machine"]
    section(
        "machine",
        [
            ("system", machine["system"]),
            ("CPUs", str(machine["cpus"])),
            ("memory", _gibibytes(machine["memory_bytes"])),
            ("python", machine["interpreter"]),
        ]
        + [
            (
                device["device"],
                f"{device['name']}, {_gibibytes(device['memory_bytes'])}, "
                f"compute capability {device['capability']}"
                if "name" in device
                else f"{device['threads']} threads in torch",
            )
            for device in facts["devices"]
        ],
    )
    for job in ("sampling", "attention"):
        section(
            f"{job} backends",
            [
                (backend["name"], "active" if backend["active"] else "off", backend["why"])
                for backend in facts[job]
            ],
        )
    section(
        'sample(backend="auto") takes',
        [(choice["where"], choice["backend"], choice["why"]) for choice in facts["sampling_auto"]],
    )
    section(
        "extras",
        [
            (
                extra,
                "installed"
                if not missing
                else f"lacks {', '.join(missing)}: pip install 'mmfast[{extra}]'",
            )
            for extra, missing in facts["extras"].items()
        ],
    )


def _gibibytes(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"
