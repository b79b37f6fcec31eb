"""Options and exit codes that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

# Exit codes (docs/CLI.md).
FAILED = 1
CONFIGURATION = 2
UNREACHABLE = 3
REFUSED = 4

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="EWS_LISTENER_CONFIG",
        default_factory=lambda: Path("config.toml"),
        show_default="config.toml",
        help="The configuration file.",
    ),
]
