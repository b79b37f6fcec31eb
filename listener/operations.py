"""Operations on a running daemon: status snapshot, reload, tracing of one mailbox."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
import trio
from msgspec import structs

from listener import log as logging
from listener._version import __version__
from listener.admin import snapshot as take
from listener.admin.listener_socket import open_listener_socket
from listener.admin.reload import merged
from listener.admin.snapshot import ReloadStatus, Snapshot
from listener.config import Config
from listener.daemon import Daemon
from listener.delivery.delivery import Source
from listener.errors import ConfigError, Problem

log = structlog.get_logger()

Load = Callable[[], tuple[Config, Sequence[Source]]]


class Operations:
    """Operations on one daemon. `load` reads the configuration; it may block, and raises ConfigError if it is
    invalid."""

    def __init__(self, daemon: Daemon, load: Load) -> None:
        self._daemon = daemon
        self._load = load
        self._started = time.time()
        self._reloads = ReloadStatus()
        self._one_reload = trio.Lock()

    @asynccontextmanager
    async def at_hand(self) -> AsyncIterator[None]:
        """Serve the HTTP interface and handle SIGHUP while the context is open.

        Raises ConfigError like open_listener_socket().
        """
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async with open_listener_socket(self._daemon.config, self), trio.open_nursery() as nursery:
                nursery.start_soon(self._reload_on_signal, signals)
                yield
                nursery.cancel_scope.cancel()

    async def _reload_on_signal(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            with suppress(ConfigError):  # reload() has logged it
                await self.reload()

    # --- status

    def snapshot(self) -> Snapshot:
        """Return the current status."""
        daemon, now = self._daemon, trio.current_time()
        manager, runners = daemon.manager, daemon.runners
        offset = time.time() - now
        groups = take.group_statuses(manager, now, lambda time: round(time + offset, 3))
        return Snapshot(
            version=__version__,
            pid=os.getpid(),
            time=round(now + offset, 3),
            started=round(self._started, 3),
            state=daemon.stage,
            healthy=not daemon.systemd.is_stuck,
            mailboxes=manager.mailboxes,
            streaming=sum(group.streaming for group in groups),
            suspended=sum(group.suspended for group in groups),
            missing=len(manager.missing),
            refused=sum(group.refused for group in groups),
            events=daemon.ingest.events,
            dropped=manager.dropped,
            groups=groups,
            handlers=take.handler_statuses(daemon.delivery),
            servers=take.server_statuses(daemon.access.throttles),
            journal=take.journal_status(daemon.journal.figures),
            catch_up=take.catch_up_status(daemon.catch_up),
            tokens=take.token_statuses(daemon.access.auth),
            reloads=self._reloads,
            mailbox_problems=take.mailbox_problems(runners.by_group.values(), manager.missing, now),
        )

    def streaming(self) -> Iterator[tuple[str, bool]]:
        """Return each mailbox, and whether it has a stream."""
        for runner in self._daemon.runners.by_group.values():
            open_ones = (
                set(runner.state.stream.subscriptions) if runner.streaming and runner.state.stream else set()
            )
            for member in runner.state.members:
                yield member.mailbox, (member.mailbox, member.subscription) in open_ones

    # --- reload

    async def reload(self) -> tuple[str, ...]:
        """Reload the configuration. Return the keys whose new values take effect at the next start.

        Raises ConfigError if the configuration is invalid or a handler cannot be opened; then nothing has changed.
        """
        async with self._one_reload:
            daemon = self._daemon
            # The end of a reload sends READY=1 to systemd, which must not look like the end of the start.
            if daemon.stage != "listening":
                problem = Problem("reload", f"the daemon is {daemon.stage}; try again later")
                self._reject((str(problem),))
                raise ConfigError([problem])
            with daemon.systemd.reloading():
                try:
                    pending = await self._reload()
                except ConfigError as error:
                    self._reject(tuple(str(problem) for problem in error.problems))
                    raise
                except Exception as error:
                    # A bug in the daemon. Changes made before the exception remain in effect.
                    log.error("listener.reload_crashed", exc_info=error)
                    problem = Problem("reload", "failed because of an internal error; see the log")
                    raise ConfigError([problem]) from error
            log.info("listener.reloaded", mailboxes=self._daemon.manager.mailboxes, pending=pending)
            self._record(done=self._reloads.done + 1, problems=(), pending=pending)
            return pending

    async def _reload(self) -> tuple[str, ...]:
        daemon = self._daemon
        new, sources = await trio.to_thread.run_sync(self._load)
        config, pending = merged(daemon.config, new)
        await daemon.reconfigure(config, sources)
        logging.change(config.log.level, config.log.repeat_interval)
        return pending

    def _reject(self, problems: tuple[str, ...]) -> None:
        log.error("listener.reload_rejected", problems=problems)
        self._record(refused=self._reloads.refused + 1, problems=problems)

    def _record(self, **changes: Any) -> None:
        self._reloads = structs.replace(self._reloads, last=round(time.time(), 3), **changes)

    # --- tracing

    def watch(self, mailbox: str) -> AsyncIterator[bytes]:
        """Trace a mailbox in real time, as lines of JSON. The case of the address does not matter.

        Raises LookupError if it is unknown.
        """
        for address in self._daemon.manager.addresses():
            if address.casefold() == mailbox.casefold():
                return self._daemon.tracing.watch(address)
        raise LookupError(f"unknown mailbox {mailbox}: the daemon does not listen to it")
