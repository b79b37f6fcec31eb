"""Imports point down only: a package imports from packages on lower layers, and from itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom to the top. A package, or a module that stands directly in listener/, is on exactly one layer.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors", "files", "suggest", "text", "event"),
    ("ews", "handler"),
    ("__init__", "access", "backoff", "filters", "tracing"),
    ("config", "log", "placement", "handlers", "simulator"),
    ("exchange", "journal", "plugins"),
    ("catchup", "delivery", "mailboxes"),
    ("groups", "ingest"),
    ("admin", "build"),
    ("preflight",),
    ("daemon",),
    ("operations",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# The simulator must not share a misunderstanding of the protocol with the daemon. Built-in handlers are worked
# examples of the plugin API, and use nothing else.
ONLY = {"simulator": {"_version"}, "handlers": {"__init__"}}
IMPORTED_ONLY_BY = {"simulator": {"cli", "demo"}}


def package(module: str) -> str:
    """Return the part of listener/ that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def modules() -> list[tuple[str, Path]]:
    files = sorted((ROOT / "listener").rglob("*.py"))
    return [(".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), f) for f in files]


def imports(path: Path) -> set[str]:
    """Return the parts of listener/ that a file imports, also inside functions and for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {package(alias.name) for alias in node.names if alias.name.split(".")[0] == "listener"}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "listener":
                found |= {alias.name if alias.name in LAYER else "__init__" for alias in node.names}
            elif node.module.startswith("listener."):
                found.add(package(node.module))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    here = package(module)
    assert here in LAYER, f"{here} has no layer: add it to tests/test_layers.py and docs/ARCHITECTURE.md"
    for name in imports(path) - {here}:
        if here in ONLY:
            assert name in ONLY[here], f"{module} imports {name}"
        else:
            assert LAYER[name] < LAYER[here], f"{module} imports {name}, which is not on a lower layer"
        assert here in IMPORTED_ONLY_BY.get(name, {here}), f"{module} imports {name}"


def test_every_layer_is_real() -> None:
    parts = {package(module) for module, _ in modules()}
    assert parts == set(LAYER), "tests/test_layers.py names what is not there, or misses what is"
