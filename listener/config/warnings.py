"""What is probably a mistake in a configuration that is otherwise good. `check` prints it, and the daemon logs it."""

from __future__ import annotations

from collections.abc import Iterator

from listener.config.endpoints import doubt_autodiscover_url, doubt_ews_url
from listener.config.model import Config
from listener.config.problems import Loc, dotted
from listener.config.rules import unmatched_mailboxes
from listener.errors import Problem


def warnings(config: Config) -> list[Problem]:
    """All of them, in the order of the sections."""
    return [Problem(dotted(loc), what) for loc, what in _found(config)]


def _found(config: Config) -> Iterator[tuple[Loc, str]]:
    exchange = config.exchange
    if exchange.ews_url and (doubt := doubt_ews_url(exchange.ews_url)):
        yield ("exchange", "ews_url"), str(doubt)
    if exchange.autodiscover_url and (doubt := doubt_autodiscover_url(exchange.autodiscover_url)):
        yield ("exchange", "autodiscover_url"), str(doubt)
    for index, group in enumerate(config.groups):
        if group.ews_url and (doubt := doubt_ews_url(group.ews_url)):
            yield ("groups", index, "ews_url"), str(doubt)
    for loc, _, what in unmatched_mailboxes(config):
        yield loc, what
