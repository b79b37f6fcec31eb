"""The model of the configuration. docs/CONFIGURATION.md is generated from its descriptions.

All models are frozen and reject unknown keys. Durations are float seconds, paths are absolute, addresses are in
lower case.
"""

import re
import ssl
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag

from listener._version import __version__
from listener.config.auth import AnyAuth, Auth, tls_context
from listener.config.secrets import Secret
from listener.config.values import (
    ConfigPath,
    Context,
    Count,
    Duration,
    EventNames,
    ExistingFile,
    Flag,
    FolderId,
    FolderNames,
    HeaderText,
    HostPattern,
    HostPort,
    Initial,
    PositiveDuration,
    ProxyUrl,
    Section,
    Text,
    Url,
    Window,
    fold_address,
    parse_address,
    parse_sid,
)
from listener.ews.urls import host_of
from listener.filters import EVENT_NAMES, EVERY_CHANGE, check_type, is_glob

Folders: TypeAlias = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[FolderNames, Tag("names")],
    Discriminator(lambda value: "all" if isinstance(value, str) else "names"),
]
Access: TypeAlias = Literal["impersonation", "delegate", "own"]
ImpersonateBy: TypeAlias = Literal["PrimarySmtpAddress", "SmtpAddress", "PrincipalName", "SID"]
Address = Annotated[str, AfterValidator(parse_address)]


class Exchange(Section):
    """Exchange servers and connections."""

    ews_url: Url | None = Field(
        None,
        description="EWS endpoint, such as https://mail.example.com/EWS/Exchange.asmx. Used for mailboxes that "
        "Autodiscover does not know, and for all mailboxes if autodiscover = false.",
    )
    autodiscover: Flag = Field(
        True,
        description="Query Autodiscover for the EWS URL and GroupingInformation of each mailbox in [mailboxes].",
    )
    autodiscover_url: Url | None = Field(
        None,
        description="Autodiscover endpoint, such as https://autodiscover.example.com/autodiscover/autodiscover.svc. "
        "Default: derived from the domain of each address.",
    )
    autodiscover_hosts: tuple[HostPattern, ...] = Field(
        ("autodiscover-s.outlook.com", "*.onmicrosoft.com"),
        description="Hosts, mail domains or globs outside of the mail domain that may receive the credentials if an "
        "Autodiscover answer, a redirect or an SRV record names them. With :PORT, only at that port. Hosts in "
        "[[servers]] are also allowed.",
    )
    version: Literal[
        "Exchange2010_SP1", "Exchange2010_SP2", "Exchange2013", "Exchange2013_SP1", "Exchange2016"
    ] = Field("Exchange2013_SP1", description="RequestServerVersion of all requests.")
    user_agent: HeaderText = Field(
        f"ews-listener/{__version__}",
        description="User-Agent header. Exchange can allow or block clients by it.",
    )
    ca_file: ExistingFile | None = Field(
        None, description="CA certificates (PEM) to trust instead of the system's."
    )
    client_cert: ExistingFile | None = Field(
        None, description="TLS client certificate (PEM) with its chain, for servers that request one."
    )
    client_key: ExistingFile | None = Field(
        None, description="Private key of client_cert, if it is not in the same file."
    )
    client_key_password: Secret | None = Field(None, description="Password of an encrypted private key.")
    proxy: ProxyUrl | None = Field(
        None, description="HTTP proxy for all connections, such as http://proxy.example.com:3128."
    )
    proxy_user: Text | None = Field(None, description="Username for the proxy.")
    proxy_password: Secret | None = Field(None, description="Password for the proxy.")
    connect_timeout: PositiveDuration = Field(10, description="Timeout for opening a connection.")
    request_timeout: PositiveDuration = Field(
        60, description="Timeout for the response to a request. Streams use [stream] heartbeat instead."
    )
    concurrency: Count = Field(10, description="Concurrent requests of the account, without streams.")

    def tls_context(self) -> ssl.SSLContext:
        """Return the TLS context for all servers. Raises OSError if a file cannot be used."""
        return tls_context(self.ca_file, self.client_cert, self.client_key, self.client_key_password)


class Server(Section):
    """Authentication for some hosts, as in a hybrid deployment. May be repeated; the first match applies."""

    hosts: Annotated[tuple[HostPattern, ...], Field(min_length=1)] = Field(
        description='Hosts of URLs, or globs such as "*.outlook.com".'
    )
    auth: Auth = Field(description="Authentication for these hosts, with the keys of [auth].")


class AccessOverride(Section):
    """Mailboxes with different access. They need not be listed in [mailboxes] as well. May be repeated."""

    addresses: tuple[str, ...] = Field(
        (),
        description="Addresses of these mailboxes.",  # after loading, those of `file` too
    )
    file: ConfigPath | None = Field(None, description="File of addresses, as [mailboxes] file.")
    access: Access = Field("impersonation", description="As [mailboxes] access.")
    impersonate_by: ImpersonateBy = Field("PrimarySmtpAddress", description="As [mailboxes] impersonate_by.")
    folders: Folders | None = Field(None, description="As [subscription] folders, which is the default.")


class Mailboxes(Section):
    """The mailboxes to subscribe to, and the access to them."""

    addresses: tuple[str, ...] = Field(
        (),
        description="SMTP addresses.",  # after loading, those of `file` too
    )
    file: ConfigPath | None = Field(
        None,
        description="File with one address per line, or a table exported from Exchange: see Mailbox files.",
    )
    distribution_groups: tuple[Address, ...] = Field(
        (),
        description="Distribution groups whose members are subscribed, including nested groups. Contacts and public "
        "folders are skipped.",
    )
    expand_as: Address | None = Field(
        None,
        description="Mailbox to impersonate for expanding distribution groups. Default: the account's own mailbox. "
        "Required with OAuth, because an application has no mailbox.",
    )
    refresh: PositiveDuration = Field(
        3600, description="Interval for reading the file and expanding the distribution groups again."
    )
    max_drop: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(
        0.2,
        description="Maximum share of the mailboxes, 0 to 1, that one refresh may remove. A refresh that removes "
        "more is rejected with a warning, because a group may have been emptied by mistake.",
    )
    access: Access = Field(
        "impersonation",
        description="impersonation: as the owner; delegate: by folder permissions; own: the account's own mailbox.",
    )
    impersonate_by: ImpersonateBy = Field(
        "PrimarySmtpAddress",
        description="Identifier in ExchangeImpersonation. With SID, the addresses are security identifiers, which "
        "Autodiscover cannot look up.",
    )
    overrides: tuple[AccessOverride, ...] = Field(
        (), description="Mailboxes with different access: see below."
    )

    _in_file: tuple[str, ...] = PrivateAttr(())

    def model_post_init(self, context: Context | None, /) -> None:
        if context is not None:
            self._in_file = context.in_file

    @property
    def in_file(self) -> tuple[str, ...]:
        """The addresses that `file` contained when it was loaded."""
        return self._in_file


class Impersonation(Section):
    """Tests of the access scope. docs/ACCESS.md describes how to limit it on the server."""

    must_deny: tuple[Address, ...] = Field(
        (),
        description="Mailboxes that the account must not be able to open, by impersonation or as a delegate. "
        "The daemon tests this at startup and at the interval.",
    )
    if_not_denied: Literal["warn", "refuse_to_start"] = Field(
        "warn", description="What the daemon does at startup if it can open one of them."
    )
    interval: PositiveDuration = Field(86400, description="Interval of the test.")


class Subscription(Section):
    """The folders and changes to report."""

    folders: Folders = Field("all", description='"all", or distinguished folder names such as "inbox".')
    events: EventNames = Field(EVENT_NAMES, description="Kinds of change.")


class Affinity(Section):
    """Affinity groups. All mailboxes of a group share one stream and one back-end server."""

    group_size: Annotated[int, Field(strict=True, ge=1, le=200)] = Field(
        200,
        description="Mailboxes per group, 1 to 200. Use 1 if the server rejects several users per stream.",
    )
    impersonate_anchor_on_stream: Flag = Field(
        True,
        description="Charge the stream to the throttling budget of the group's anchor mailbox instead of the "
        "account's.",
    )
    subscribe_concurrency: Count = Field(
        5, description="Concurrent Subscribe requests per group, after the anchor mailbox is subscribed."
    )
    refresh: PositiveDuration = Field(
        86400, description="Time in which Autodiscover is queried again for all mailboxes, a few at a time."
    )


class StaticGroup(Section):
    """Mailboxes that belong together, for servers without Autodiscover. May be repeated."""

    ews_url: Url | None = Field(None, description="EWS endpoint. Default: that of [exchange].")
    name: str = Field(
        "", description="GroupingInformation. Entries with the same URL and name form one group."
    )
    mailboxes: tuple[str, ...] = Field(
        (),
        description="Addresses, which need not be in [mailboxes].",  # after loading, those of the file too
    )
    mailboxes_file: ConfigPath | None = Field(
        None, description="File of addresses, as [mailboxes] file. Set either this or mailboxes."
    )


class Stream(Section):
    """The streaming connections (GetStreamingEvents)."""

    window: Window = Field(
        1800,
        description="Time after which Exchange closes a stream and the daemon reopens it: whole minutes, 1m to 30m.",
    )
    heartbeat: PositiveDuration = Field(
        45,
        description="Heartbeat interval of Exchange. After twice this time in silence, the connection is dead.",
    )
    max_envelope: Annotated[int, Field(strict=True, ge=65536)] = Field(
        16 * 1024 * 1024,
        description="Maximum size of a SOAP envelope in bytes. A larger one ends the stream.",
    )


class Backoff(Section):
    """Delays after failures, with full jitter: random between 0 and the current maximum."""

    first: PositiveDuration = Field(1, description="Maximum delay after the first failure of a group.")
    factor: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = Field(
        1.5, description="Growth of the maximum with each consecutive failure."
    )
    cap: PositiveDuration = Field(120, description="Upper limit of the maximum.")
    suspended_first: PositiveDuration = Field(15, description="As `first`, for a suspended mailbox.")
    suspended_cap: PositiveDuration = Field(3600, description="As `cap`, for a suspended mailbox.")


class Delivery(Section):
    """Delivery of events to handlers."""

    queue: Count = Field(
        10_000, description="Events in memory per handler. Further events wait in the journal."
    )
    concurrency: Count = Field(
        1, description="Concurrent calls per handler, each for another mailbox. Order per mailbox is kept."
    )
    timeout: PositiveDuration = Field(30, description="Timeout of one handler call.")
    attempts: Count = Field(5, description="Attempts before an event becomes a dead letter.")
    retry_first: PositiveDuration = Field(1, description="Delay after the first failed attempt. It doubles.")
    retry_cap: PositiveDuration = Field(60, description="Maximum of this delay.")


def _type_pattern(value: str) -> str:
    if problem := check_type(value):
        raise ValueError(problem)
    return value


def _mailbox_pattern(value: str) -> str:
    pattern = fold_address(value)
    if not is_glob(pattern):
        return (
            parse_sid(pattern).lower()
            if "@" not in pattern and pattern.startswith("s-1-")
            else parse_address(value)
        )
    if re.search(r"\s", pattern) or not pattern.isprintable():
        raise ValueError(f'"{value.strip()}" matches no address, because addresses have no blanks')
    return pattern


class HandlerFilter(Section):
    """Selects the events of a handler. An event must match one value of each list."""

    mailboxes: tuple[Annotated[str, AfterValidator(_mailbox_pattern)], ...] = Field(
        ("*",), min_length=1, description='Addresses, or globs such as "*@sales.example.com".'
    )
    types: tuple[Annotated[str, AfterValidator(_type_pattern)], ...] = Field(
        EVERY_CHANGE,
        min_length=1,
        description='CloudEvents types, globs of them ("exchange.item.*") or short names ("created").',
    )
    folders: tuple[FolderId, ...] = Field(
        ("*",),
        min_length=1,
        description="EWS folder ids of the event's folder or parent folder, also the old one: see Filters.",
    )


class HandlerConfig(BaseModel):
    """One handler. All other keys are options of the handler itself."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, validate_default=True)

    use: Text = Field(description='Name of a built-in or installed handler, or "module:factory".')
    filter: HandlerFilter = Field(HandlerFilter(), description="Events that the handler receives.")
    timeout: PositiveDuration | None = Field(None, description="Instead of [delivery] timeout.")
    queue: Count | None = Field(None, description="Instead of [delivery] queue.")
    concurrency: Count | None = Field(None, description="Instead of [delivery] concurrency.")
    attempts: Count | None = Field(None, description="Instead of [delivery] attempts.")

    _directory: Path = PrivateAttr(default_factory=Path.cwd)

    def model_post_init(self, context: Context | None, /) -> None:
        if context is not None:
            self._directory = context.directory

    @property
    def options(self) -> Mapping[str, object]:
        """The options for the handler's factory."""
        return self.model_extra or {}

    @property
    def directory(self) -> Path:
        """The directory from which relative paths in the options count."""
        return self._directory

    def delivery(self, common: Delivery) -> Delivery:
        """Return the [delivery] section with this handler's own values."""
        own = {
            "timeout": self.timeout,
            "queue": self.queue,
            "concurrency": self.concurrency,
            "attempts": self.attempts,
        }
        return common.model_copy(update={key: value for key, value in own.items() if value is not None})


class CatchUp(Section):
    """Finds changes that no stream reported, by comparing a mailbox with its last known state."""

    mode: Literal["sync", "signal", "off"] = Field(
        "sync",
        description='"sync" delivers missed changes, marked as recovered. "signal" only reports gaps '
        '(exchange.listener.gap). "off" disables both.',
    )
    interval: PositiveDuration = Field(
        900, description="Interval for comparing mailboxes with traffic, even without a gap."
    )
    idle_interval: PositiveDuration = Field(
        7200,
        description="Without traffic, the interval doubles up to this value. It limits how long a change that no "
        "stream reported can remain undetected.",
    )
    initial: Initial = Field(
        None,
        description="Existing items to report once, as created, when a mailbox is first subscribed: "
        'none ("none"), those of the last "7d", or those since a date or date-time.',
    )


class Journal(Section):
    """The journal in state_directory. It stores events until every handler is done, and then for replay."""

    age: PositiveDuration = Field(3 * 86400, description="Retention of completed events, for replay.")
    size: Annotated[int, Field(strict=True, ge=1024 * 1024)] = Field(
        4 * 1024**3,
        description="Maximum size in bytes. While the journal is full, no new events are accepted.",
    )


class Log(Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level.")
    format: Literal["auto", "console", "json", "journal"] = Field(
        "auto",
        description='"auto" is "console" on a terminal, "journal" (fields of the systemd journal) if standard error '
        'is connected to it, else "json" (one object per line).',
    )
    repeat_interval: Duration = Field(
        60,
        description="Minimum time between log lines for the same repeated failure. "
        "The next line has the count. 0 logs each failure.",
    )
    audit_file: ConfigPath | None = Field(
        None,
        description="File that records the first use of each identity, one JSON object per line. Default: the log.",
    )


class Status(Section):
    """Status, metrics and control of the daemon (docs/METRICS.md, docs/CLI.md)."""

    socket: ConfigPath | None = Field(
        None,
        description="Unix socket of `status`, `reload` and `watch`. Default: ews-listener.sock in state_directory. "
        "Only root and the daemon's user can open it.",
    )
    listen: HostPort | None = Field(
        None,
        description="HOST:PORT for Prometheus and other clients, such as 127.0.0.1:9817. Other hosts than loopback "
        "require token.",
    )
    token: Secret | None = Field(
        None, description="Token that clients of HOST:PORT must send, as Authorization: Bearer TOKEN."
    )
    allowed_hosts: tuple[HostPattern, ...] = Field(
        (),
        description="Additional hostnames or globs that the Host header of a request may contain. The host of "
        "`listen`, localhost, 127.0.0.1 and [::1] are always allowed, and any IP address if `listen` has a wildcard "
        "address such as 0.0.0.0. Other requests get status 421, against DNS rebinding.",
    )
    mailbox_metrics: Flag = Field(False, description="Add a time series per mailbox to /metrics.")


class Shutdown(Section):
    """Shutdown of the daemon."""

    grace: Duration = Field(10, description="Time for handlers to complete their pending events.")
    unsubscribe: Flag = Field(
        False,
        description="End the subscriptions at shutdown. By default they stay for the next start and collect events, "
        "as long as the server keeps unread subscriptions (5 to 30 minutes). Set true to stop permanently.",
    )


class Config(Section):
    """The whole configuration."""

    state_directory: ConfigPath = Field(
        Path("state"), description="Directory for the journal and other state of the daemon."
    )
    exchange: Exchange = Exchange()
    auth: Auth
    servers: tuple[Server, ...] = ()
    mailboxes: Mailboxes = Mailboxes()
    impersonation: Impersonation = Impersonation()
    subscription: Subscription = Subscription()
    affinity: Affinity = Affinity()
    groups: tuple[StaticGroup, ...] = ()
    stream: Stream = Stream()
    backoff: Backoff = Backoff()
    delivery: Delivery = Delivery()
    catch_up: CatchUp = CatchUp()
    journal: Journal = Journal()
    handlers: dict[str, HandlerConfig]
    log: Log = Log()
    status: Status = Status()
    shutdown: Shutdown = Shutdown()

    def auth_for(self, url: str) -> AnyAuth:
        """Return the authentication for a URL: that of the first matching [[servers]] entry, else [auth]."""
        host = host_of(url)
        return next((s.auth for s in self.servers if any(fnmatchcase(host, p) for p in s.hosts)), self.auth)

    @property
    def status_socket(self) -> Path:
        """The Unix socket of the daemon."""
        return self.status.socket or self.state_directory / "ews-listener.sock"

    @property
    def all_mailboxes(self) -> tuple[str, ...]:
        """The addresses of [mailboxes], of its overrides and of all static groups, each once."""
        others = (address for other in self.mailboxes.overrides for address in other.addresses)
        grouped = (address for group in self.groups for address in group.mailboxes)
        return tuple(dict.fromkeys((*self.mailboxes.addresses, *others, *grouped)))
