"""What a new configuration changes while the daemon runs, and what only at its next start (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel

from listener.config import Config
from listener.config.rules import RULES
from listener.errors import ConfigError, Problem

LIVE: Final[Mapping[str, frozenset[str] | None]] = {
    "affinity": frozenset({"impersonate_anchor_on_stream", "refresh", "subscribe_concurrency"}),
    "backoff": None,
    "catch_up": frozenset({"idle_interval", "initial", "interval"}),
    "delivery": None,
    "exchange": frozenset({"concurrency"}),
    "groups": None,
    "handlers": None,
    "log": frozenset({"level", "repeat_interval"}),
    "mailboxes": None,
    "shutdown": None,
    "stream": None,
}
"""What a reload takes up, by section: these keys, or all of them (None). docs/CLI.md lists it."""


def merged(running: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """The configuration that holds from now on, and the keys of `new` that wait for the next start.

    Raises ConfigError where what is new does not go together with what has to wait.
    """
    taken: dict[str, object] = {}
    pending: list[str] = []
    for name in Config.model_fields:
        before, after = getattr(running, name), getattr(new, name)
        live = LIVE.get(name, frozenset())
        if live is None or before == after:
            taken[name] = after
        elif isinstance(before, BaseModel) and type(before) is type(after):
            changed = {
                key: getattr(after, key)
                for key in type(before).model_fields
                if getattr(before, key) != getattr(after, key)
            }
            pending += [f"{name}.{key}" for key in changed if key not in live]
            taken[name] = before.model_copy(update={key: changed[key] for key in changed.keys() & live})
        else:
            pending.append(name)
            taken[name] = before
    mixed = running.model_copy(update=taken)
    if pending:
        _check(mixed, ", ".join(pending))
    return mixed, tuple(pending)


def _check(mixed: Config, pending: str) -> None:
    """Both were sound by themselves. Raises ConfigError where the mixture is not."""
    problems = [
        Problem(
            ".".join(map(str, loc)), f"{what} (until {pending} takes effect: restart instead of a reload)"
        )
        for rule in RULES
        for loc, what in rule.find(mixed)
    ]
    if problems:
        raise ConfigError(problems)
