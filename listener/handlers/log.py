"""`use = "log"`: one log line per event."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import structlog

from listener import Handler, MailboxEvent

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


@asynccontextmanager
async def open_log(*, level: Literal["debug", "info", "warning"] = "info") -> AsyncIterator[Handler]:
    """Log each event as `mailbox.event` at `level`, with the fields that the server sent."""
    log = structlog.get_logger()

    async def handle(event: MailboxEvent) -> None:
        fields = {"mailbox": event.mailbox, "item_id": event.item_id, "folder_id": event.folder_id}
        sent = {name: value for name, value in fields.items() if value is not None}
        log.log(_LEVELS[level], "mailbox.event", type=event.type, occurred=event.time, **sent)

    yield handle
