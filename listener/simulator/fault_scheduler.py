"""Makes faults: when their time comes, or on demand.

`advance(now)` makes what is due and ends what has lasted long enough; `deadline` says when it wants to be called
again. `strike` is asked about each request. Each fault that is made is a line in the ledger.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, NamedTuple

from listener.simulator.directory import Directory
from listener.simulator.fault_effects import Disasters, Unfit, interfere
from listener.simulator.fault_plans import Entry
from listener.simulator.faults import (
    Cut,
    Fault,
    FaultError,
    OrganisationFault,
    RequestFault,
    SilentStream,
    Slow,
    StreamCode,
    StreamFault,
)
from listener.simulator.ledger import Ledger, Line
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions

_PATIENCE = 0.2
_REMEMBERED = 1000


class Scheduled(NamedTuple):
    """The next moment of an entry; the number keeps equal moments in order. `until` in Unix seconds."""

    time: float
    number: int
    entry: Entry
    later: Iterable[float]


class Armed:
    """A fault that waits for something to befall."""

    def __init__(self, fault: RequestFault | StreamFault, now: float) -> None:
        self.fault = fault
        self.left = fault.times if isinstance(fault, RequestFault) else 1
        self.lapses = None if fault.within is None else now + fault.within


class Held(NamedTuple):
    """A fault that lasts: what ends it, and when."""

    until: float
    undo: Callable[[], None]
    line: Line


class Chaos:
    """Faults in one organisation. `wake` is called when `deadline` has changed; `made` counts by kind, `recent` are
    the latest ledger lines."""

    def __init__(
        self,
        directory: Directory,
        subscriptions: Subscriptions,
        streams: Iterable[Stream],
        disasters: Disasters,
        ledger: Ledger,
        rng: Random,
    ) -> None:
        self.made: Counter[str] = Counter()
        self.recent: deque[Line] = deque(maxlen=_REMEMBERED)
        self.wake: Callable[[], None] = lambda: None
        self._directory = directory
        self._subscriptions = subscriptions
        self._streams = streams
        self._disasters = disasters
        self._ledger = ledger
        self._rng = rng
        self._numbers = count()
        self._schedule: list[Scheduled] = []
        self._armed: list[Armed] = []
        self._held: dict[tuple[str, str], Held] = {}

    # -- orders ----------------------------------------------------------------------------------------------

    def check(self, fault: Fault) -> None:
        """FaultError: it names a mailbox or a back end that is not there."""
        mailbox, backend = getattr(fault, "mailbox", ""), getattr(fault, "backend", "")
        if mailbox not in ("", "*") and self._directory.find(mailbox) is None:
            raise FaultError(f'{fault.kind}: no mailbox "{mailbox}"')
        if backend and self._directory.backend(backend) is None:
            names = ", ".join(each.partition(".")[0] for each in self._directory.backends)
            raise FaultError(f'{fault.kind}: no backend "{backend}"; there are {names}')

    def begin(self, plan: Iterable[Entry], now: float) -> None:
        """Make the faults of a plan that starts now, beside those of others. FaultError: see `check`."""
        plan = tuple(plan)
        for entry in plan:
            self.check(entry.fault)
        for entry in plan:
            rng = Random(self._rng.getrandbits(64))
            self._plan_next(entry, iter([now + moment for moment in entry.at] or _rate(entry, now, rng)))
        self.wake()

    def order(self, fault: Fault, now: float) -> list[Line]:
        """Make one fault now; what is told is empty if it waits for something to befall. FaultError: see `check`.
        Unfit: there is nothing that it could befall."""
        self.check(fault)
        lines: list[Line] = []
        if isinstance(fault, OrganisationFault):
            lines.append(self._disaster(fault, now))
        else:
            assert isinstance(fault, RequestFault | StreamFault)
            line = self._befall(fault, now) if _about_open_streams(fault) else None
            if line:
                lines.append(line)
            else:
                self._armed.append(Armed(fault, now))
        self.wake()
        return lines

    def stop(self) -> None:
        """Nothing more is to come, and what lasts ends now."""
        self._schedule.clear()
        self._armed.clear()
        held, self._held = self._held, {}
        for each in held.values():
            each.undo()
        self.wake()

    # -- time ------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `advance` has something to do, at the latest."""
        times = [each.until for each in self._held.values()]
        times += [each.lapses for each in self._armed if each.lapses is not None]
        if self._schedule:
            times.append(self._schedule[0].time)
        return min(times, default=float("inf"))

    @property
    def waiting(self) -> bool:
        """Whether a fault waits for a stream, so that `advance` is worth calling every few moments."""
        return any(_about_open_streams(each.fault) for each in self._armed)

    def advance(self, now: float) -> None:
        """Make what is due, end what is over."""
        if now < self.deadline and not self.waiting:
            return
        for key in [key for key, held in self._held.items() if held.until <= now]:
            self._held.pop(key).undo()
        while self._schedule and self._schedule[0].time <= now:
            due = heappop(self._schedule)
            self._plan_next(due.entry, due.later)
            try:
                self.order(due.entry.fault, now)
            except Unfit:
                continue
        waiting, self._armed = self._armed, []
        for armed in waiting:
            if armed.lapses is not None and now >= armed.lapses:
                continue
            if not (_about_open_streams(armed.fault) and self._befall(armed.fault, now)):
                self._armed.append(armed)

    def _plan_next(self, entry: Entry, moments: Any) -> None:
        time = next(moments, None)
        if time is not None:
            heappush(self._schedule, Scheduled(time, next(self._numbers), entry, moments))

    # -- requests --------------------------------------------------------------------------------------------

    def strike(self, operation: str, mailboxes: Callable[[], Iterable[str]], now: float) -> Fault | None:
        """The fault that this request meets, if it meets one. `mailboxes` gives the addresses that it is about."""
        if not self._armed:
            return None
        for armed in self._armed:
            fault = armed.fault
            if _about_open_streams(fault) or (armed.lapses is not None and now >= armed.lapses):
                continue
            wanted = getattr(fault, "operation", "")
            if (wanted or operation) != operation or (not wanted and operation == "Autodiscover"):
                continue
            concerned = list(mailboxes())
            if fault.mailbox and fault.mailbox.lower() not in concerned:
                continue
            armed.left -= 1
            if not armed.left:
                self._armed.remove(armed)
            address = concerned[0] if len(concerned) == 1 else fault.mailbox.lower()
            self._note(fault, now, mailbox=address, extra={"operation": operation})
            return fault
        return None

    # -- making ----------------------------------------------------------------------------------------------

    def _disaster(self, fault: OrganisationFault, now: float) -> Line:
        made = self._disasters.make(fault, now)
        line = self._note(
            fault, now, mailbox=made.mailbox, backend=made.backend, subscription=made.subscription
        )
        seconds = getattr(fault, "seconds", None)
        if made.undo and seconds is not None:
            self._hold((fault.kind, made.mailbox or made.backend or ""), now + seconds, made.undo, line)
        return line

    def _hold(self, key: tuple[str, str], until: float, undo: Callable[[], None], line: Line) -> None:
        """The same again while it lasts makes it last longer."""
        before = self._held.get(key)
        if before and before.until > until:
            until = before.until
        self._held[key] = Held(until, undo, line)

    def _befall(self, fault: RequestFault | StreamFault, now: float) -> Line | None:
        """Make it in an open stream, if there is one that fits."""
        assert isinstance(fault, StreamFault)
        mailbox, backend = fault.mailbox.lower(), self._directory.backend(fault.backend)
        found = [
            stream
            for stream in self._streams
            if not stream.ended
            and stream.manner is None
            and (not fault.backend or stream.backend == backend)
            and any(mailbox in ("", each.mailbox) for each in stream.subscriptions if not each.gone)
        ]
        if not found:
            return None
        stream = self._rng.choice(found)
        subscription: Subscription | None = None
        if mailbox or (isinstance(fault, StreamCode) and fault.ids == "one"):
            living = [each for each in stream.subscriptions if not each.gone]
            subscription = self._rng.choice([each for each in living if mailbox in ("", each.mailbox)])
        line = self._note(
            fault,
            now,
            mailbox=subscription.mailbox if subscription else "",
            backend=stream.backend,
            subscription=subscription.id if subscription else None,
        )
        interfere(fault, stream, subscription, self._subscriptions, now)
        if isinstance(fault, Slow | SilentStream) and fault.seconds is not None:

            def recover() -> None:
                if stream.manner is fault:
                    stream.misbehave(None)

            self._hold((fault.kind, str(id(stream))), now + fault.seconds, recover, line)
        return line

    def _note(
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
        line = self._ledger.enter_fault(
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

    # -- telling ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What was made, what lasts (with its end in Unix seconds), what waits, and when the next one is due."""
        return {
            "made": dict(sorted(self.made.items())),
            "recent": list(self.recent),
            "lasting": [{"until": held.until, "line": held.line} for held in self._held.values()],
            "waiting": [{"kind": each.fault.kind, **each.fault.parameters()} for each in self._armed],
            "next": self._schedule[0].time if self._schedule else None,
        }


def _about_open_streams(fault: Fault) -> bool:
    return isinstance(fault, StreamFault) and not (isinstance(fault, Slow | Cut) and fault.operation)


def _rate(entry: Entry, now: float, rng: Random) -> Iterable[float]:
    return (now + moment for moment in entry.moments(rng))
