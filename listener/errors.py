"""The error tree.

    ListenerError                   everything the listener itself raises
    ├── ConfigError                 the configuration: every problem at once, each with its place  (exit code 2)
    │   └── OpeningError            what it names cannot be opened now; a later start may succeed       (exit code 1)
    ├── ExchangeError               a request to Exchange came to nothing; `failure` says why
    └── JournalError                the journal cannot do what is asked of it (listener/journal)

Which of them leads to which exit code stands in listener/cli and docs/CLI.md. What to do about a failure of
Exchange is no class of its own but data: see listener/ews/codes.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from listener.ews.codes import Failure


class ListenerError(Exception):
    """The root of what the listener raises on purpose."""


class Problem(NamedTuple):
    """One thing wrong with the configuration: `where` is a dotted key (or a file and line), `what` says the
    trouble and what to do about it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class ConfigError(ListenerError):
    """The configuration cannot be used. `problems` holds all that is wrong with it, in the file's order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class OpeningError(ConfigError):
    """The configuration is in order, but what it names could not be opened; a database that is late, say."""


class ExchangeError(ListenerError):
    """A request to Exchange came to nothing. `failure` is what is known of the reason."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))
