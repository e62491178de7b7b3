"""The direction of imports between rooms, and what the lightweight entry points may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "mmfast"

# A room may import rooms of a lower rank, or its own. `__main__` modules rank with the command line.
RANKS = [
    {"errors", "lazy", "files", "config", "console", "registry", "distributed", "vocab", "_mmfast"},
    {"data", "kernels", "sampling", "tokenizers"},
    {"objectives", "models"},
    {"train", "generate", "retrieval", "prepare"},
    {"recipes"},
    {"evaluate"},
    {"report", "diagnosis"},
    {"cli"},
]
RANK_OF_ROOM = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
# Rooms of one rank that may lean on each other, named one by one.
ALLOWED_WITHIN_RANK = {
    ("config", "errors"),
    ("config", "files"),
    ("files", "errors"),
    ("vocab", "files"),
    ("registry", "errors"),
    ("distributed", "errors"),
    ("vocab", "errors"),
    ("sampling", "kernels"),
}


def modules() -> list[Path]:
    # The linked kernels folder is walked at its place in the package.
    return sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if parts[-1] == "__main__.py":
        return "cli"
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("mmfast.")}
    return rooms - {"__version__"}


def test_every_room_has_a_rank() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert rooms <= set(RANK_OF_ROOM), f"rooms without a rank: {rooms - set(RANK_OF_ROOM)}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for other in imported_rooms(path) - {room}:
        downwards = RANK_OF_ROOM[other] < RANK_OF_ROOM[room]
        assert downwards or (room, other) in ALLOWED_WITHIN_RANK, f"{room} must not import {other}"


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from mmfast.recipes import folder\n")
    assert imported_rooms(module) == {"recipes"}


@pytest.mark.parametrize(
    "statement",
    [
        "import mmfast",
        "from mmfast import Vocabulary",
        "from mmfast.data import IndexedDataset",
        "import mmfast.cli, sys; sys.argv = ['mmfast', '--help']\ntry: mmfast.cli.main()\nexcept SystemExit: pass",
    ],
)
def test_light_entry_points_load_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys; assert not [m for m in ('torch', 'transformers') if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
