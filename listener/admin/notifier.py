"""Tells the service manager how the daemon is: the protocol of sd_notify(3), which needs no library.

    notifier = Notifier.take(os.environ)
    notifier.ready("2,000 mailboxes")

Everything is a no-op where nobody wants to know: without $NOTIFY_SOCKET.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notifier:
    """A way to the service manager. `address` is its socket, None if there is none.

    `watchdog` are the seconds within which it wants to hear beat() again and again, None if it does not.
    """

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The one that the environment tells of. Its variables are removed: they are not for child processes."""
        address = environ.pop("NOTIFY_SOCKET", "")
        interval, owner = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if address[:1] not in ("/", "@"):
            return cls()
        wanted = interval.isdigit() and int(interval) > 0 and owner in ("", str(os.getpid()))
        return cls(address, int(interval) / 1e6 if wanted else None)

    def ready(self, status: str) -> None:
        """The start is over, and all that was asked for stands."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for people."""
        self._send(_status(status))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """A reload is on its way; whatever came of it, it is over when the context is left."""
        # The kernel's clock, not the loop's: systemd compares it with its own (CLOCK_MONOTONIC, microseconds).
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._send("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """The start, the reload or the end goes on: it may take so long from now before it counts as failed."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def beat(self) -> None:
        """The watchdog need not act."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        # An address that begins with "@" is abstract: the kernel marks these by a zero byte.
        address = f"\0{self.address[1:]}" if self.address[0] == "@" else self.address
        # A service manager that is busy, restarts or is gone must never hold up the daemon.
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as way,
        ):
            way.sendto("\n".join(lines).encode(), address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
