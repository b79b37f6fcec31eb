"""Makes faults at their time or on demand.

`advance(now)` makes the faults that are due and ends those whose time has passed; `deadline` says when to call it
next. `match_request` is called for each request. Each fault is recorded in the ledger.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any, NamedTuple

from listener.simulator.directory import Directory
from listener.simulator.fault_effects import NoTarget, OrganizationFaultMaker, apply_stream_fault
from listener.simulator.fault_plans import Entry
from listener.simulator.faults import (
    Cut,
    Fault,
    FaultError,
    OrganizationFault,
    RequestFault,
    SilentStream,
    Slow,
    StreamCode,
    StreamFault,
)
from listener.simulator.ledger import Ledger, Line
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions

_RECENT_LINES = 1000


class ScheduledFault(NamedTuple):
    """The next time (Unix seconds) of a plan entry. `number` keeps equal times in order, `later` yields the
    following times."""

    time: float
    number: int
    entry: Entry
    later: Iterator[float]


class PendingFault:
    """A fault that waits for a matching request or stream."""

    def __init__(self, fault: RequestFault | StreamFault, now: float) -> None:
        self.fault = fault
        self.remaining = fault.times if isinstance(fault, RequestFault) else 1
        self.expires_at = inf if fault.within is None else now + fault.within


class LastingFault(NamedTuple):
    """A fault that lasts until `until`; `undo` ends it."""

    until: float
    undo: Callable[[], None]
    line: Line


class FaultScheduler:
    """The faults of one organization.

    `wake` is called when `deadline` has changed. `made` counts faults by kind, `recent` has the latest ledger
    lines.
    """

    def __init__(
        self,
        directory: Directory,
        subscriptions: Subscriptions,
        streams: Iterable[Stream],
        fault_maker: OrganizationFaultMaker,
        ledger: Ledger,
        rng: Random,
    ) -> None:
        self.made: Counter[str] = Counter()
        self.recent: deque[Line] = deque(maxlen=_RECENT_LINES)
        self.wake: Callable[[], None] = lambda: None
        self._directory = directory
        self._subscriptions = subscriptions
        self._streams = streams
        self._fault_maker = fault_maker
        self._ledger = ledger
        self._rng = rng
        self._numbers = count()
        self._schedule: list[ScheduledFault] = []
        self._pending: list[PendingFault] = []
        self._lasting: dict[tuple[str, str], LastingFault] = {}

    # -- start and stop --------------------------------------------------------------------------------------

    def check(self, fault: Fault) -> None:
        """Raise FaultError if the fault names an unknown mailbox or back end."""
        mailbox, backend = getattr(fault, "mailbox", ""), getattr(fault, "backend", "")
        if mailbox not in ("", "*") and self._directory.find(mailbox) is None:
            raise FaultError(f'{fault.kind}: unknown mailbox "{mailbox}"')
        if backend and self._directory.backend(backend) is None:
            names = ", ".join(each.partition(".")[0] for each in self._directory.backends)
            raise FaultError(f'{fault.kind}: unknown back end "{backend}"; known back ends: {names}')

    def start_plan(self, plan: Iterable[Entry], now: float) -> None:
        """Start a plan, in addition to running ones. Raises FaultError; see `check`."""
        plan = tuple(plan)
        for entry in plan:
            self.check(entry.fault)
        for entry in plan:
            rng = Random(self._rng.getrandbits(64))
            self._schedule_next(entry, (now + moment for moment in entry.moments(rng)))
        self.wake()

    def make_now(self, fault: Fault, now: float) -> list[Line]:
        """Make one fault now and return its ledger lines; none if it waits for a request or stream.

        Raises FaultError (see `check`), or NoTarget if nothing exists that it could be applied to.
        """
        self.check(fault)
        lines: list[Line] = []
        if isinstance(fault, OrganizationFault):
            lines.append(self._apply_organization_fault(fault, now))
        else:
            assert isinstance(fault, RequestFault | StreamFault)
            line = self._apply_to_stream(fault, now) if _targets_open_stream(fault) else None
            if line:
                lines.append(line)
            else:
                self._pending.append(PendingFault(fault, now))
        self.wake()
        return lines

    def stop(self) -> None:
        """Cancel all future faults and end those that last."""
        self._schedule.clear()
        self._pending.clear()
        lasting, self._lasting = self._lasting, {}
        for each in lasting.values():
            each.undo()
        self.wake()

    # -- time ------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """The latest time to call `advance` again, in Unix seconds."""
        times = [each.until for each in self._lasting.values()]
        times += [each.expires_at for each in self._pending]
        if self._schedule:
            times.append(self._schedule[0].time)
        return min(times, default=inf)

    @property
    def waits_for_stream(self) -> bool:
        """Whether a fault waits for a stream. Then `advance` must be called frequently."""
        return any(_targets_open_stream(each.fault) for each in self._pending)

    def advance(self, now: float) -> None:
        """Make the faults that are due and end those whose time has passed."""
        if now < self.deadline and not self.waits_for_stream:
            return
        for key in [key for key, lasting in self._lasting.items() if lasting.until <= now]:
            self._lasting.pop(key).undo()
        while self._schedule and self._schedule[0].time <= now:
            due = heappop(self._schedule)
            self._schedule_next(due.entry, due.later)
            try:
                self.make_now(due.entry.fault, now)
            except NoTarget:
                continue
        waiting, self._pending = self._pending, []
        for pending in waiting:
            if now >= pending.expires_at:
                continue
            if not (_targets_open_stream(pending.fault) and self._apply_to_stream(pending.fault, now)):
                self._pending.append(pending)

    def _schedule_next(self, entry: Entry, moments: Iterator[float]) -> None:
        time = next(moments, None)
        if time is not None:
            heappush(self._schedule, ScheduledFault(time, next(self._numbers), entry, moments))

    # -- requests --------------------------------------------------------------------------------------------

    def match_request(
        self, operation: str, mailboxes: Callable[[], Iterable[str]], now: float
    ) -> Fault | None:
        """Return the fault that applies to this request, or None.

        `mailboxes` returns the addresses of the mailboxes that the request is about.
        """
        if not self._pending:
            return None
        for pending in self._pending:
            fault = pending.fault
            if _targets_open_stream(fault) or now >= pending.expires_at:
                continue
            wanted = getattr(fault, "operation", "")
            if (wanted or operation) != operation or (not wanted and operation == "Autodiscover"):
                continue
            affected = list(mailboxes())
            if fault.mailbox and fault.mailbox.lower() not in affected:
                continue
            pending.remaining -= 1
            if not pending.remaining:
                self._pending.remove(pending)
            address = affected[0] if len(affected) == 1 else fault.mailbox.lower()
            self._record(fault, now, mailbox=address, extra={"operation": operation})
            return fault
        return None

    # -- apply faults ----------------------------------------------------------------------------------------

    def _apply_organization_fault(self, fault: OrganizationFault, now: float) -> Line:
        applied = self._fault_maker.make(fault, now)
        line = self._record(
            fault, now, mailbox=applied.mailbox, backend=applied.backend, subscription=applied.subscription
        )
        seconds = getattr(fault, "seconds", None)
        if applied.undo and seconds is not None:
            self._track(
                (fault.kind, applied.mailbox or applied.backend or ""), now + seconds, applied.undo, line
            )
        return line

    def _track(self, key: tuple[str, str], until: float, undo: Callable[[], None], line: Line) -> None:
        """Track a lasting fault. Making the same fault again extends it."""
        before = self._lasting.get(key)
        if before and before.until > until:
            until = before.until
        self._lasting[key] = LastingFault(until, undo, line)

    def _apply_to_stream(self, fault: RequestFault | StreamFault, now: float) -> Line | None:
        """Apply the fault to a matching open stream. Return None if there is none."""
        assert isinstance(fault, StreamFault)
        mailbox, backend = fault.mailbox.lower(), self._directory.backend(fault.backend)
        found = [
            stream
            for stream in self._streams
            if not stream.ended
            and stream.fault is None
            and (not fault.backend or stream.backend == backend)
            and any(mailbox in ("", each.mailbox) for each in stream.subscriptions if not each.gone)
        ]
        if not found:
            return None
        stream = self._rng.choice(found)
        subscription: Subscription | None = None
        if mailbox or (isinstance(fault, StreamCode) and fault.ids == "one"):
            active = [each for each in stream.subscriptions if not each.gone]
            subscription = self._rng.choice([each for each in active if mailbox in ("", each.mailbox)])
        line = self._record(
            fault,
            now,
            mailbox=subscription.mailbox if subscription else "",
            backend=stream.backend,
            subscription=subscription.id if subscription else None,
        )
        apply_stream_fault(fault, stream, subscription, self._subscriptions, now)
        if isinstance(fault, Slow | SilentStream) and fault.seconds is not None:

            def recover() -> None:
                if stream.fault is fault:
                    stream.set_fault(None)

            self._track((fault.kind, str(id(stream))), now + fault.seconds, recover, line)
        return line

    def _record(
        self,
        fault: Fault,
        now: float,
        *,
        mailbox: str = "",
        backend: str | None = None,
        subscription: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Line:
        parameters = {**fault.parameters(), **(extra or {})}
        line = self._ledger.record_fault(
            fault.kind,
            now,
            mailbox=mailbox,
            backend=backend,
            subscription=subscription,
            parameters=parameters,
        )
        self.made[fault.kind] += 1
        self.recent.append(line)
        return line

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the faults that were made, last (`until` in Unix seconds) or are pending, and when the next
        one is due."""
        return {
            "made": dict(sorted(self.made.items())),
            "recent": list(self.recent),
            "lasting": [{"until": lasting.until, "line": lasting.line} for lasting in self._lasting.values()],
            "waiting": [{"kind": each.fault.kind, **each.fault.parameters()} for each in self._pending],
            "next": self._schedule[0].time if self._schedule else None,
        }


def _targets_open_stream(fault: Fault) -> bool:
    return isinstance(fault, StreamFault) and not (isinstance(fault, Slow | Cut) and fault.operation)
