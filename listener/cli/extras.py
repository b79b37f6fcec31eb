"""Optional dependencies ("extras" in pyproject.toml) that commands need."""

from importlib.util import find_spec

import typer

from listener.cli.options import CONFIGURATION

# What only the simulator imports.
DEMO_PACKAGES = {"trustme": "trustme", "jwt": "PyJWT"}


def require_demo_extra(command: str) -> None:
    """End the process with exit code 2 if a package of the extra `demo` is not installed.

    The packages are found without importing them: the demo leaves them to its simulator's process.
    """
    missing = [package for module, package in DEMO_PACKAGES.items() if find_spec(module) is None]
    if missing:
        typer.echo(
            f"error: {command}: not installed: {', '.join(missing)}; run: pip install 'ews-listener[demo]'",
            err=True,
        )
        raise typer.Exit(CONFIGURATION)
