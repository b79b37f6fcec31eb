"""What a simulated organisation is made of. Times are in seconds unless the name says otherwise."""

from pathlib import Path
from random import Random
from typing import Literal
from uuid import UUID

import msgspec

from listener.simulator.fault_plans import Plan
from listener.simulator.mailstore import TOMBSTONES


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Throttling policy and queue limits; the defaults are those of Exchange Online and Exchange Server 2019
    ("EWS throttling in Exchange", learn.microsoft.com)."""

    hanging_connections: int = 10
    """Open GetStreamingEvents requests a charged mailbox or account (HangingConnectionLimit)."""
    subscriptions: int = 20
    """Subscriptions a mailbox (EWSMaxSubscriptions)."""
    concurrency: int = 27
    """Requests under way, streams apart, a charged mailbox or account (EWSMaxConcurrency)."""
    sync_calls: int = 5
    """Those of them that synchronise, a charged mailbox or account (ConcurrentSyncCalls)."""
    tombstones: int = TOMBSTONES
    """Deleted items that a folder remembers; a SyncState that would need an older one is refused."""
    ids_per_stream: int = 200
    queued_events: int = 5000
    """Events kept for a subscription that nobody reads; one more and the subscription is lost."""
    idle_minutes: float = 30
    """How long a subscription lives without a reader."""
    users_per_discovery: int = 100


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """How long things take, and how often a request fails that reached the wrong back end.

    A request that is routed rightly (see routing.py) is answered after `latency` and never fails by itself. One
    that its back end must proxy to another takes between `proxied_latency[0]` and `[1]` seconds, and is answered
    500 in `proxied_500` and 503 in `proxied_503` of all cases.
    """

    latency: float = 0.002
    proxied_latency: tuple[float, float] = (0.05, 0.3)
    proxied_500: float = 0.03
    proxied_503: float = 0.03


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """What streams look like. The defaults are the form of Exchange Server; the shares are chances from 0 to 1,
    one throw an envelope."""

    combined: float = 0.2
    """How often the notifications of several subscriptions share one envelope."""
    declaration: float = 0.0
    """How often an envelope of a stream starts with an XML declaration."""
    prefixes: bool = False
    """Other prefixes than Exchange's, as proxies and other servers write them."""
    status_events: float = 0.0
    """How often a heart-beat comes as a StatusEvent for each subscription, as some servers send it."""
    notification_in_types: bool = False
    """`t:Notification`, as the schema has it, in place of the `m:Notification` that servers send."""
    ends_after_bad_id: bool = True
    """Whether the body ends after an error about a subscription; otherwise it stays open, and says nothing but
    heart-beats."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What some servers are strict about."""

    one_user_per_stream: bool = False
    """Whether a subscription is read by those only who impersonate whom it was made for: a stream can then have the
    subscriptions of one mailbox alone. Others are refused with ErrorSubscriptionAccessDenied."""
    counted_ids: bool = False
    """Whether subscription ids are mere numbers, the same for all mailboxes. They begin at 1 again when a back end
    restarts, so that an id may come to mean a subscription of another mailbox, as on some servers."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated organisation and its server."""

    host: str = "127.0.0.1"
    name: str = ""
    """What it is called in URLs, as Kerberos wants it; the same as `host` if it is empty."""
    port: int = 0
    mailboxes: int = 20
    backends: int = 3
    rate: float = 10.0
    """Events a second over all mailboxes; 0 is silence."""
    seed: int = 1
    ledger: Path | None = None
    tls: bool = False
    heartbeat: float = 45.0
    domain: str = "contoso.example"
    people: tuple[str, ...] = ()
    """Local parts of further mailboxes, which may hold letters outside of ASCII."""
    limits: Limits = Limits()
    network: Network = Network()
    wire: Wire = Wire()
    rules: Rules = Rules()
    auth: Literal["basic", "ntlm", "negotiate", "oauth"] = "basic"
    extended_protection: Literal["off", "allow", "require"] = "off"
    """Whether NTLM and Kerberos must be bound to the TLS channel; without TLS they cannot be."""
    keytab: Path | None = None
    """The key of the service principal HTTP/host, for Kerberos; without it, Negotiate is NTLM."""
    lock_after: int = 10
    """An account is locked when its credentials were refused so many times in a row; 0 is never."""
    token_lifetime: float = 3600.0
    faults: Plan = ()
    """The faults that are made from the start on."""

    @property
    def hostname(self) -> str:
        return self.name or self.host

    @property
    def user(self) -> str:
        """The service account, which may impersonate all mailboxes within its management scope."""
        return f"svc-listener@{self.domain}"

    @property
    def password(self) -> str:
        """The service account's password; the same for the same seed."""
        return f"Pw-{Random(f'password {self.seed}').getrandbits(64):016x}"

    @property
    def tenant(self) -> str:
        """The tenant's id; the same for the same seed, as all ids here."""
        return str(UUID(int=Random(f"tenant {self.seed}").getrandbits(128), version=4))

    @property
    def client_id(self) -> str:
        """The application that OAuth admits: it may impersonate whom the service account may."""
        return str(UUID(int=Random(f"application {self.seed}").getrandbits(128), version=4))

    @property
    def client_secret(self) -> str:
        return f"Se~{Random(f'secret {self.seed}').getrandbits(160):040x}"
