"""Reads one response to GetStreamingEvents from its first byte to its end.

    reader = StreamReader(silence=90.0, max_envelope=16 * 1024 * 1024)
    async with reader.open(open_stream):
        while (signals := await reader.receive()) is not None:
            await publish(signals)
    reader.failures

The rules:

1. The silence deadline runs only while the reader waits for bytes, because a slow journal must not look like a silent
   server. Only complete, valid signals reset it: a server that sends single bytes is as silent as one that sends
   none.
2. `Closed` does not end the stream: some servers send more after it, but not for long.
3. A failure ends the stream. After a bad subscription, some servers send nothing more for the good ones, and leave
   the socket open.
4. A reader that was replaced gets some time to reach the server's own end of the stream, so that no event in flight
   is lost. Nothing that is being published is ever cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Protocol

import trio

from listener.ews.codes import ExchangeError, Failure
from listener.ews.stream import Closed, Signal, StreamParser


class Answer(Protocol):
    """A response body that arrives in chunks (listener/exchange/client.py)."""

    async def receive(self) -> bytes: ...
    async def aclose(self) -> None: ...


class StreamReader:
    """One stream. `silence` is in seconds, `max_envelope` in bytes.

    - `alive`: the server sent a signal other than a failure. `last_seen` is when it last did, on trio's clock.
    - `closed`: the server announced the end of the stream.
    - `cut`: the stream ended before the server's own end of it.
    - `failures`: why the stream ended; empty after an orderly end.
    """

    def __init__(self, *, silence: float, max_envelope: int) -> None:
        self.alive = False
        self.last_seen: float | None = None
        self.cut = False
        self.closed = False
        self.failures: tuple[Failure, ...] = ()
        self._silence = silence
        self._parser = StreamParser(max_envelope=max_envelope)
        self._answer: Answer | None = None
        self._ended = False
        self._quiet = 0.0  # seconds of waiting for bytes since the last signal
        self._seen_before: float | None = None  # `last_seen` before the latest receive()
        self._end_deadline = inf
        self._receive_scope: trio.CancelScope | None = None

    def end_within(self, seconds: float) -> None:
        """Limit the rest of the stream to this many seconds."""
        self._end_deadline = trio.current_time() + seconds
        if self._receive_scope is not None:
            self._receive_scope.deadline = min(self._receive_scope.deadline, self._end_deadline)

    @asynccontextmanager
    async def open(self, open_stream: Callable[[], Awaitable[Answer]]) -> AsyncIterator[None]:
        """Send the request, and close the response at the end. After a failure, receive() returns None."""
        try:
            with self._deadline(inf) as waiting:
                self._answer = await open_stream()
            if waiting.cancelled_caught:
                self._end_after_deadline()
        except ExchangeError as error:
            self._end_after_failure(error.failure)
        try:
            yield
        finally:
            if self._answer is not None:
                await self._answer.aclose()

    async def receive(self) -> Sequence[Signal] | None:
        """Return the signals that the next bytes complete, possibly none; None at the end of the stream.

        A caller that cannot publish them must call undo().
        """
        if self._ended or self._answer is None:
            return None
        started_at = trio.current_time()
        limit = AFTER_CLOSED if self.closed else self._silence
        try:
            with self._deadline(limit - self._quiet) as waiting:
                data = await self._answer.receive()
            if waiting.cancelled_caught:
                self._end_after_deadline()
                return None
            self._quiet += trio.current_time() - started_at
            signals = self._parser.feed(data) if data else self._parser.end()
        except ExchangeError as error:
            self._end_after_failure(error.failure)
            return None
        if signals:
            self._quiet = 0.0
            self.alive = self.alive or not isinstance(signals[0], Failure)
        self._seen_before = self.last_seen
        if self.alive and not all(isinstance(signal, Failure) for signal in signals):
            self.last_seen = trio.current_time()
        self.closed = self.closed or any(isinstance(signal, Closed) for signal in signals)
        self.failures = tuple(signal for signal in signals if isinstance(signal, Failure))
        self._ended = bool(self.failures) or not data
        return signals

    def undo(self) -> None:
        """Restore `last_seen` from before the latest receive(): catch-up must find the unpublished signals."""
        self.last_seen = self._seen_before

    def _end_after_failure(self, failure: Failure) -> None:
        self._ended = True
        if self.closed:
            self.cut = bool(self._parser.end())  # an incomplete envelope after `Closed` is lost
        else:
            self.failures = (failure,)

    def _end_after_deadline(self) -> None:
        self._ended = True
        replaced = self._end_deadline < inf
        self.cut = replaced and not self.closed
        if not self.closed and not replaced:
            text = f"no signal for {self._silence:g} s"
            self.failures = (Failure(code="StreamSilent", text=text),)

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Cancel the body after these seconds, or at the deadline of end_within()."""
        deadline = min(trio.current_time() + seconds, self._end_deadline)
        with trio.CancelScope(deadline=deadline) as self._receive_scope:
            yield self._receive_scope
        self._receive_scope = None


# Seconds that a server may continue to send after `Closed`.
AFTER_CLOSED = 5.0
