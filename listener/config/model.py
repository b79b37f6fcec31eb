"""What can be configured. The descriptions are the reference: docs/CONFIGURATION.md is made from them.

Every model is frozen and refuses keys that it does not know. Durations are float seconds, paths are absolute,
addresses are in lower case.
"""

import re
import ssl
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from listener._version import __version__
from listener.config.auth import AnyAuth, Auth
from listener.config.mailboxes import Folders, Impersonation, Mailboxes
from listener.config.secrets import Secret
from listener.config.section import Section
from listener.config.tls import tls_context
from listener.config.values import (
    ConfigPath,
    Context,
    Count,
    Duration,
    EventNames,
    ExistingFile,
    Flag,
    FolderId,
    HeaderText,
    HostPattern,
    HostPort,
    Initial,
    PositiveDuration,
    ProxyUrl,
    Text,
    Url,
    Window,
    fold_address,
    parse_address,
    parse_sid,
)
from listener.ews.urls import host_of
from listener.filters import EVENT_NAMES, EVERY_CHANGE, check_type, is_glob


class Exchange(Section):
    """Where Exchange is, and how to speak with it."""

    ews_url: Url | None = Field(
        None,
        description="The EWS endpoint, such as https://mail.example.com/EWS/Exchange.asmx. Used for mailboxes that "
        "Autodiscover says nothing about, and for all of them if autodiscover = false.",
    )
    autodiscover: Flag = Field(
        True,
        description="Ask Autodiscover for the URL and the GroupingInformation of each mailbox in [mailboxes]. "
        "Switch it off where only ews_url or [[groups]] are wanted.",
    )
    autodiscover_url: Url | None = Field(
        None,
        description="The Autodiscover endpoint, such as https://autodiscover.example.com/autodiscover/"
        "autodiscover.svc. Without it, it is found from the mail domain of each address.",
    )
    autodiscover_hosts: tuple[HostPattern, ...] = Field(
        ("autodiscover-s.outlook.com", "*.onmicrosoft.com"),
        description="Hosts, mail domains, or globs, outside of the mail domain that the account's credentials may be "
        "sent to when an Autodiscover answer, a redirect or an SRV record names them; with :PORT, at that port only. "
        "Those in [[servers]] are allowed too.",
    )
    version: Literal[
        "Exchange2010_SP1", "Exchange2010_SP2", "Exchange2013", "Exchange2013_SP1", "Exchange2016"
    ] = Field("Exchange2013_SP1", description="The RequestServerVersion that requests carry.")
    user_agent: HeaderText = Field(
        f"ews-listener/{__version__}",
        description="The User-Agent header. Exchange can be told to admit or to block clients by it.",
    )
    ca_file: ExistingFile | None = Field(
        None, description="Certificates (PEM) to trust instead of the system's, for a company's own CA."
    )
    client_cert: ExistingFile | None = Field(
        None, description="A certificate (PEM) to show to servers that ask for one, with its chain."
    )
    client_key: ExistingFile | None = Field(
        None, description="The key of client_cert, if it is not in the same file."
    )
    client_key_password: Secret | None = Field(None, description="What opens the key, if it is locked.")
    proxy: ProxyUrl | None = Field(
        None, description="An HTTP proxy for all connections, such as http://proxy.example.com:3128."
    )
    proxy_user: Text | None = Field(None, description="Who we are to the proxy, if it asks.")
    proxy_password: Secret | None = Field(None, description="The password for proxy_user.")
    connect_timeout: PositiveDuration = Field(10, description="How long a connection may take to open.")
    request_timeout: PositiveDuration = Field(
        60, description="How long the answer to a request may take; streams have [stream] heartbeat instead."
    )
    concurrency: Count = Field(10, description="Requests side by side for the whole account, streams apart.")

    def tls_context(self) -> ssl.SSLContext:
        """How TLS is spoken with all servers."""
        return tls_context(self.ca_file, self.client_cert, self.client_key, self.client_key_password)


class Server(Section):
    """What is different for some servers, as in a hybrid. May stand many times; the first with the host counts."""

    hosts: Annotated[tuple[HostPattern, ...], Field(min_length=1)] = Field(
        description='Hosts of URLs, or globs such as "*.outlook.com".'
    )
    auth: Auth = Field(description="How to prove who we are there; the keys are those of [auth].")


class Subscription(Section):
    """What to be told about."""

    folders: Folders = Field(
        "all", description='"all", or a list of distinguished folder names such as "inbox".'
    )
    events: EventNames = Field(EVENT_NAMES, description="The kinds of change.")


class Affinity(Section):
    """How mailboxes share subscriptions' streams: all of a group are served by one back end of Exchange."""

    group_size: Annotated[int, Field(strict=True, ge=1, le=200)] = Field(
        200, description="Mailboxes a group, 1 to 200. 1 for servers that refuse several users on one stream."
    )
    impersonate_anchor_on_stream: Flag = Field(
        True,
        description="Charge the stream to the budget of the group's anchor mailbox, not to the account's.",
    )
    subscribe_concurrency: Count = Field(
        5, description="Subscribe requests side by side in one group, once its anchor is subscribed."
    )
    refresh: PositiveDuration = Field(
        86400,
        description="In this time Autodiscover is asked again, little by little, where each mailbox lives.",
    )


class StaticGroup(Section):
    """Mailboxes that are known to belong together, where Autodiscover is not to be had. May stand many times."""

    ews_url: Url | None = Field(
        None, description="The EWS endpoint of these mailboxes; else that of [exchange]."
    )
    name: str = Field(
        "", description="Their GroupingInformation; groups of one URL and one name are one group."
    )
    mailboxes: tuple[str, ...] = Field(
        (),
        description="Addresses, which need not stand in [mailboxes].",  # after loading, those of the file too
    )
    mailboxes_file: ConfigPath | None = Field(
        None, description="A file of addresses, as [mailboxes] file is. One of mailboxes, mailboxes_file."
    )


class Stream(Section):
    """The long answer to GetStreamingEvents."""

    window: Window = Field(
        1800,
        description="How long Exchange keeps a stream open before it is opened anew: whole minutes, 1m to 30m.",
    )
    heartbeat: PositiveDuration = Field(
        45, description="How often Exchange sends a sign of life. Silence of twice that is a dead connection."
    )
    max_envelope: Annotated[int, Field(strict=True, ge=65536)] = Field(
        16 * 1024 * 1024, description="Bytes that one SOAP envelope may have; a longer one ends the stream."
    )


class Backoff(Section):
    """How long to wait after failures: with full jitter, between 0 and the value reached."""

    first: PositiveDuration = Field(1, description="The most after the first failure of a group.")
    factor: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = Field(
        1.5, description="By how much each further failure in a row multiplies it."
    )
    cap: PositiveDuration = Field(120, description="What it never exceeds.")
    suspended_first: PositiveDuration = Field(15, description="As `first`, for a mailbox that was refused.")
    suspended_cap: PositiveDuration = Field(3600, description="As `cap`, for a mailbox that was refused.")


class Delivery(Section):
    """How events are handed to handlers."""

    queue: Count = Field(10_000, description="Events in memory for a handler; the rest wait in the journal.")
    concurrency: Count = Field(
        1,
        description="Calls of a handler side by side, each for another mailbox: the order of one mailbox is kept.",
    )
    timeout: PositiveDuration = Field(30, description="How long one call of a handler may take.")
    attempts: Count = Field(5, description="How often an event is tried before it goes to the dead letters.")
    retry_first: PositiveDuration = Field(1, description="The wait after the first failed try; it doubles.")
    retry_cap: PositiveDuration = Field(60, description="What that wait never exceeds.")


def _type_pattern(value: str) -> str:
    if trouble := check_type(value):
        raise ValueError(trouble)
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
        raise ValueError(f'no address matches "{value.strip()}": an address has no blanks')
    return pattern


class HandlerFilter(Section):
    """Which events a handler gets; each list is "any of these", and all lists must agree."""

    mailboxes: tuple[Annotated[str, AfterValidator(_mailbox_pattern)], ...] = Field(
        ("*",), min_length=1, description='Addresses or globs such as "*@sales.example.com".'
    )
    types: tuple[Annotated[str, AfterValidator(_type_pattern)], ...] = Field(
        EVERY_CHANGE,
        min_length=1,
        description='CloudEvents types, globs of them ("exchange.item.*"), or short names ("created").',
    )
    folders: tuple[FolderId, ...] = Field(
        ("*",),
        min_length=1,
        description="Folder ids of EWS, such as data.parent_folder_id of an event: of the folder itself, or of the "
        "one the item is in or came from. * is any. Names and paths are refused: use [subscription] folders.",
    )


class HandlerConfig(BaseModel):
    """One handler, [handlers.NAME]. Every key that is not listed here is an option of the handler itself."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, validate_default=True)

    use: Text = Field(description='A built-in or installed handler by name, or "module:factory".')
    filter: HandlerFilter = Field(HandlerFilter(), description="Which events it gets.")
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
        """What the factory is called with."""
        return self.model_extra or {}

    @property
    def directory(self) -> Path:
        """Where relative paths in the options count from."""
        return self._directory

    def delivery(self, common: Delivery) -> Delivery:
        """The [delivery] section with this handler's own values in it."""
        own = {
            "timeout": self.timeout,
            "queue": self.queue,
            "concurrency": self.concurrency,
            "attempts": self.attempts,
        }
        return common.model_copy(update={key: value for key, value in own.items() if value is not None})


class CatchUp(Section):
    """What falls into a gap between two streams is found by comparing the mailbox with what is known of it."""

    mode: Literal["sync", "signal", "off"] = Field(
        "sync",
        description='"sync" finds what was missed and hands it to handlers, marked as recovered; "signal" only tells '
        'of gaps (exchange.listener.gap); "off" does neither.',
    )
    interval: PositiveDuration = Field(
        900,
        description="How often mailboxes with traffic are compared even without a gap.",
    )
    idle_interval: PositiveDuration = Field(
        7200,
        description="Those without traffic are compared after twice as long each time, up to this. It is how long "
        "something can stay unnoticed that a stream does not tell.",
    )
    initial: Initial = Field(
        None,
        description="Which items of a mailbox that is subscribed for the first time are reported once, as created: "
        'those from that moment on ("none"), also those of so much time before it ("7d"), or those since a date or '
        "date-time.",
    )


class Journal(Section):
    """What is kept on disk, in state_directory: events until every handler has finished them, and then for replay."""

    age: PositiveDuration = Field(3 * 86400, description="How long finished events are kept for replay.")
    size: Annotated[int, Field(strict=True, ge=1024 * 1024)] = Field(
        4 * 1024**3, description="Bytes that the journal may have. When it is full, nothing new is taken in."
    )


class Log(Section):
    """What the log says, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least to be logged.")
    format: Literal["auto", "console", "json", "journal"] = Field(
        "auto",
        description='"auto" is "console" on a terminal, "journal" (fields of systemd\'s journal) where standard '
        'error leads there, and "json", one object a line, elsewhere.',
    )
    repeat_interval: Duration = Field(
        60,
        description="Minimum time between log lines for the same repeated failure. "
        "The next line has the count. 0 logs each failure.",
    )
    audit_file: ConfigPath | None = Field(
        None,
        description="Where every first use of an identity is recorded, one JSON object a line; without it, in the "
        "log.",
    )


class Status(Section):
    """How operators and machines learn how the daemon is, and reload it (docs/METRICS.md, docs/CLI.md)."""

    socket: ConfigPath | None = Field(
        None,
        description="The Unix socket that `status`, `reload` and `watch` use; by default ews-listener.sock in "
        "state_directory. Only the daemon's own user, and root, can open it.",
    )
    listen: HostPort | None = Field(
        None,
        description="HOST:PORT for Prometheus and other machines, such as 127.0.0.1:9817. Another host than this one "
        "takes a token.",
    )
    token: Secret | None = Field(
        None, description="What must then be sent over HOST:PORT, as Authorization: Bearer TOKEN."
    )
    allowed_hosts: tuple[HostPattern, ...] = Field(
        (),
        description="Names by which machines may address HOST:PORT, or globs of them: the Host header of a request. "
        "The host of `listen`, localhost, 127.0.0.1 and [::1] always are; where `listen` names all addresses, such "
        "as 0.0.0.0, any address is. Others are answered with status 421, against DNS rebinding.",
    )
    mailbox_metrics: Flag = Field(
        False, description="A time series a mailbox in /metrics, beside the others."
    )


class Shutdown(Section):
    """How the daemon ends."""

    grace: Duration = Field(10, description="How long handlers may take to finish what is there for them.")
    unsubscribe: Flag = Field(
        False,
        description="Tell Exchange at the end to forget the subscriptions. Without it they wait for the next start, "
        "with the events of the meantime, for as long as the server keeps subscriptions that nobody reads (from 5 to "
        "30 minutes). Switch it on if the daemon ends for good.",
    )


class Config(Section):
    """The whole file."""

    state_directory: ConfigPath = Field(
        Path("state"), description="Where the daemon keeps what it must remember."
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
        """How to prove who we are at this URL: what [[servers]] says of its host, else [auth]."""
        host = host_of(url)
        return next((s.auth for s in self.servers if any(fnmatchcase(host, p) for p in s.hosts)), self.auth)

    @property
    def status_socket(self) -> Path:
        """The Unix socket that operators come by."""
        return self.status.socket or self.state_directory / "ews-listener.sock"

    @property
    def all_mailboxes(self) -> tuple[str, ...]:
        """The addresses of [mailboxes], of its overrides and of all static groups, each once."""
        others = (address for other in self.mailboxes.overrides for address in other.addresses)
        grouped = (address for group in self.groups for address in group.mailboxes)
        return tuple(dict.fromkeys((*self.mailboxes.addresses, *others, *grouped)))
