"""One line that says how the daemon is: `systemctl status` shows it. Pure."""

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
    """What goes on, and what is not as it should be. `phase` stands before it, unless it is empty.

    `missing` are mailboxes that were sought in vain, `pause` the seconds that Exchange wants to be left alone.
    """
    people = f"{streaming:,} of {mailboxes:,} mailboxes streaming"
    if suspended:
        people += f", {suspended:,} suspended"
    if missing:
        people += f", {missing:,} not found"
    said = [phase] if phase else []
    said.append(people)
    if pause:
        said.append(f"Exchange asks for a pause of {ceil(pause):,} s")
    if journal is not None:
        said += _of_journal(journal)
    return "; ".join(said)


def _of_journal(figures: Figures) -> Iterator[str]:
    if figures.write_error is not None:
        yield f"the journal cannot be written: {figures.write_error}"
    if figures.full:
        yield "the journal is full, nothing new is taken in"
    for name, lag in figures.lag.items():
        if lag >= NOTABLE:
            yield f"handler {name} is {lag:,} events behind"


# Events that a handler may be behind without being mentioned.
NOTABLE = 1000
