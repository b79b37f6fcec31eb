"""Streaming subscriptions, one table per back end, and the streams that read them (MS-OXWSNTIF).

Rules that clients must know:

- A subscription belongs to the account that made it, and to the back end that answered.
- Events are queued while there is no stream, up to a limit. One more, and the subscription is lost
  (ErrorMissedNotificationEvents). Without a stream it expires after some minutes.
- The newest stream wins. It ends an older stream with the same subscription, after that one has written all events
  that were queued until then (ErrorNewEventStreamConnectionOpened).
- If one subscription of a stream fails, the others on the same stream get no more events.
- Ids restart at 1 when a back end restarts, so an old id may name another subscription.
"""

from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from listener.simulator import responses
from listener.simulator.faults import Fault
from listener.simulator.mailstore import Event, Mailbox
from listener.simulator.responses import Failure
from listener.simulator.settings import Limits, StreamFormat

EVENTS_PER_NOTIFICATION = 50
_CHUNK = 1 << 18
_PREFIXES = (
    ("s", responses.Prefixes("m", "t")),
    ("soap", responses.Prefixes("msg", "typ")),
    ("SOAP", responses.Prefixes("ns1", "ns2")),
)


class Subscription:
    """A subscription of one account to one mailbox. `folders` None means all folders."""

    def __init__(
        self,
        id_: str,
        backend: str,
        mailbox: Mailbox,
        owner: str,
        budget_owner: str,
        kinds: frozenset[str],
        folders: frozenset[str] | None,
        now: float,
    ) -> None:
        self.id = id_
        self.backend = backend
        self.mailbox = mailbox.address
        self.owner = owner
        self.budget_owner = budget_owner
        self.kinds = kinds
        self.folders = folders
        self.queue: deque[Event] = deque()
        self.failure: str | None = None
        self.silent = False
        self.gone = False
        self.stream: Stream | None = None
        self.idle_since = now

    def wants(self, event: Event) -> bool:
        """Return whether the subscription includes the event's kind and folder."""
        if event.kind not in self.kinds:
            return False
        return self.folders is None or not self.folders.isdisjoint(
            (event.parent_folder_id, event.folder_id, event.old_parent_folder_id)
        )


class Subscriptions:
    """The tables of all back ends."""

    def __init__(self, backends: Iterable[str], limits: Limits, *, counted_ids: bool = False) -> None:
        self.tables: dict[str, dict[str, Subscription]] = {backend: {} for backend in backends}
        self._limits = limits
        self._counted_ids = counted_ids
        self._issued = dict.fromkeys(self.tables, 0)
        self._by_mailbox: dict[str, list[Subscription]] = {}

    def __iter__(self) -> Iterator[Subscription]:
        return (subscription for table in self.tables.values() for subscription in table.values())

    def add(
        self,
        backend: str,
        mailbox: Mailbox,
        owner: str,
        budget_owner: str,
        kinds: frozenset[str],
        folders: frozenset[str] | None,
        now: float,
    ) -> Subscription:
        """Create a subscription on that back end. Raises Failure if the mailbox has reached its limit."""
        if len(self._by_mailbox.get(mailbox.address, ())) >= self._limits.subscriptions:
            raise Failure("ErrorExceededSubscriptionCount")
        self._issued[backend] += 1
        number = self._issued[backend]
        id_ = str(number) if self._counted_ids else _subscription_id(backend, mailbox, number)
        subscription = Subscription(id_, backend, mailbox, owner, budget_owner, kinds, folders, now)
        self.tables[backend][id_] = subscription
        self._by_mailbox.setdefault(mailbox.address, []).append(subscription)
        return subscription

    def find(self, backend: str, id_: str, account: str) -> Subscription:
        """Return the subscription with that id for its owner.

        Raises Failure: ErrorSubscriptionNotFound, ErrorSubscriptionAccessDenied, or the subscription's own
        failure.
        """
        subscription = self.tables[backend].get(id_)
        if subscription is None:
            raise Failure("ErrorSubscriptionNotFound")
        if subscription.owner != account:
            raise Failure("ErrorSubscriptionAccessDenied")
        if subscription.failure:
            self.remove(subscription, subscription.failure)
            raise Failure(subscription.failure)
        return subscription

    def for_mailbox(self, mailbox: str) -> list[Subscription]:
        """Return the subscriptions to a mailbox."""
        return list(self._by_mailbox.get(mailbox, ()))

    def drop(self, subscription: Subscription) -> None:
        """Remove it without a message on its stream."""
        del self.tables[subscription.backend][subscription.id]
        self._by_mailbox[subscription.mailbox].remove(subscription)
        subscription.gone = True

    def restart(self, backend: str) -> None:
        """Drop all subscriptions of the back end and restart its ids at 1."""
        for subscription in list(self.tables[backend].values()):
            self.drop(subscription)
        self._issued[backend] = 0

    def remove(self, subscription: Subscription, reason: str) -> None:
        """Remove it. Its stream sends `reason`, a response code."""
        self.drop(subscription)
        subscription.failure = reason
        if subscription.stream:
            subscription.stream.mark_ready(subscription)

    def publish(self, event: Event) -> None:
        """Queue the event for every subscription that includes it."""
        overflowing = []
        for subscription in self._by_mailbox.get(event.mailbox, ()):
            if subscription.failure or subscription.silent or not subscription.wants(event):
                continue
            if len(subscription.queue) >= self._limits.queued_events:
                overflowing.append(subscription)
                continue
            subscription.queue.append(event)
            if subscription.stream:
                subscription.stream.mark_ready(subscription)
        for subscription in overflowing:
            self.overflow(subscription)

    def overflow(self, subscription: Subscription) -> None:
        """Discard its queue and end the subscription."""
        subscription.queue.clear()
        if subscription.stream:
            self.remove(subscription, "ErrorMissedNotificationEvents")
        else:
            # It stays in its table until the next request for it, which must get the error.
            subscription.failure = "ErrorMissedNotificationEvents"

    def expire(self, now: float) -> None:
        """Remove the subscriptions that had no stream for too long."""
        idle_limit = self._limits.idle_minutes * 60
        for subscription in list(self):
            if subscription.stream is None and now - subscription.idle_since >= idle_limit:
                self.remove(subscription, "ErrorSubscriptionNotFound")

    def queued(self) -> int:
        """Return the number of events that no stream has written yet."""
        return sum(len(subscription.queue) for subscription in self)


class Stream:
    """One open GetStreamingEvents response.

    `take(now)` returns the bytes to write now. `deadline` is when it has data even without a new event;
    `wake` is called when there is data at once. When `ended` is true and all data is taken, the body is
    complete. Call `close(now)` at the end, also after a disconnect. `fault` is a fault that the connection
    applies to it (faults.py).
    """

    def __init__(
        self,
        backend: str,
        account: str,
        subscriptions: Sequence[Subscription],
        now: float,
        *,
        window: float,
        heartbeat: float,
        stream_format: StreamFormat,
        rng: Random,
    ) -> None:
        self.backend = backend
        self.account = account
        self.subscriptions = list(subscriptions)
        self.ended = False
        self.fault: Fault | None = None
        self.wake: Callable[[], None] = lambda: None
        self._closes = now + window
        self._next_heartbeat = now
        self._heartbeat = heartbeat
        self._format = stream_format
        self._rng = rng
        self._outbox: list[bytes] = []
        self._suppress_events = False
        self._send_closed = True
        self._ready: dict[Subscription, None] = {}
        for subscription in self.subscriptions:
            if subscription.stream:
                subscription.stream.supersede(now)
            subscription.stream = self
            if subscription.queue:
                self._ready[subscription] = None

    @property
    def deadline(self) -> float:
        """The latest time at which `take` has data."""
        if self._outbox or (self._ready and not self._suppress_events) or self.ended:
            return 0.0
        return min(self._next_heartbeat, self._closes)

    def mark_ready(self, subscription: Subscription) -> None:
        """Note that the subscription has events or has failed."""
        self._ready[subscription] = None
        if not self._suppress_events:
            self.wake()

    def take(self, now: float) -> bytes:
        """Return the bytes to write now. A long queue needs several calls."""
        pieces, self._outbox = self._outbox, []
        if not self.ended:
            if now >= self._next_heartbeat:
                pieces.append(self._heartbeat_envelope())
                self._next_heartbeat = now + self._heartbeat
            if not self._suppress_events:
                pieces += self._pending_envelopes(_CHUNK)
            if now >= self._closes and not self.ended and (self._suppress_events or not self._ready):
                if self._send_closed:
                    pieces.append(self._status("Closed"))
                self.ended = True
        return b"".join(pieces)

    def report_failed_ids(self, failed: dict[str, list[str]]) -> None:
        """Report ids that cannot be read (response code -> ids). The other subscriptions get no more events."""
        for code, ids in failed.items():
            self._outbox.append(self._failure(code, ids))
        if self._format.ends_after_bad_id or not self.subscriptions:
            self.ended = True
        self._suppress_events = True
        self.wake()

    def supersede(self, now: float) -> None:
        """Write what is queued, then end: another stream reads the subscription now."""
        if not self.ended:
            if not self._suppress_events:
                self._outbox += self._pending_envelopes(1 << 62)
            self._outbox.append(self._failure("ErrorNewEventStreamConnectionOpened", []))
            self.ended = True
        self.close(now)
        self.wake()

    def close(self, now: float) -> None:
        """Detach the subscriptions."""
        for subscription in self.subscriptions:
            if subscription.stream is self:
                subscription.stream = None
                subscription.idle_since = now
        self.subscriptions = []
        self._ready.clear()
        self.ended = True

    # -- faults ----------------------------------------------------------------------------------------------

    def set_fault(self, fault: Fault | None) -> None:
        """Let the connection apply this fault from now on; None ends it."""
        self.fault = fault
        self.wake()

    def enqueue(self, data: bytes) -> None:
        """Queue these bytes."""
        self._outbox.append(data)
        self.wake()

    def fail(self, code: str, ids: list[str], *, ends: bool) -> None:
        """Send a failure. After it only heartbeats follow."""
        self.enqueue(self._failure(code, ids))
        self._suppress_events = True
        self.ended = self.ended or ends

    def close_early(self, now: float, then: str, seconds: float) -> None:
        """Send `Closed`, then end, send it again ("closed"), or continue with events for some seconds
        ("events")."""
        if not self._suppress_events:
            self._outbox += self._pending_envelopes(1 << 62)
        self.enqueue(self._status("Closed"))
        if then == "events":
            self._send_closed = False
            self._closes = now + seconds
            return
        if then == "closed":
            self._outbox.append(self._status("Closed"))
        self.ended = True

    def heartbeat_with_text(self, text: str = "") -> bytes:
        """Return a heartbeat with this MessageText, unescaped."""
        return self._status("OK", text)

    # -- internal --------------------------------------------------------------------------------------------

    def _pending_envelopes(self, limit: int) -> list[bytes]:
        """Return envelopes for the queued events, at most about `limit` bytes, followed by those for
        failures."""
        envelopes: list[bytes] = []
        combined: list[str] = []
        size = 0
        failed: dict[str, list[str]] = {}
        names, prefix, tag_in = self._prefixes()
        while self._ready and size < limit:
            subscription = next(iter(self._ready))
            queue = subscription.queue
            if queue:
                events = [queue.popleft() for _ in range(min(len(queue), EVENTS_PER_NOTIFICATION))]
                combined.append(
                    responses.notification(
                        subscription.id, events, more=bool(queue), names=names, tag_in=tag_in
                    )
                )
                size += len(combined[-1])
                if queue or not self._chance(self._format.combined):
                    envelopes.append(self._notifications(combined, names, prefix))
                    combined = []
            if not queue:
                del self._ready[subscription]
                if subscription.failure:
                    failed.setdefault(subscription.failure, []).append(subscription.id)
                    self.subscriptions.remove(subscription)
                    subscription.stream = None
        if combined:
            envelopes.append(self._notifications(combined, names, prefix))
        for code, ids in failed.items():
            envelopes.append(self._failure(code, ids))
            if code != "ErrorSubscriptionUnsubscribed":
                self._suppress_events = True
                self.ended = self.ended or self._format.ends_after_bad_id
        self.ended = self.ended or not self.subscriptions
        return envelopes

    def _prefixes(self) -> tuple[responses.Prefixes, str, str]:
        prefix, names = self._rng.choice(_PREFIXES) if self._format.prefixes else ("", responses.EXCHANGE)
        return names, prefix, names.t if self._format.notification_in_types else ""

    def _chance(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def _envelope(self, message: str, names: responses.Prefixes, prefix: str) -> bytes:
        content = responses.response("GetStreamingEvents", [message], names)
        declaration = self._chance(self._format.declaration)
        return responses.stream_envelope(content, prefix=prefix, declaration=declaration)

    def _notifications(self, notifications: list[str], names: responses.Prefixes, prefix: str) -> bytes:
        m = names.m
        content = f"<{m}:Notifications>{''.join(notifications)}</{m}:Notifications>"
        return self._envelope(responses.success("GetStreamingEvents", content, names), names, prefix)

    def _heartbeat_envelope(self) -> bytes:
        if self.subscriptions and self._chance(self._format.status_events):
            names, prefix, tag_in = self._prefixes()
            beats = [
                responses.status_notification(subscription.id, names=names, tag_in=tag_in)
                for subscription in self.subscriptions
            ]
            return self._notifications(beats, names, prefix)
        return self._status("OK")

    def _status(self, status: str, message_text: str = "") -> bytes:
        names, prefix, _ = self._prefixes()
        content = f"<{names.m}:ConnectionStatus>{status}</{names.m}:ConnectionStatus>"
        message = responses.success("GetStreamingEvents", content, names, message_text=message_text)
        return self._envelope(message, names, prefix)

    def _failure(self, code: str, ids: list[str]) -> bytes:
        names, prefix, _ = self._prefixes()
        content = responses.error_subscription_ids(ids, names)
        message = responses.error("GetStreamingEvents", Failure(code), content, names)
        return self._envelope(message, names, prefix)


def _subscription_id(backend: str, mailbox: Mailbox, number: int) -> str:
    """Return base64 of: length and name of the server, length and GUID of the mailbox, the number."""
    name = backend.encode()
    raw = len(name).to_bytes(2, "little") + name + (16).to_bytes(4, "little") + mailbox.guid.bytes_le
    return b64encode(raw + number.to_bytes(8, "little")).decode()
