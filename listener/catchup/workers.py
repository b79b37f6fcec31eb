"""Tasks that take mailboxes from a delay queue, work on them, and retry failures with backoff."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import structlog
import trio

from listener.backoff import Backoff
from listener.catchup.delay_queue import DelayQueue
from listener.catchup.mailbox_state import STUBBORN, MailboxState
from listener.ews.codes import ExchangeError, Failure, Verdict

log = structlog.get_logger()


class Work(Enum):
    """Decides which failures are counted together, and whether a success resets their number."""

    COMPARISON = "comparison"
    BUILD = "build"
    FIRST_SUBSCRIPTION = "first_subscription"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Serve delay queues. One task at a time works on a mailbox.

    `check_access` is called after a refusal. `longest_delay` returns the upper limit of delays after refusals, in
    seconds; `backoff` gives the delays after other failures.
    """

    mailbox_states: dict[str, MailboxState]
    check_access: Callable[[str, Failure], None]
    backoff: Backoff
    longest_delay: Callable[[], float]
    rng: random.Random

    async def serve(
        self, delay_queue: DelayQueue, do: Callable[[str, MailboxState], Awaitable[None]], work: Work
    ) -> None:
        """Work on the mailboxes that are due, until cancelled."""
        while True:
            mailbox = await delay_queue.take()
            state = self.mailbox_states.get(mailbox)
            if state is None:
                continue  # it was dropped while another task worked on it
            async with state.lock:
                try:
                    await do(mailbox, state)
                except ExchangeError as error:
                    self._retry_later(delay_queue, mailbox, state, work, error.failure)
                except Exception as error:  # a bug that one mailbox triggers must not stop the others
                    log.error("catchup.crashed", mailbox=mailbox, exc_info=error)
                    self._retry_later(delay_queue, mailbox, state, work, None)
                else:
                    _reset_failures(state, work)

    def _retry_later(
        self, delay_queue: DelayQueue, mailbox: str, state: MailboxState, work: Work, failure: Failure | None
    ) -> None:
        if failure is NO_STREAM:
            delay_queue.put(mailbox, trio.current_time() + WITHOUT_STREAM)  # CatchUp.resume() may come sooner
            return
        failures = _count_failure(state, work)
        fields = {} if failure is None else {"code": failure.code, "text": failure.text}
        if failure is not None and failure.verdict in (Verdict.SUSPEND, Verdict.STOP):
            log.warning("catchup.refused", mailbox=mailbox, **fields)
            self.check_access(mailbox, failure)
            delay = Backoff(REFUSED, 2.0, self.longest_delay()).longest(failures)
            delay_queue.put(mailbox, trio.current_time() + delay)
            return
        wait = None if failure is None else failure.wait
        delay = self.backoff.delay(failures, self.rng.random(), wait)
        delay_queue.put(mailbox, trio.current_time() + delay)
        level = log.info if failures < STUBBORN else log.warning
        level("catchup.failed", mailbox=mailbox, failures=failures, retry=round(delay, 3), **fields)


def _count_failure(state: MailboxState, work: Work) -> int:
    """Return the number of failures in a row, with this one."""
    if work is Work.BUILD:  # independent of comparisons
        state.build_failures += 1
        return state.build_failures
    state.failures += 1
    return state.failures


def _reset_failures(state: MailboxState, work: Work) -> None:
    if work is Work.BUILD:
        state.build_failures = 0
    elif work is Work.COMPARISON:
        state.failures = 0


# Raised instead of a request while a mailbox has no stream. It is not counted as a failure.
NO_STREAM = Failure(code="NoStream", text="its stream is not open")

# Seconds between two checks whether a mailbox has a stream, and the first delay after a refusal.
WITHOUT_STREAM, REFUSED = 30.0, 15.0
