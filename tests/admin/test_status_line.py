"""The status line for systemd."""

from typing import Any

import pytest

from listener.admin.status_line import status_line
from listener.journal import Figures

HEALTHY = Figures(end=9, size=1, limit=2, full=False, write_error=None, waiting=0, lag={"audit": 999})
FAILING = Figures(end=9, size=1, limit=2, full=True, write_error="EIO", waiting=3, lag={"audit": 12345})
ALL = "2,000 of 2,000 mailboxes streaming"
FULL = "journal full: ingestion paused until handlers catch up"
LAGGING = "handler audit lags by 12,345 events"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, ALL),
        ({"streaming": 1998, "suspended": 2}, "1,998 of 2,000 mailboxes streaming, 2 suspended"),
        ({"streaming": 1990, "missing": 10}, "1,990 of 2,000 mailboxes streaming, 10 not found"),
        ({"phase": "Ending"}, f"Ending; {ALL}"),
        ({"pause": 0.2}, f"{ALL}; Exchange requested a pause of 1 s"),
        ({"journal": None}, ALL),
        ({"journal": FAILING}, f"{ALL}; cannot write the journal: EIO; {FULL}; {LAGGING}"),
    ],
)
def test_status_line(changed: dict[str, Any], line: str) -> None:
    usual = {"phase": "", "mailboxes": 2000, "streaming": 2000, "suspended": 0, "missing": 0, "pause": 0.0}
    assert status_line(**{**usual, "journal": HEALTHY, **changed}) == line
