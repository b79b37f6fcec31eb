"""Status line that `systemctl status` shows (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from listener.journal import Figures


def status_line(
    *,
    phase: str,
    mailboxes: int,
    streaming: int,
    suspended: int,
    missing: int,
    pause: float,
    journal: Figures | None,
) -> str:
    """Return the phase, if it is not empty, the mailbox counts and current problems.

    `missing` counts the mailboxes that Autodiscover did not find. `pause` is the remaining pause, in seconds, that
    Exchange requested.
    """
    counts = f"{streaming:,} of {mailboxes:,} mailboxes streaming"
    if suspended:
        counts += f", {suspended:,} suspended"
    if missing:
        counts += f", {missing:,} not found"
    parts = [phase] if phase else []
    parts.append(counts)
    if pause:
        parts.append(f"Exchange requested a pause of {ceil(pause):,} s")
    if journal is not None:
        parts += _journal_problems(journal)
    return "; ".join(parts)


def _journal_problems(figures: Figures) -> Iterator[str]:
    if figures.write_error is not None:
        yield f"cannot write the journal: {figures.write_error}"
    if figures.full:
        yield "journal full: ingestion paused until handlers catch up"
    for name, lag in figures.lag.items():
        if lag >= NOTABLE_LAG:
            yield f"handler {name} lags by {lag:,} events"


# Handlers with at least this many undelivered events are mentioned.
NOTABLE_LAG = 1000
