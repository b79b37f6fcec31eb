"""Split of a new configuration into what a reload applies and what needs a restart (pure)."""

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
"""What a reload applies, by section: these keys, or all keys (None). docs/CLI.md lists them."""


def merged(running: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration to apply now, and the keys of `new` that take effect at the next start.

    Raises ConfigError if the applied values conflict with old values that need a restart to change.
    """
    applied: dict[str, object] = {}
    pending: list[str] = []
    for name in Config.model_fields:
        before, after = getattr(running, name), getattr(new, name)
        live = LIVE.get(name, frozenset())
        if live is None or before == after:
            applied[name] = after
        elif isinstance(before, BaseModel) and type(before) is type(after):
            changed = {
                key: getattr(after, key)
                for key in type(before).model_fields
                if getattr(before, key) != getattr(after, key)
            }
            pending += [f"{name}.{key}" for key in changed if key not in live]
            applied[name] = before.model_copy(update={key: changed[key] for key in changed.keys() & live})
        else:
            pending.append(name)
            applied[name] = before
    mixed = running.model_copy(update=applied)
    if pending:
        _check(mixed, ", ".join(pending))
    return mixed, tuple(pending)


def _check(mixed: Config, pending: str) -> None:
    """Raises ConfigError if the mix of two valid configurations is invalid."""
    problems = [
        Problem(
            ".".join(map(str, loc)),
            f"{what} (until {pending} takes effect; restart the daemon instead of reloading)",
        )
        for rule in RULES
        for loc, what in rule.find(mixed)
    ]
    if problems:
        raise ConfigError(problems)
