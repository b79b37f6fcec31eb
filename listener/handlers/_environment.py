"""The environment of programs that handlers run: a few of the daemon's variables, and the configured ones.

The daemon's environment can contain secrets (the variable of `password_env`, CREDENTIALS_DIRECTORY) and variables for
the daemon only (NOTIFY_SOCKET, LISTEN_FDS, WATCHDOG_PID). An allow-list cannot miss one of them.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

PASSED_ON: Final = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "TMPDIR",
        "TZ",
        "LANG",
        "LANGUAGE",
        # glibc's categories, locale(7), by name: a pattern would also pass a secret named LC_SOMETHING.
        "LC_ADDRESS",
        "LC_ALL",
        "LC_COLLATE",
        "LC_CTYPE",
        "LC_IDENTIFICATION",
        "LC_MEASUREMENT",
        "LC_MESSAGES",
        "LC_MONETARY",
        "LC_NAME",
        "LC_NUMERIC",
        "LC_PAPER",
        "LC_TELEPHONE",
        "LC_TIME",
    }
)
"""The daemon's variables that programs get; docs/HANDLERS.md lists them too."""

NONE: Final[Mapping[str, str]] = MappingProxyType({})


def environment_of(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program: PASSED_ON, overridden by `own`.

    Raises ValueError if a name in `own` is not valid, or if a value contains NUL.
    """
    for name, value in own.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(
                f"environment: {name!r} cannot be set: a name must not be empty or contain = or NUL"
            )
    return {name: value for name, value in os.environ.items() if name in PASSED_ON} | dict(own)


def require_program(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise FileNotFoundError if the program does not exist on the PATH of `environment`."""
    if not command:
        raise FileNotFoundError("command is empty")
    if shutil.which(command[0], path=environment.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(f"program not found: {command[0]}")
