"""The audit: every first use of an identity, at each server.

It is taken from the bytes that are sent, so that no request can be made past it. "First" is since the process began.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from listener.ews.soap import acting_as, owner_of_folders
from listener.ews.urls import server_of

log = structlog.get_logger()


class Logger(Protocol):
    """Where the lines go."""

    def info(self, event: str, **fields: object) -> object: ...


class Audit:
    """Notes identities: whom the account impersonates, whose folders it names as a delegate, or itself.

    `logger` may be changed at any time.
    """

    def __init__(self, logger: Logger | None = None) -> None:
        self.logger: Logger = logger or structlog.get_logger()
        self._seen: set[tuple[str, str, str, str]] = set()

    def note(self, request: bytes, url: str, account: str) -> None:
        """A request is about to be sent.

        That it cannot be recorded does not hold it up: the log says so, and the next use is taken for the first.
        """
        access, identity, named_by = "own", account, "account"
        if (impersonation := acting_as(request)) is not None:
            access, identity, named_by = "impersonation", impersonation.value, impersonation.kind
        elif (owner := owner_of_folders(request)) is not None:
            access, identity, named_by = "delegate", owner, "PrimarySmtpAddress"
        server = server_of(url)
        use = (server, account, access, identity)
        if use in self._seen:
            return
        try:
            self.logger.info(
                "audit.identity_used",
                account=account,
                server=server,
                access=access,
                identity=identity,
                named_by=named_by,
            )
        except OSError as error:
            log.error("audit.not_written", path=error.filename, reason=error.strerror, fix=FIX)
        else:
            self._seen.add(use)


FIX = "make room on its disk, or let the daemon write there"
