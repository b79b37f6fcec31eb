"""What is the matter with the organisation right now; without faults, nothing. Set by disasters.py, obeyed by the
server."""

import msgspec

from listener.simulator.faults import (
    AccountLocked,
    AutodiscoverFailure,
    BadCertificate,
    BufferedStreams,
    ClaimsChallenge,
    ClockOff,
    EwsDisabled,
    Fault,
    Outage,
    Throttled,
    TlsOffloaded,
    TokenRefused,
)


class Conditions(msgspec.Struct):
    """The keys of the dictionaries are addresses, their values response codes; `withdrawn` may have the key `*`.
    Back ends that are `down` have their mailboxes and cannot serve them."""

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
        """The code with which impersonating this mailbox is refused, if it is."""
        return self.disabled.get(address) or self.withdrawn.get(address) or self.withdrawn.get("*")

    def relieve(self, fault: Fault) -> None:
        """This fault is over, if it has not given way to another one."""
        for name in self.__struct_fields__:
            if getattr(self, name) is fault:
                setattr(self, name, None)

    def told_time(self, now: float) -> float:
        """What the servers take for the time when it is `now`."""
        return now + (self.clock.offset if self.clock else 0.0)
