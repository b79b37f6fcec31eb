from typing import Literal

import pytest
from structlog.testing import capture_logs

from listener import MailboxEvent
from listener.handlers.log import open_log

EVENT = MailboxEvent(
    type="exchange.item.created",
    mailbox="a@b.c",
    time="2026-01-01T00:00:00Z",
    item_id="I",
    parent_folder_id="F",
)


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
async def test_one_log_line_per_event(level: Literal["debug", "info", "warning"]) -> None:
    with capture_logs() as lines:
        async with open_log(level=level) as handle:
            await handle(EVENT)
    assert lines == [
        {
            "event": "mailbox.event",
            "log_level": level,
            "type": "exchange.item.created",
            "mailbox": "a@b.c",
            "occurred": "2026-01-01T00:00:00Z",
            "item_id": "I",
        }
    ]
