"""The house stands: a room of the engine imports only from floors below it (or from itself)."""

import ast
from pathlib import Path

import pytest

import testbed

ROOT = Path(testbed.__file__).parent
FLOORS = [{"errors"}, {"schema", "traces", "measurement"}, {"inference", "emulation"}, {"policies", "placement", "serving"}, {"workload"},
          {"experiment", "doctor"}, {"cli"}]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("testbed.")}
    return rooms


FILES = [p for p in sorted(ROOT.rglob("*.py")) if room_of(p) in FLOOR]


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(p) for p in ROOT.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(FLOOR) & rooms


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_only_from_floors_below(path: Path) -> None:
    own = room_of(path)
    wrong = {room for room in imported_rooms(path)
             if room != own and FLOOR.get(room, -1) >= FLOOR[own]}
    assert not wrong, f"{own} (floor {FLOOR[own]}) imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_the_first_line_says_what_the_file_is_for(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text or not path.read_text().strip(), f"{path} has no docstring"
