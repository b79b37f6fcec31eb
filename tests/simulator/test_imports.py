"""The modules of the simulator have no circular imports."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import listener.simulator

FOLDER = Path(listener.simulator.__file__).parent
PACKAGE = "listener.simulator"


def needs(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE}."):
            found.add(node.module.removeprefix(f"{PACKAGE}."))
    return found


def test_no_circular_imports() -> None:
    modules = {path.stem: needs(path) for path in FOLDER.glob("*.py")}
    assert modules["exchange"]
    list(TopologicalSorter(modules).static_order())  # CycleError names the circle
