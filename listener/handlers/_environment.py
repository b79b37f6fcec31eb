"""The environment of programs that handlers run: a short list of the daemon's own variables, and what is configured.

The daemon's environment can hold secrets (the variable of `password_env`, CREDENTIALS_DIRECTORY) and what belongs to
the daemon alone (NOTIFY_SOCKET, LISTEN_FDS, WATCHDOG_PID). A list of what is passed on cannot miss one of them.
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
        # By name: a pattern would also pass on a secret that is called LC_SOMETHING. glibc's categories, locale(7).
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
"""Variables that programs get as the daemon has them; docs/HANDLERS.md lists them too."""


NONE: Final[Mapping[str, str]] = MappingProxyType({})


def environment_of(own: Mapping[str, str]) -> dict[str, str]:
    """Return what a program gets: PASSED_ON, and `own` above it. Raises ValueError if `own` has no possible names."""
    for name, value in own.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(
                f"environment: {name!r} cannot be set: a name must not be empty or contain = or NUL"
            )
    return {name: value for name, value in os.environ.items() if name in PASSED_ON} | dict(own)


def require_program(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises FileNotFoundError if there is no such program on the PATH that it would be looked for on."""
    if not command or shutil.which(command[0], path=environment.get("PATH", os.defpath)) is None:
        raise FileNotFoundError(f"there is no program {command[0] if command else 'in an empty command'}")
