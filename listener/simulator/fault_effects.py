"""What faults do: to the response to a request, to an open stream, to a mailbox, a back end or the organization."""

from collections.abc import Callable
from email.utils import formatdate
from random import Random
from typing import NamedTuple
from uuid import UUID

import msgspec

from listener.simulator import faults, responses
from listener.simulator.directory import Directory
from listener.simulator.faults import (
    AccountLocked,
    AutodiscoverFailure,
    BadCertificate,
    BufferedStreams,
    ClaimsChallenge,
    ClockOff,
    EwsDisabled,
    Fault,
    HangUp,
    OrganizationFault,
    Outage,
    StreamFault,
    Throttled,
    TlsOffloaded,
    TokenRefused,
)
from listener.simulator.http import Reply, page
from listener.simulator.mailstore import Mailbox
from listener.simulator.responses import Failure
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions


class Conditions(msgspec.Struct):
    """The lasting faults that are in effect. Empty without faults.

    The keys of the dictionaries are addresses, their values response codes; `withdrawn` may have the key `*`.
    The back ends in `down` keep their mailboxes but cannot serve them.
    """

    disabled: dict[str, str] = msgspec.field(default_factory=dict)
    withdrawn: dict[str, str] = msgspec.field(default_factory=dict)
    moving: dict[str, str] = msgspec.field(default_factory=dict)
    down: set[str] = msgspec.field(default_factory=set)
    outage: Outage | None = None
    buffered: BufferedStreams | None = None
    throttled: Throttled | None = None
    discovery: AutodiscoverFailure | None = None
    certificate: BadCertificate | None = None
    locked: AccountLocked | None = None
    token_refused: TokenRefused | None = None
    claims: ClaimsChallenge | None = None
    ews_disabled: EwsDisabled | None = None
    offloaded: TlsOffloaded | None = None
    clock: ClockOff | None = None

    def refusal(self, address: str) -> str | None:
        """Return the response code that refuses impersonation of this mailbox, or None."""
        return self.disabled.get(address) or self.withdrawn.get(address) or self.withdrawn.get("*")

    def clear(self, fault: Fault) -> None:
        """End this fault, unless another one has replaced it."""
        for name in self.__struct_fields__:
            if getattr(self, name) is fault:
                setattr(self, name, None)

    def server_time(self, now: float) -> float:
        """Return the time on the servers' clocks when the real time is `now`."""
        return now + (self.clock.offset if self.clock else 0.0)


_LOGIN = b"""<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>Sign in</title></head><body><h1>Sign in</h1>
<form method="post" action="/login"><input name="user"><input name="password" type="password"><br>
<button>Sign in</button></form></body></html>
"""
_TITLES = {
    302: "Found",
    401: "Unauthorized",
    403: "Forbidden",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def faulty_reply(
    fault: Fault, operation: str, ids: list[str], host: str, now: float, respond: Callable[[], Reply]
) -> Reply:
    """Return the reply to a request that the fault applies to.

    `ids` are the SubscriptionIds of the request. `respond` returns the normal reply, for faults that only
    change how it is sent.
    """
    match fault:
        case faults.ResponseCode():
            return _response_code(fault, operation, ids)
        case faults.Http():
            return _http_error(fault, host, now)
        case faults.LoginPage():
            return Reply(200, _LOGIN, content_type="text/html; charset=utf-8")
        case faults.StrayResponse():
            reply = Reply(500, responses.fault(Failure(fault.code)))
        case faults.NoAnswer() | faults.HangUp():
            reply = Reply(500, b"")
        case _:
            reply = respond()
    reply.fault = fault
    return reply


def _response_code(fault: faults.ResponseCode, operation: str, ids: list[str]) -> Reply:
    values = {} if fault.back_off_ms is None else {"BackOffMilliseconds": str(fault.back_off_ms)}
    failure = Failure(fault.code, values=values)
    if fault.place == "fault":
        return Reply(fault.status, responses.fault(failure))
    if fault.place == "faultcode":
        return Reply(fault.status, responses.fault(failure, detail=False))
    content = responses.ERROR_CONTENT.get(operation, "")
    if operation == "GetStreamingEvents" and fault.ids != "none":
        content = responses.error_subscription_ids(ids[:1] if fault.ids == "one" else ids)
    message = responses.error(operation, failure, content)
    return Reply(200, responses.envelope(responses.response(operation, [message])))


def _http_error(fault: faults.Http, host: str, now: float) -> Reply:
    headers: list[tuple[str, str]] = []
    if fault.status == 401:
        headers.append(("WWW-Authenticate", f'Basic realm="{host}"'))
    if fault.status == 403 and fault.policy_reason:
        headers.append(("X-EWS-Policy-Reason", fault.policy_reason))
    if fault.status < 400:
        headers.append(("Location", fault.location))
    if fault.status == 451:
        headers.append(("X-MS-Location", fault.location))
    if fault.retry_after is not None:
        date = formatdate(now + fault.retry_after, usegmt=True)
        headers.append(("Retry-After", date if fault.retry_after_date else str(fault.retry_after)))
    return page(fault.status, _TITLES.get(fault.status, "Error"), headers)


# Codes that say that the subscription no longer exists: "ResponseCode", learn.microsoft.com.
LOST = frozenset(
    (
        "ErrorSubscriptionNotFound",
        "ErrorInvalidSubscription",
        "ErrorExpiredSubscription",
        "ErrorEventNotFound",
        "ErrorInvalidWatermark",
        "ErrorSubscriptionUnsubscribed",
        "ErrorProxiedSubscriptionCallFailure",
        "ErrorMissedNotificationEvents",
        "ErrorReadEventsFailed",
    )
)
_ENTITY_LEVELS = 9


def apply_stream_fault(
    fault: StreamFault, stream: Stream, subscription: Subscription | None, table: Subscriptions, now: float
) -> None:
    """Apply the fault to this stream. `subscription` is the one that it concerns, or None."""
    match fault:
        case faults.StreamCode():
            _send_stream_code(fault, stream, subscription, table)
        case faults.Closed():
            stream.close_early(now, fault.then, fault.seconds)
        case faults.Padding():
            stream.enqueue(stream.heartbeat_with_text("x" * round(fault.megabytes * 1_000_000)))
        case faults.InvalidCharacters(form="reference"):
            stream.enqueue(stream.heartbeat_with_text("here&#x0;and&#x1F;there"))
        case faults.InvalidCharacters(form="control"):
            stream.enqueue(stream.heartbeat_with_text("here\x00and\x1fthere"))
        case faults.InvalidCharacters():
            stream.enqueue(stream.heartbeat_with_text("here@there").replace(b"@", b"\xc3\x28\xff"))
        case faults.Doctype():
            stream.enqueue(
                _add_doctype(
                    stream.heartbeat_with_text("&laugh;" if fault.bomb else "&word;"), bomb=fault.bomb
                )
            )
        case _:
            stream.set_fault(fault)


def _send_stream_code(
    fault: faults.StreamCode, stream: Stream, subscription: Subscription | None, table: Subscriptions
) -> None:
    existing = [each for each in stream.subscriptions if not each.gone]
    affected = existing if fault.ids == "all" or subscription is None else [subscription]
    ids = [] if fault.ids == "none" else [each.id for each in affected]
    if fault.code in LOST:
        for each in affected:
            table.drop(each)
    stream.fail(fault.code, ids, ends=fault.ends)


def _add_doctype(envelope: bytes, *, bomb: bool) -> bytes:
    if bomb:
        entities = '<!ENTITY l0 "ha">' + "".join(
            f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, _ENTITY_LEVELS + 1)
        )
        entities += f'<!ENTITY laugh "&l{_ENTITY_LEVELS};">'
    else:
        entities = '<!ENTITY word "a word">'
    declaration, mark, rest = envelope.rpartition(b"?>")
    return declaration + mark + f"<!DOCTYPE Envelope [{entities}]>".encode() + rest


class NoTarget(Exception):  # noqa: N818
    """Nothing exists now that the fault could be applied to. The text says what is missing."""


class AppliedFault(NamedTuple):
    """What a fault was applied to. `undo` ends a lasting fault."""

    mailbox: str = ""
    backend: str | None = None
    subscription: str | None = None
    undo: Callable[[], None] | None = None


class OrganizationFaultMaker:
    """Applies OrganizationFaults."""

    def __init__(
        self,
        directory: Directory,
        subscriptions: Subscriptions,
        streams: dict[Stream, None],
        conditions: Conditions,
        rng: Random,
        *,
        tls: bool,
    ) -> None:
        self._directory = directory
        self._subscriptions = subscriptions
        self._streams = streams
        self._conditions = conditions
        self._rng = rng
        self._tls = tls

    def make(self, fault: OrganizationFault, now: float) -> AppliedFault:
        """Apply the fault. Raises NoTarget."""
        match fault:
            case faults.BackendRestart():
                return self._restart(fault)
            case faults.Failover():
                return self._fail_over(fault)
            case faults.MailboxMove():
                return self._move(fault)
            case faults.MailboxReplaced():
                return self._replace(fault, now)
            case faults.Overflow():
                return self._overflow(fault)
            case faults.SilentSubscription():
                return self._silence(fault)
            case faults.SyncStateLost():
                return self._lose_sync_states(fault)
            case faults.MailboxDisabled():
                return self._disable(fault)
            case faults.ImpersonationWithdrawn():
                return self._withdraw(fault)
            case faults.Outage():
                self._break_streams()
                self._conditions.outage = fault
            case faults.BufferedStreams():
                self._break_streams()
                self._conditions.buffered = fault
            case faults.Throttled():
                self._conditions.throttled = fault
            case faults.AutodiscoverFailure():
                self._conditions.discovery = fault
            case faults.BadCertificate():
                if not self._tls:
                    raise NoTarget("the server has no certificate without TLS")
                self._conditions.certificate = fault
            case faults.AccountLocked():
                self._conditions.locked = fault
            case faults.TokenRefused():
                self._conditions.token_refused = fault
            case faults.ClaimsChallenge():
                self._conditions.claims = fault
            case faults.EwsDisabled():
                self._conditions.ews_disabled = fault
            case faults.TlsOffloaded():
                if not self._tls:
                    raise NoTarget("the server does not use TLS")
                self._conditions.offloaded = fault
            case faults.ClockOff():
                self._conditions.clock = fault
        return AppliedFault(undo=lambda: self._conditions.clear(fault))

    # -- back ends -------------------------------------------------------------------------------------------

    def _restart(self, fault: faults.BackendRestart) -> AppliedFault:
        backend = self._backend(fault.backend)
        self._drop_subscriptions(backend)
        if fault.seconds is None:
            return AppliedFault(backend=backend)
        self._conditions.down.add(backend)
        return AppliedFault(backend=backend, undo=lambda: self._conditions.down.discard(backend))

    def _fail_over(self, fault: faults.Failover) -> AppliedFault:
        directory = self._directory
        backend = self._backend(fault.backend)
        others = [each for each in directory.alive if each != backend]
        if not others:
            raise NoTarget("no other back end is working")
        directory.alive = tuple(others)
        self._drop_subscriptions(backend)
        for address, home in directory.homes.items():
            if home == backend:
                directory.homes[address] = self._rng.choice(others)

        def recover() -> None:
            alive = {*directory.alive, backend}
            directory.alive = tuple(each for each in directory.backends if each in alive)

        return AppliedFault(backend=backend, undo=recover)

    def _backend(self, name: str) -> str:
        chosen = self._directory.backend(name) if name else self._rng.choice(self._directory.alive)
        if chosen not in self._directory.alive:
            raise NoTarget(f"back end {name} has failed")
        return chosen

    def _drop_subscriptions(self, backend: str) -> None:
        self._break_streams(backend)
        self._subscriptions.restart(backend)

    def _break_streams(self, backend: str | None = None) -> None:
        for stream in self._streams:
            if backend in (None, stream.backend):
                stream.set_fault(HangUp(reset=True))

    # -- mailboxes -------------------------------------------------------------------------------------------

    def _move(self, fault: faults.MailboxMove) -> AppliedFault:
        mailbox = self._mailbox(fault.mailbox)
        home = self._directory.home(mailbox)
        others = [each for each in self._directory.alive if each != home]
        target = self._directory.backend(fault.backend) if fault.backend else None
        if target is None and others:
            target = self._rng.choice(others)
        if target not in others:
            raise NoTarget(f"{mailbox.address} has no other back end to move to")
        self._directory.homes[mailbox.address] = target
        self._end_subscriptions(mailbox, fault.code)
        if fault.seconds is None:
            return AppliedFault(mailbox.address, target)
        self._conditions.moving[mailbox.address] = "ErrorMailboxMoveInProgress"
        return AppliedFault(
            mailbox.address, target, undo=lambda: _remove_code(self._conditions.moving, mailbox.address)
        )

    def _replace(self, fault: faults.MailboxReplaced, now: float) -> AppliedFault:
        mailbox = self._mailbox(fault.mailbox)
        mailbox.replace(UUID(int=self._rng.getrandbits(128), version=4), now)
        if fault.quiet:
            for subscription in self._subscriptions.for_mailbox(mailbox.address):
                subscription.silent = True
        else:
            self._end_subscriptions(mailbox, fault.code)
        return AppliedFault(mailbox.address)

    def _overflow(self, fault: faults.Overflow) -> AppliedFault:
        subscription = self._subscription(fault.mailbox)
        if fault.quiet:
            subscription.queue.clear()
        else:
            self._subscriptions.overflow(subscription)
        return AppliedFault(subscription.mailbox, subscription.backend, subscription.id)

    def _silence(self, fault: faults.SilentSubscription) -> AppliedFault:
        chosen = self._subscription(fault.mailbox)
        silent = self._subscriptions.for_mailbox(chosen.mailbox)
        for subscription in silent:
            subscription.silent = True

        def end_silence() -> None:
            for subscription in silent:
                subscription.silent = False

        return AppliedFault(chosen.mailbox, chosen.backend, chosen.id, undo=end_silence)

    def _lose_sync_states(self, fault: faults.SyncStateLost) -> AppliedFault:
        chosen = list(self._directory) if fault.mailbox == "*" else [self._mailbox(fault.mailbox)]
        for mailbox in chosen:
            mailbox.lose_sync_states(quietly=fault.quiet)
        return AppliedFault("*" if fault.mailbox == "*" else chosen[0].address)

    def _disable(self, fault: faults.MailboxDisabled) -> AppliedFault:
        mailbox = self._mailbox(fault.mailbox)
        self._conditions.disabled[mailbox.address] = fault.code
        self._end_subscriptions(mailbox, fault.code)
        return AppliedFault(
            mailbox.address, undo=lambda: _remove_code(self._conditions.disabled, mailbox.address)
        )

    def _withdraw(self, fault: faults.ImpersonationWithdrawn) -> AppliedFault:
        address = "*" if fault.mailbox == "*" else self._mailbox(fault.mailbox).address
        self._conditions.withdrawn[address] = fault.code
        return AppliedFault(address, undo=lambda: _remove_code(self._conditions.withdrawn, address))

    def _mailbox(self, name: str) -> Mailbox:
        found = self._directory.find(name) if name else self._rng.choice(list(self._directory) or [None])
        if found is None:
            raise NoTarget("no mailbox exists")
        return found

    def _subscription(self, name: str) -> Subscription:
        table = self._subscriptions
        found = table.for_mailbox(self._mailbox(name).address) if name else list(table)
        if not found:
            raise NoTarget("no subscription exists")
        return self._rng.choice(found)

    def _end_subscriptions(self, mailbox: Mailbox, code: str) -> None:
        for subscription in self._subscriptions.for_mailbox(mailbox.address):
            self._subscriptions.remove(subscription, code)


def _remove_code(codes: dict[str, str], address: str) -> None:
    codes.pop(address, None)
