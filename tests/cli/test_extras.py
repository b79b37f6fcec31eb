"""Commands without the optional dependencies that they need. Real processes: an import must really fail."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from listener.cli.extras import DEMO_PACKAGES

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Both a search for the module and an import of it fail, as if it were not installed.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({modules!r}))
from listener.cli import main
sys.argv[0] = "ews-listener"
main()
"""
CONFIG = """
auth = { user = "svc@contoso.example", password_env = "PASSWORD" }
mailboxes = { addresses = ["ann@contoso.example"] }
handlers = { audit = { use = "log" } }
"""


def run_without(modules: list[str], *arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules=modules), *arguments],
        cwd=ROOT,
        env={"PASSWORD": "planted", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [("demo", "--json"), ("simulate",)], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("modules", "packages"),
    [(["trustme"], "trustme"), (["trustme", "jwt"], "trustme, PyJWT")],
    ids=["trustme", "both"],
)
def test_simulator_commands_name_the_missing_extra(
    arguments: tuple[str, ...], modules: list[str], packages: str
) -> None:
    error = f"error: {arguments[0]}: not installed: {packages}; run: pip install 'ews-listener[demo]'\n"
    assert run_without(modules, *arguments) == (2, "", error)


@pytest.mark.parametrize("arguments", [("demo", "--help"), ("simulate", "--print-faults")], ids=" ".join)
def test_help_and_fault_profiles_work_without_the_extra(arguments: tuple[str, ...]) -> None:
    assert run_without(["trustme"], *arguments)[0] == 0


def test_the_daemon_works_without_the_extra(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    status, _, errors = run_without(["trustme"], "check", "-c", config)
    assert (status, errors) == (0, "")
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, listener.daemon, listener.build; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "listener.daemon" in imported
    assert [name for name in imported if name == "trustme" or name.startswith("listener.simulator")] == []


def third_party(folder: Path) -> set[str]:
    """The top-level packages outside of the standard library that modules below `folder` import."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"listener"}


def test_the_extra_has_exactly_what_only_the_simulator_and_the_demo_import() -> None:
    folders = [path for path in (ROOT / "listener").iterdir() if path.is_dir()]
    only_here = set.union(*(third_party(path) for path in folders if path.name in ("simulator", "demo")))
    elsewhere = set.union(*(third_party(path) for path in folders if path.name not in ("simulator", "demo")))
    assert only_here - elsewhere == set(DEMO_PACKAGES)
    extra = {re.split(r"[>=<]", requirement)[0] for requirement in PROJECT["optional-dependencies"]["demo"]}
    assert extra == set(DEMO_PACKAGES.values())
    distributions = packages_distributions()
    assert {module: distributions[module][0] for module in DEMO_PACKAGES} == DEMO_PACKAGES
    assert "ews-listener[demo]" in PROJECT["optional-dependencies"]["dev"]
