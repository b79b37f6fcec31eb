"""How much one account may ask of one server: requests side by side, and pauses that all of them keep.

The limits that a server sets its clients (EWSMaxConcurrency, CAS budgets) can't be asked for. So the listener starts
with the configured number, halves it when the server says that it is busy, and adds one for every ten
quiet seconds. Source: "EWS throttling in Exchange", learn.microsoft.com.
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType

import structlog
import trio

from listener.backoff import Backoff
from listener.ews.codes import VERDICTS, Failure, Verdict
from listener.ews.urls import server_of

log = structlog.get_logger()

QUIET = 10.0
FEWEST = 2
MOST_UNKNOWN = 100
"""Unknown codes of one server that are logged and remembered."""
OWN_PAUSE = Backoff(first=1.0, factor=2.0, cap=60.0)


class Throttles:
    """The budgets of one account: one for each server, by the host of its URL."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_host: dict[str, Throttle] = {}

    def of(self, url: str) -> Throttle:
        """The budget for requests to this URL."""
        host = server_of(url)
        return self.by_host.setdefault(host, Throttle(self.most))

    def change(self, most: int) -> None:
        """From now on so many requests side by side are admitted for each server."""
        self.most = most
        for throttle in self.by_host.values():
            throttle.change(most)

    @property
    def limit(self) -> int:
        """The fewest requests side by side that any server is asked now."""
        return min((throttle.limit for throttle in self.by_host.values()), default=self.most)

    @property
    def pause(self) -> float:
        """How many seconds any of the servers wants to be left alone still."""
        return max((throttle.pause for throttle in self.by_host.values()), default=0.0)


class Throttle:
    """Admits `most` requests at a time, fewer while the server is busy, and none while it asked for a pause.

    Use it as an async context manager around each request; tell it how the request went. `answers` counts what came
    of them: "ok", a known code, or "other".
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.answers: Counter[str] = Counter()
        self._limiter = trio.CapacityLimiter(most)
        self._paused_until = -float("inf")
        self._raised_at = -float("inf")
        self._busy = 0
        self._unknown: set[str] = set()
        self._heard = trio.Event()

    @property
    def limit(self) -> int:
        """How many requests are admitted at a time now."""
        return int(self._limiter.total_tokens)

    def change(self, most: int) -> None:
        """From now on so many are admitted at most; fewer still while the server is busy."""
        unhindered = self.limit == self.most
        self.most = most
        self._limiter.total_tokens = most if unhindered else min(self.limit, most)

    @property
    def pause(self) -> float:
        """How many seconds the server wants to be left alone still."""
        return max(0.0, self._paused_until - trio.current_time())

    async def __aenter__(self) -> None:
        await self._limiter.acquire()
        try:
            while self.pause:  # noqa: ASYNC110  (it may have been prolonged meanwhile)
                await trio.sleep_until(self._paused_until)
        except BaseException:
            self._limiter.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter.release()

    def went_well(self) -> None:
        """A request was answered as it should be."""
        self._busy = 0
        self.answers["ok"] += 1
        now = trio.current_time()
        if self.limit < self.most and now - self._raised_at >= QUIET:
            self._raised_at = now
            self._limiter.total_tokens = self.limit + 1

    def server_answered(self) -> None:
        """A stream has been opened, and the server says something on it."""
        self._heard.set()
        self._heard = trio.Event()

    async def wait_until_answered(self) -> None:
        """Returns when the server is heard on a stream that has just been opened."""
        await self._heard.wait()

    def failed(self, failure: Failure) -> None:
        """A request came to nothing."""
        self.answers[failure.code if failure.code in VERDICTS else "other"] += 1
        known = failure.code in VERDICTS or failure.code in self._unknown
        if not known and len(self._unknown) < MOST_UNKNOWN:
            self._unknown.add(failure.code)
            log.warning("exchange.unknown_code", code=failure.code, text=failure.text)
        if failure.verdict is Verdict.WAIT:
            self._back_off(failure)

    def _back_off(self, failure: Failure) -> None:
        now = trio.current_time()
        if self.pause:  # one of those that were under way when the server first said so
            self._paused_until = max(self._paused_until, now + (failure.wait or 0.0))
            return
        self._busy += 1
        seconds = failure.wait or OWN_PAUSE.longest(self._busy)
        self._paused_until = now + seconds
        self._raised_at = self._paused_until
        self._limiter.total_tokens = max(min(FEWEST, self.most), self.limit // 2)
        log.warning("exchange.busy", code=failure.code, seconds=round(seconds, 3), concurrency=self.limit)
