"""Throttle: limits the concurrent requests of one account to one server, and pauses them when the server is busy.

A client cannot query the limits of a server (EWSMaxConcurrency, CAS budgets). So the throttle starts with the
configured limit, halves it when the server reports that it is busy, and raises it by one for every 10 seconds without
such a report. Source: "EWS throttling in Exchange", learn.microsoft.com.
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

RAISE_INTERVAL = 10.0
"""Seconds without a busy response after which the limit is raised by one."""
MIN_LIMIT = 2
"""The lowest limit, unless the configured one is lower."""
MAX_UNKNOWN_CODES = 100
"""Unknown codes of one server that are logged and remembered."""
DEFAULT_PAUSE = Backoff(first=1.0, factor=2.0, cap=60.0)
"""The pause after a busy response that names none."""


class Throttles:
    """The throttles of one account: one for each server, by the host of its URL."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.by_host: dict[str, Throttle] = {}

    def of(self, url: str) -> Throttle:
        """Return the throttle for requests to this URL."""
        host = server_of(url)
        return self.by_host.setdefault(host, Throttle(self.maximum))

    def change(self, maximum: int) -> None:
        """Set the configured limit of all servers."""
        self.maximum = maximum
        for throttle in self.by_host.values():
            throttle.change(maximum)

    @property
    def limit(self) -> int:
        """The lowest current limit of any server."""
        return min((throttle.limit for throttle in self.by_host.values()), default=self.maximum)

    @property
    def pause(self) -> float:
        """Seconds that remain of the longest pause of any server."""
        return max((throttle.pause for throttle in self.by_host.values()), default=0.0)


class Throttle:
    """Admits at most `maximum` requests at the same time, fewer while the server is busy, and none during a pause.

    Use it as an async context manager around each request, and report the result with succeeded() or failed().
    `answers` counts the results: "ok", a known code, or "other".
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.answers: Counter[str] = Counter()
        self._limiter = trio.CapacityLimiter(maximum)
        self._paused_until = -float("inf")
        self._raised_at = -float("inf")
        self._busy_in_a_row = 0
        self._unknown_codes: set[str] = set()
        self._stream_answered = trio.Event()

    @property
    def limit(self) -> int:
        """The number of requests that are admitted at the same time now."""
        return int(self._limiter.total_tokens)

    def change(self, maximum: int) -> None:
        """Set the configured limit. A limit that is lowered because the server is busy is not raised at once."""
        at_maximum = self.limit == self.maximum
        self.maximum = maximum
        self._limiter.total_tokens = maximum if at_maximum else min(self.limit, maximum)

    @property
    def pause(self) -> float:
        """Seconds that remain of the pause which the server asked for."""
        return max(0.0, self._paused_until - trio.current_time())

    async def __aenter__(self) -> None:
        await self._limiter.acquire()
        try:
            while self.pause:  # noqa: ASYNC110  (the pause may have been extended meanwhile)
                await trio.sleep_until(self._paused_until)
        except BaseException:
            self._limiter.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter.release()

    def succeeded(self) -> None:
        """Record a request that succeeded."""
        self._busy_in_a_row = 0
        self.answers["ok"] += 1
        now = trio.current_time()
        if self.limit < self.maximum and now - self._raised_at >= RAISE_INTERVAL:
            self._raised_at = now
            self._limiter.total_tokens = self.limit + 1

    def server_answered(self) -> None:
        """Record that a newly opened stream has delivered data."""
        self._stream_answered.set()
        self._stream_answered = trio.Event()

    async def wait_until_answered(self) -> None:
        """Return when the next newly opened stream has delivered data."""
        await self._stream_answered.wait()

    def failed(self, failure: Failure) -> None:
        """Record a request that failed."""
        self.answers[failure.code if failure.code in VERDICTS else "other"] += 1
        known = failure.code in VERDICTS or failure.code in self._unknown_codes
        if not known and len(self._unknown_codes) < MAX_UNKNOWN_CODES:
            self._unknown_codes.add(failure.code)
            log.warning("exchange.unknown_code", code=failure.code, text=failure.text)
        if failure.verdict is Verdict.WAIT:
            self._back_off(failure)

    def _back_off(self, failure: Failure) -> None:
        now = trio.current_time()
        if self.pause:  # this request was in flight when the pause began: do not halve the limit again
            self._paused_until = max(self._paused_until, now + (failure.wait or 0.0))
            return
        self._busy_in_a_row += 1
        seconds = failure.wait or DEFAULT_PAUSE.longest(self._busy_in_a_row)
        self._paused_until = now + seconds
        self._raised_at = self._paused_until
        self._limiter.total_tokens = max(min(MIN_LIMIT, self.maximum), self.limit // 2)
        log.warning("exchange.busy", code=failure.code, seconds=round(seconds, 3), concurrency=self.limit)
