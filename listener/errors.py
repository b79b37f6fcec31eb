"""The exceptions of the listener.

    ListenerError                   base class
    ├── ConfigError                 the configuration has problems; lists all, each with its location  (exit code 2)
    │   └── OpeningError            something it names cannot be opened now; a later start may succeed (exit code 1)
    ├── ExchangeError               a request to Exchange failed (listener/ews/codes.py)
    └── JournalError                the journal cannot do what was requested (listener/journal)

listener/cli maps them to exit codes, and docs/CLI.md documents those. How the daemon reacts to a failure of Exchange
is data, not a class: see listener/ews/codes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class ListenerError(Exception):
    """Base class of the exceptions that the listener raises."""


class Problem(NamedTuple):
    """One problem of the configuration.

    `where` is a dotted key, or a file and line. `what` describes the problem and what to do.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class ConfigError(ListenerError):
    """The configuration cannot be used. `problems` has all its problems, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class OpeningError(ConfigError):
    """The configuration is valid, but but something it names cannot be opened now, such as a starting database."""
