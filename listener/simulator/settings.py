"""Options of a simulated organization. Times are in seconds unless the name says otherwise."""

from pathlib import Path
from random import Random
from typing import Literal
from uuid import UUID

import msgspec

from listener.simulator.fault_plans import Plan
from listener.simulator.mailstore import TOMBSTONES


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Throttling policy and queue limits.

    The defaults are those of Exchange Online and Exchange Server 2019 ("EWS throttling in Exchange",
    learn.microsoft.com).
    """

    hanging_connections: int = 10
    """Open GetStreamingEvents requests per budget owner (HangingConnectionLimit)."""
    subscriptions: int = 20
    """Subscriptions per mailbox (EWSMaxSubscriptions)."""
    concurrency: int = 27
    """Requests in progress per budget owner, without streams (EWSMaxConcurrency)."""
    sync_calls: int = 5
    """Synchronization requests in progress per budget owner (ConcurrentSyncCalls)."""
    tombstones: int = TOMBSTONES
    """Deleted items that a folder remembers. A SyncState that needs an older one is refused."""
    ids_per_stream: int = 200
    queued_events: int = 5000
    """Queued events of a subscription that is not read. One more, and the subscription is lost."""
    idle_minutes: float = 30
    """Lifetime of a subscription without a reader."""
    users_per_discovery: int = 100


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies, and error rates of requests that reached the wrong back end.

    A correctly routed request (see frontend.py) is answered after `latency` and never fails by itself. A
    request that its back end must proxy takes between `proxied_latency[0]` and `[1]` seconds. It gets 500
    with probability `proxied_500` and 503 with `proxied_503`.
    """

    latency: float = 0.002
    proxied_latency: tuple[float, float] = (0.05, 0.3)
    proxied_500: float = 0.03
    proxied_503: float = 0.03


class StreamFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The format of streams. The defaults are the format of Exchange Server.

    The shares are probabilities per envelope, from 0 to 1.
    """

    combined: float = 0.2
    """Share of envelopes that have notifications of several subscriptions."""
    declaration: float = 0.0
    """Share of envelopes that start with an XML declaration."""
    prefixes: bool = False
    """Use other namespace prefixes than Exchange, like proxies and other servers."""
    status_events: float = 0.0
    """Share of heartbeats that have a StatusEvent for each subscription, as some servers send it."""
    notification_in_types: bool = False
    """Write `t:Notification`, as in the schema, instead of the `m:Notification` that servers send."""
    ends_after_bad_id: bool = True
    """Whether the body ends after a subscription error. Otherwise it stays open and sends heartbeats only."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Restrictions that only some servers have."""

    one_user_per_stream: bool = False
    """Whether only an account that impersonates the subscription's mailbox may read it.

    A stream then has subscriptions of one mailbox only. Others get ErrorSubscriptionAccessDenied.
    """
    counted_ids: bool = False
    """Whether subscription ids are plain numbers. They restart at 1 when a back end restarts.

    An old id may then name a subscription of another mailbox, as on some servers.
    """


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated organization and its server."""

    host: str = "127.0.0.1"
    name: str = ""
    """Hostname in URLs, as Kerberos needs it; empty means `host`."""
    port: int = 0
    mailboxes: int = 20
    backends: int = 3
    rate: float = 10.0
    """Events per second in all mailboxes; 0 means none."""
    seed: int = 1
    ledger: Path | None = None
    tls: bool = False
    heartbeat: float = 45.0
    domain: str = "contoso.example"
    extra_mailboxes: tuple[str, ...] = ()
    """Local parts of additional mailboxes, which may contain non-ASCII letters."""
    limits: Limits = Limits()
    network: Network = Network()
    stream_format: StreamFormat = StreamFormat()
    rules: Rules = Rules()
    auth: Literal["basic", "ntlm", "negotiate", "oauth"] = "basic"
    extended_protection: Literal["off", "allow", "require"] = "off"
    """Whether NTLM and Kerberos must be bound to the TLS channel. Without TLS they cannot be."""
    keytab: Path | None = None
    """The key of the service principal HTTP/host, for Kerberos. Without it, Negotiate uses NTLM."""
    lock_after: int = 10
    """Consecutive refused logins that lock an account; 0 means never."""
    token_lifetime: float = 3600.0
    faults: Plan = ()
    """Faults from the start on."""

    @property
    def hostname(self) -> str:
        return self.name or self.host

    @property
    def user(self) -> str:
        """The service account, which may impersonate all mailboxes in its management scope."""
        return f"svc-listener@{self.domain}"

    @property
    def password(self) -> str:
        """The service account's password. Depends only on the seed."""
        return f"Pw-{Random(f'password {self.seed}').getrandbits(64):016x}"

    @property
    def tenant(self) -> str:
        """The tenant's id. All ids here depend only on the seed."""
        return str(UUID(int=Random(f"tenant {self.seed}").getrandbits(128), version=4))

    @property
    def client_id(self) -> str:
        """The application that OAuth accepts. It has the service account's impersonation rights."""
        return str(UUID(int=Random(f"application {self.seed}").getrandbits(128), version=4))

    @property
    def client_secret(self) -> str:
        return f"Se~{Random(f'secret {self.seed}').getrandbits(160):040x}"
