"""What happens to a whole back end, a mailbox or the organisation."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple
from uuid import UUID

from listener.simulator import faults
from listener.simulator.conditions import Conditions
from listener.simulator.directory import Directory
from listener.simulator.faults import HangUp, OrganisationFault
from listener.simulator.mailstore import Mailbox
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions


class Unfit(Exception):  # noqa: N818
    """There is nothing that this fault could befall now; the text says what it lacks."""


class Made(NamedTuple):
    """What a fault befell, and what ends it after its time."""

    mailbox: str = ""
    backend: str | None = None
    subscription: str | None = None
    undo: Callable[[], None] | None = None


class Disasters:
    """Makes OrganisationFaults."""

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

    def make(self, fault: OrganisationFault, now: float) -> Made:
        """Make it. Unfit: see there."""
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
                    raise Unfit("a server without TLS has no certificate")
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
                    raise Unfit("there is no TLS that could end elsewhere")
                self._conditions.offloaded = fault
            case faults.ClockOff():
                self._conditions.clock = fault
        return Made(undo=lambda: self._conditions.relieve(fault))

    # -- back ends -------------------------------------------------------------------------------------------

    def _restart(self, fault: faults.BackendRestart) -> Made:
        backend = self._backend(fault.backend)
        self._lose(backend)
        if fault.seconds is None:
            return Made(backend=backend)
        self._conditions.down.add(backend)
        return Made(backend=backend, undo=lambda: self._conditions.down.discard(backend))

    def _fail_over(self, fault: faults.Failover) -> Made:
        directory = self._directory
        backend = self._backend(fault.backend)
        others = [each for each in directory.alive if each != backend]
        if not others:
            raise Unfit("no other back end is alive")
        directory.alive = tuple(others)
        self._lose(backend)
        for address, home in directory.homes.items():
            if home == backend:
                directory.homes[address] = self._rng.choice(others)

        def come_back() -> None:
            alive = {*directory.alive, backend}
            directory.alive = tuple(each for each in directory.backends if each in alive)

        return Made(backend=backend, undo=come_back)

    def _backend(self, name: str) -> str:
        chosen = self._directory.backend(name) if name else self._rng.choice(self._directory.alive)
        if chosen not in self._directory.alive:
            raise Unfit(f"back end {name} is dead")
        return chosen

    def _lose(self, backend: str) -> None:
        self._break_streams(backend)
        self._subscriptions.restart(backend)

    def _break_streams(self, backend: str | None = None) -> None:
        for stream in self._streams:
            if backend in (None, stream.backend):
                stream.misbehave(HangUp(reset=True))

    # -- mailboxes -------------------------------------------------------------------------------------------

    def _move(self, fault: faults.MailboxMove) -> Made:
        mailbox = self._mailbox(fault.mailbox)
        home = self._directory.home(mailbox)
        others = [each for each in self._directory.alive if each != home]
        target = self._directory.backend(fault.backend) if fault.backend else None
        if target is None and others:
            target = self._rng.choice(others)
        if target not in others:
            raise Unfit(f"{mailbox.address} has no other back end to move to")
        self._directory.homes[mailbox.address] = target
        self._end(mailbox, fault.code)
        if fault.seconds is None:
            return Made(mailbox.address, target)
        self._conditions.moving[mailbox.address] = "ErrorMailboxMoveInProgress"
        return Made(mailbox.address, target, undo=lambda: _forget(self._conditions.moving, mailbox.address))

    def _replace(self, fault: faults.MailboxReplaced, now: float) -> Made:
        mailbox = self._mailbox(fault.mailbox)
        mailbox.replace(UUID(int=self._rng.getrandbits(128), version=4), now)
        if fault.quiet:
            for subscription in self._subscriptions.of(mailbox.address):
                subscription.silent = True
        else:
            self._end(mailbox, fault.code)
        return Made(mailbox.address)

    def _overflow(self, fault: faults.Overflow) -> Made:
        subscription = self._subscription(fault.mailbox)
        if fault.quiet:
            subscription.queue.clear()
        else:
            self._subscriptions.overflow(subscription)
        return Made(subscription.mailbox, subscription.backend, subscription.id)

    def _silence(self, fault: faults.SilentSubscription) -> Made:
        chosen = self._subscription(fault.mailbox)
        silent = self._subscriptions.of(chosen.mailbox)
        for subscription in silent:
            subscription.silent = True

        def speak() -> None:
            for subscription in silent:
                subscription.silent = False

        return Made(chosen.mailbox, chosen.backend, chosen.id, undo=speak)

    def _lose_sync_states(self, fault: faults.SyncStateLost) -> Made:
        chosen = list(self._directory) if fault.mailbox == "*" else [self._mailbox(fault.mailbox)]
        for mailbox in chosen:
            mailbox.lose_sync_states(quietly=fault.quiet)
        return Made("*" if fault.mailbox == "*" else chosen[0].address)

    def _disable(self, fault: faults.MailboxDisabled) -> Made:
        mailbox = self._mailbox(fault.mailbox)
        self._conditions.disabled[mailbox.address] = fault.code
        self._end(mailbox, fault.code)
        return Made(mailbox.address, undo=lambda: _forget(self._conditions.disabled, mailbox.address))

    def _withdraw(self, fault: faults.ImpersonationWithdrawn) -> Made:
        address = "*" if fault.mailbox == "*" else self._mailbox(fault.mailbox).address
        self._conditions.withdrawn[address] = fault.code
        return Made(address, undo=lambda: _forget(self._conditions.withdrawn, address))

    def _mailbox(self, name: str) -> Mailbox:
        found = self._directory.find(name) if name else self._rng.choice(list(self._directory) or [None])
        if found is None:
            raise Unfit("there is no mailbox")
        return found

    def _subscription(self, name: str) -> Subscription:
        table = self._subscriptions
        found = table.of(self._mailbox(name).address) if name else list(table)
        if not found:
            raise Unfit("there is no subscription")
        return self._rng.choice(found)

    def _end(self, mailbox: Mailbox, code: str) -> None:
        for subscription in self._subscriptions.of(mailbox.address):
            self._subscriptions.remove(subscription, code)


def _forget(codes: dict[str, str], address: str) -> None:
    codes.pop(address, None)
