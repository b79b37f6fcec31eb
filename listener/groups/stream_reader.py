"""Reads one answer to GetStreamingEvents from its first byte to its end.

    reader = StreamReader(silence=90.0, max_envelope=16 * 1024 * 1024)
    failures = await reader.read(open_stream, take)

The rules:

1. Silence is a deadline of our own. It is armed only while bytes are awaited, since a slow handler must not look like
   a silent server; and only what makes sense counts as heard, since bytes that trickle in are as good as none.
2. `Closed` is not the end: some servers write more after it, but not for long.
3. A failure is the end: beside a bad subscription some servers deliver nothing more for the good ones, and leave the
   socket open.
4. A reader that is no longer wanted is left some time to come to the server's own end of the stream, so that nothing
   on its way is lost. What is being handed on is never cut off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from math import inf
from typing import Protocol

import trio

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.stream import Closed, Signal, StreamParser


class Answer(Protocol):
    """The body of an answer as it comes (listener/exchange/client.py has it)."""

    async def receive(self) -> bytes: ...
    async def aclose(self) -> None: ...


class StreamReader:
    """One stream. `silence` is in seconds, `max_envelope` in bytes.

    `heard`: the server said something that makes sense and is no failure; `well` is when it last did;
    `cut`: it ended before the server had come to its end; `closed`: the server said that it ends the stream in order.
    """

    def __init__(self, *, silence: float, max_envelope: int) -> None:
        self.heard = False
        self.well: float | None = None
        self.cut = False
        self.closed = False
        self._silence = silence
        self._parser = StreamParser(max_envelope=max_envelope)
        self._until = inf
        self._awaiting: trio.CancelScope | None = None

    def end_within(self, seconds: float) -> None:
        """Leaves it this long to come to its own end."""
        self._until = trio.current_time() + seconds
        if self._awaiting is not None:
            self._awaiting.deadline = min(self._awaiting.deadline, self._until)

    async def read(
        self,
        open_stream: Callable[[], Awaitable[Answer]],
        take: Callable[[Sequence[Signal]], Awaitable[None]],
    ) -> tuple[Failure, ...]:
        """Opens the stream, and hands on what has become complete, chunk by chunk. Returns why it ended: nothing if
        it did so in good order."""
        closed = False
        try:
            with self._patience(inf) as patience:
                answer = await open_stream()
            if patience.cancelled_caught:
                return self._given_up(closed=False)
            async with aclosing(answer):
                quiet = 0.0
                while True:
                    started_at = trio.current_time()
                    with self._patience((AFTER_CLOSED if closed else self._silence) - quiet) as patience:
                        data = await answer.receive()
                    quiet += trio.current_time() - started_at
                    if patience.cancelled_caught:
                        return self._given_up(closed=closed)
                    signals = self._parser.feed(data) if data else self._parser.end()
                    if signals:
                        quiet = 0.0
                        self.heard = self.heard or not isinstance(signals[0], Failure)
                    before = self.well
                    if self.heard and not all(isinstance(signal, Failure) for signal in signals):
                        self.well = trio.current_time()
                    try:
                        await take(signals)
                    except BaseException:
                        self.well = before  # what was not handed on is yet to come
                        raise
                    closed = self.closed = closed or any(isinstance(signal, Closed) for signal in signals)
                    failures = tuple(signal for signal in signals if isinstance(signal, Failure))
                    if failures or not data:
                        return failures
        except ExchangeError as error:
            if not closed:
                return (error.failure,)
            self.cut = bool(self._parser.end())  # what it was writing after that is lost
            return ()

    def _given_up(self, *, closed: bool) -> tuple[Failure, ...]:
        ending = self._until < inf
        self.cut = ending and not closed
        if closed or ending:
            return ()
        return (Failure(code="StreamSilent", text=f"nothing heard for {self._silence:g} s"),)

    @contextmanager
    def _patience(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Awaits what is inside so long at most, or as long as end_within() leaves it."""
        deadline = min(trio.current_time() + seconds, self._until)
        with trio.CancelScope(deadline=deadline) as self._awaiting:
            yield self._awaiting
        self._awaiting = None


# A server may write on after Closed, but not for long.
AFTER_CLOSED = 5.0
