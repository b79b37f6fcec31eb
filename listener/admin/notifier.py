"""Notifications to systemd by the protocol of sd_notify(3), without a library.

    notifier = Notifier.take(os.environ)
    notifier.ready("2,000 mailboxes")

Without $NOTIFY_SOCKET, all methods do nothing.
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
    """Connection to the service manager. `address` is its socket; None if there is none.

    `watchdog` is the maximum interval between beat() calls, in seconds; None if the watchdog is disabled.
    """

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Create a notifier from the environment. Remove the variables, which child processes must not inherit."""
        address = environ.pop("NOTIFY_SOCKET", "")
        interval, owner = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if address[:1] not in ("/", "@"):
            return cls()
        enabled = interval.isdigit() and int(interval) > 0 and owner in ("", str(os.getpid()))
        return cls(address, int(interval) / 1e6 if enabled else None)

    def ready(self, status: str) -> None:
        """Report that the start is complete."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Set the status line that `systemctl status` shows."""
        self._send(_status(status))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Report a reload while the context is open, and its end, with or without success, afterwards."""
        # The kernel's clock, not the loop's: systemd compares it with its own CLOCK_MONOTONIC (microseconds).
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self, status: str) -> None:
        """Report that the daemon is stopping."""
        self._send("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """Extend the timeout of the start, reload or stop in progress to this many seconds from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def beat(self) -> None:
        """Reset the watchdog timer."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        # An address that starts with "@" is in the abstract namespace, where the kernel expects a zero byte instead.
        address = f"\0{self.address[1:]}" if self.address[0] == "@" else self.address
        # A service manager that is busy, restarting or gone must never block the daemon.
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection,
        ):
            connection.sendto("\n".join(lines).encode(), address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
