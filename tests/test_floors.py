"""Imports point down only: a module may import from its own floor or from one below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package has one floor, unless some of its modules are lower.
FLOORS = {
    "listener": 0, "listener._version": 0, "listener.event": 0, "listener.handler": 0, "listener.errors": 0,
    "listener.files": 0, "listener.suggest": 0, "listener.text": 0, "listener.ews": 0, "listener.simulator": 0,
    "listener.access": 1, "listener.backoff": 1, "listener.config": 1, "listener.filters": 1, "listener.log": 1,
    "listener.tracing": 1,
    "listener.groups.actions": 1, "listener.groups.affinity": 1, "listener.groups.gaps": 1,
    "listener.groups.group": 1, "listener.groups.member": 1,
    "listener.catchup.delay_queue": 1, "listener.catchup.history": 1, "listener.catchup.differences": 1,
    "listener.catchup.strategy": 1,
    "listener.preflight.remedies": 1,
    "listener.exchange": 2, "listener.handlers": 2, "listener.journal": 2, "listener.plugins": 2,
    "listener.catchup": 3, "listener.delivery": 3, "listener.groups": 3, "listener.mailboxes": 3,
    "listener.groups.manager": 4, "listener.groups.runners": 4, "listener.ingest": 4,
    "listener.preflight": 4, "listener.admin": 4,
    "listener.build": 5, "listener.preflight.check": 5, "listener.daemon": 5, "listener.operations": 5,
    "listener.demo": 6, "listener.cli": 7, "listener.__main__": 8,
}  # fmt: skip
ALLOWED_BELOW = {"listener.simulator": {"listener.simulator", "listener._version"}}
PUBLIC_ONLY = {"listener.handlers": {"listener", "listener.handlers"}}


def room(module: str) -> str:
    """The module itself if it has a floor of its own, else the package that it is in."""
    return module if module in FLOORS and module.count(".") > 1 else ".".join(module.split(".")[:2])


def modules() -> list[tuple[str, Path]]:
    files = sorted((ROOT / "listener").rglob("*.py"))
    return [(".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), f) for f in files]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if room(n) in FLOORS and node.module == "listener" else node.module for n in names}
    return {name for name in found if name.split(".")[0] == "listener"}


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    here = room(module)
    assert here in FLOORS, (
        f"{module} has no floor: give it one in tests/test_floors.py and docs/ARCHITECTURE.md"
    )
    for name in imports(path):
        target = room(name)
        allowed = ALLOWED_BELOW.get(here) or PUBLIC_ONLY.get(here)
        if allowed is not None:
            assert target in allowed, f"{module} imports {name}"
        else:
            assert FLOORS[target] <= FLOORS[here], f"{module} imports {name}, which lies above it"
        if target == "listener.simulator":
            assert here in ("listener.simulator", "listener.cli", "listener.demo"), f"{module} imports {name}"
