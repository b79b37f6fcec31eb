"""The kinds of faults and their parameters. fault_scheduler.py and fault_plans.py decide when they happen.

    {"kind": "http", "status": 503, "retry_after": 2}

Each class is a kind; its fields are the parameters. There are three types:

- a `RequestFault` waits for the next matching request and changes its response;
- a `StreamFault` is applied to an open GetStreamingEvents response, or waits for one;
- an `OrganizationFault` happens immediately.

A mailbox, back end or stream that is not named is chosen at random. Times are in seconds. The docstrings of the
classes are the tables in docs/SIMULATOR.md.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec


class FaultError(ValueError):
    """An invalid fault. The text is for operators."""


Code = Annotated[str, msgspec.Meta(pattern="^[A-Za-z][A-Za-z0-9]*$")]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Backend = str
Operation = Literal[
    "",
    "Subscribe",
    "Unsubscribe",
    "GetStreamingEvents",
    "GetFolder",
    "FindFolder",
    "FindItem",
    "GetItem",
    "ConvertId",
    "SyncFolderItems",
    "SyncFolderHierarchy",
    "Autodiscover",
]


def _kind(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Fault(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag=_kind
):
    """The base class of all kinds."""

    @property
    def kind(self) -> str:
        return _kind(type(self).__name__)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that differ from their defaults."""
        given = msgspec.to_builtins(self)
        return {name: given[name] for name in self.__struct_fields__ if given[name] != _default(self, name)}


class RequestFault(Fault, frozen=True, kw_only=True):
    """Applies to the next `times` requests for `operation` (default: any except Autodiscover) and `mailbox`
    (default: any). Expires after `within` seconds without such a request."""

    operation: Operation = ""
    mailbox: str = ""
    times: Annotated[int, msgspec.Meta(ge=1)] = 1
    within: Seconds | None = None


class StreamFault(Fault, frozen=True, kw_only=True):
    """Applies to one open stream, optionally of `backend` or with `mailbox`. Without such a stream it waits,
    at most `within` seconds."""

    mailbox: str = ""
    backend: Backend = ""
    within: Seconds | None = None


class OrganizationFault(Fault, frozen=True, kw_only=True):
    """Happens immediately. If it has `seconds`, it lasts so long."""


# -- faults of responses -------------------------------------------------------------------------------------


class ResponseCode(RequestFault, frozen=True, kw_only=True):
    """An EWS response code: in a response message (HTTP 200), in a SOAP fault's detail, or only in its
    faultcode. `status` is the HTTP status of a SOAP fault; some servers send 200. `ids`: how many
    SubscriptionIds GetStreamingEvents gets in ErrorSubscriptionIds."""

    code: Code
    place: Literal["message", "fault", "faultcode"] = "message"
    status: Literal[200, 500] = 500
    back_off_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    ids: Literal["none", "one", "all"] = "all"


class Http(RequestFault, frozen=True, kw_only=True):
    """An HTTP status with an HTML page: 401 with WWW-Authenticate, redirects with `location`, 403 with
    `policy_reason` in X-EWS-Policy-Reason. `retry_after` is in seconds or a date."""

    status: Annotated[int, msgspec.Meta(ge=300, le=599)]
    retry_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    retry_after_date: bool = False
    policy_reason: str = ""
    location: str = "/owa/auth/errorFE.aspx?httpCode=500"


class LoginPage(RequestFault, frozen=True, kw_only=True):
    """HTTP 200 with an HTML login page, like some proxies."""


class NoAnswer(RequestFault, frozen=True, kw_only=True):
    """No response; the connection closes after `seconds`, if given."""

    seconds: Seconds | None = None


class HangUp(RequestFault, frozen=True, kw_only=True):
    """The connection is closed or reset before the response."""

    reset: bool = False


class Gzip(RequestFault, frozen=True, kw_only=True):
    """The response, or the stream that it opens, is compressed, even if the client does not accept that."""


class StrayResponse(RequestFault, frozen=True, kw_only=True):
    """A SOAP fault, followed by a second, unrequested response."""

    code: Code = "ErrorInternalServerError"


# -- faults of streams, or of responses to a named operation -------------------------------------------------


class Slow(StreamFault, frozen=True, kw_only=True):
    """One byte every `interval` seconds for `seconds`, then the rest. With `operation`: applies to the next
    response to it, not to a stream."""

    seconds: Seconds = 5.0
    interval: Seconds = 1.0
    operation: Operation = ""


class Cut(StreamFault, frozen=True, kw_only=True):
    """Truncates the body in an envelope or after one: with a correct end, without the last chunk, or by a
    reset (RST). With `operation`: see `slow`."""

    where: Literal["envelope", "end"] = "envelope"
    how: Literal["order", "close", "reset"] = "reset"
    operation: Operation = ""


class SilentStream(StreamFault, frozen=True, kw_only=True):
    """Nothing more is sent, for `seconds` or until the client disconnects."""

    seconds: Seconds | None = None


class StreamCode(StreamFault, frozen=True, kw_only=True):
    """A response code with one, all or no ids in ErrorSubscriptionIds. If the code means that a subscription
    is lost, it is removed. Then the body ends, or only heartbeats follow."""

    code: Code
    ids: Literal["none", "one", "all"] = "one"
    ends: bool = True


class Closed(StreamFault, frozen=True, kw_only=True):
    """ConnectionStatus `Closed` too early. Then the body ends, or events follow for `seconds`, or a second
    `Closed`."""

    then: Literal["end", "events", "closed"] = "end"
    seconds: Seconds = 2.0


class Padding(StreamFault, frozen=True, kw_only=True):
    """A very large envelope without events."""

    megabytes: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 50.0


class InvalidCharacters(StreamFault, frozen=True, kw_only=True):
    """An envelope with the reference &#x0;, a raw control character, or invalid UTF-8."""

    form: Literal["reference", "control", "utf8"] = "reference"


class Doctype(StreamFault, frozen=True, kw_only=True):
    """An envelope with a document type definition: harmless, or an entity bomb."""

    bomb: bool = True


# -- faults of the organization ------------------------------------------------------------------------------


class BackendRestart(OrganizationFault, frozen=True, kw_only=True):
    """Streams are reset, subscriptions are lost, their ids restart at 1. Requests get 503 for `seconds`, if
    given."""

    backend: Backend = ""
    seconds: Seconds | None = None


class Failover(OrganizationFault, frozen=True, kw_only=True):
    """A back end fails: its mailboxes move to the others permanently, its streams are reset, its
    subscriptions are lost, cookies that select it are ignored."""

    backend: Backend = ""
    seconds: Seconds = 10.0


class MailboxMove(OrganizationFault, frozen=True, kw_only=True):
    """A mailbox moves to another back end; Autodiscover reports it. Subscriptions end with `code`. For
    `seconds`, if given, new ones get ErrorMailboxMoveInProgress."""

    mailbox: str = ""
    backend: Backend = ""
    code: Code = "ErrorReadEventsFailed"
    seconds: Seconds | None = None


class MailboxReplaced(OrganizationFault, frozen=True, kw_only=True):
    """A new mailbox gets the address and a copy of the content, as after a migration: ids and creation times
    are new, received times are old. Subscriptions end with `code` or, if `quiet`, stay and report nothing."""

    mailbox: str = ""
    code: Code = "ErrorSubscriptionNotFound"
    quiet: bool = False


class Overflow(OrganizationFault, frozen=True, kw_only=True):
    """An event queue overflows: the subscription ends with ErrorMissedNotificationEvents or, if `quiet`,
    loses queued events."""

    mailbox: str = ""
    quiet: bool = False


class SilentSubscription(OrganizationFault, frozen=True, kw_only=True):
    """A mailbox's subscriptions deliver nothing. Heartbeats and other subscriptions continue."""

    mailbox: str = ""
    seconds: Seconds = 10.0


class SyncStateLost(OrganizationFault, frozen=True, kw_only=True):
    """The SyncStates of a mailbox (`*`: all) become invalid: ErrorInvalidSyncStateData or, if `quiet`, a full
    synchronization."""

    mailbox: str = ""
    quiet: bool = False


class MailboxDisabled(OrganizationFault, frozen=True, kw_only=True):
    """A mailbox's subscriptions end with `code`, and requests about it get `code`."""

    mailbox: str = ""
    seconds: Seconds = 10.0
    code: Code = "ErrorNonExistentMailbox"


class ImpersonationWithdrawn(OrganizationFault, frozen=True, kw_only=True):
    """Impersonation of a mailbox (`*`: any) is denied. Open streams stay open."""

    mailbox: str = ""
    seconds: Seconds = 10.0
    code: Code = "ErrorImpersonateUserDenied"


class Throttled(OrganizationFault, frozen=True, kw_only=True):
    """The service account is limited to `concurrency` requests and `connections` streams. More get
    ErrorServerBusy."""

    seconds: Seconds = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=0)] = 2
    connections: Annotated[int, msgspec.Meta(ge=0)] | None = None
    back_off_ms: Annotated[int, msgspec.Meta(ge=0)] = 1000


class Outage(OrganizationFault, frozen=True, kw_only=True):
    """Streams are reset. Connections are refused, or reset upon a request, or each request gets 503."""

    seconds: Seconds = 10.0
    how: Literal["refuse", "reset", "503"] = "refuse"


class BufferedStreams(OrganizationFault, frozen=True, kw_only=True):
    """A reverse proxy buffers streams: open ones are reset, new ones send nothing, not even headers. Other
    requests work."""

    seconds: Seconds = 10.0


class AutodiscoverFailure(OrganizationFault, frozen=True, kw_only=True):
    """Autodiscover answers with `status` or, if given, with ErrorCode `code` for the response or each user."""

    seconds: Seconds = 10.0
    status: Annotated[int, msgspec.Meta(ge=300, le=599)] = 503
    code: Code | None = None
    level: Literal["response", "user"] = "response"


class BadCertificate(OrganizationFault, frozen=True, kw_only=True):
    """New connections get a certificate that is expired, for another host, or from an unknown authority.
    Needs TLS."""

    seconds: Seconds = 10.0
    how: Literal["expired", "other_host", "other_authority"] = "expired"


class AccessFault(OrganizationFault, frozen=True, kw_only=True):
    """Happens immediately, for `seconds`. Open streams stay open."""


class AccountLocked(AccessFault, frozen=True, kw_only=True):
    """Valid credentials are refused: 401, or AADSTS50053 by Entra ID."""

    seconds: Seconds = 10.0


class TokenRefused(AccessFault, frozen=True, kw_only=True):
    """Entra ID answers with this AADSTS code."""

    seconds: Seconds = 10.0
    code: Literal[50053, 90002, 500011, 700016, 700024, 700027, 7000215, 7000222] = 7000222


class ClaimsChallenge(AccessFault, frozen=True, kw_only=True):
    """Exchange requires the authentication context `value`: other tokens get 401 with a claims challenge.
    Entra ID issues such a token to a client that forwards the challenge."""

    seconds: Seconds = 60.0
    value: str = "c1"


class EwsDisabled(AccessFault, frozen=True, kw_only=True):
    """EWS is disabled for the tenant: 403 with `reason` in X-EWS-Policy-Reason."""

    seconds: Seconds = 10.0
    reason: str = "EWSDisabledForTenant"


class TlsOffloaded(AccessFault, frozen=True, kw_only=True):
    """A load balancer terminates TLS with its own certificate, so channel bindings do not match. Needs TLS."""

    seconds: Seconds = 10.0


class ClockOff(AccessFault, frozen=True, kw_only=True):
    """The clocks of Exchange and Entra ID are `offset` seconds ahead (negative: behind)."""

    seconds: Seconds = 10.0
    offset: float = 600.0


def _concrete_kinds(root: type[Fault]) -> Iterator[type[Fault]]:
    for branch in root.__subclasses__():
        if branch.__subclasses__():
            yield from _concrete_kinds(branch)
        else:
            yield branch


KINDS: dict[str, type[Fault]] = {_kind(leaf.__name__): leaf for leaf in _concrete_kinds(Fault)}


# -- parsing and describing ----------------------------------------------------------------------------------


def parse(value: Mapping[str, Any]) -> Fault:
    """Parse a fault. Raises FaultError for an unknown kind or parameter, or an invalid value."""
    if "kind" not in value:
        raise FaultError(f"a fault needs a kind: {', '.join(KINDS)}")
    kind = str(value["kind"])
    if kind not in KINDS:
        raise FaultError(f'unknown kind "{kind}"{did_you_mean(kind, KINDS)}')
    known = KINDS[kind].__struct_fields__
    for name in value:
        if name != "kind" and name not in known:
            raise FaultError(f'{kind}: unknown parameter "{name}"{did_you_mean(name, known)}')
    try:
        return msgspec.convert(dict(value), KINDS[kind])
    except msgspec.ValidationError as error:
        raise FaultError(f"{kind}: {error}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error text about an unknown `word`: the nearest of `known`, else all of them."""
    names = list(known)
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f', did you mean "{near[0]}"?' if near else f"; known: {', '.join(names)}"


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a kind. `type` is for the documentation. A required parameter has no default."""

    name: str
    type: str
    required: bool
    default: Any


def parameters(kind: type[Fault]) -> list[Parameter]:
    """Return the parameters of a kind, its own first."""
    annotations = get_type_hints(kind)
    own = [name for name in kind.__struct_fields__ if name in kind.__annotations__]
    inherited = [name for name in kind.__struct_fields__ if name not in own]
    found = []
    for name in own + inherited:
        default = _default(kind, name)
        required = default is msgspec.NODEFAULT
        found.append(Parameter(name, _type_name(annotations[name]), required, None if required else default))
    return found


def about(kind: type[Fault]) -> str:
    """Return the description of a kind, in one paragraph."""
    return " ".join((kind.__doc__ or "").split())


def _default(kind: Fault | type[Fault], name: str) -> Any:
    at = kind.__struct_fields__.index(name) - len(kind.__struct_fields__)
    return kind.__struct_defaults__[at] if -at <= len(kind.__struct_defaults__) else msgspec.NODEFAULT


def _type_name(hint: Any) -> str:
    if hint is Operation:
        return "operation"
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in get_args(hint) if choice != "")
    if options := [option for option in get_args(hint) if option is not type(None)]:
        return " | ".join(map(_type_name, options))
    return {"str": "string", "int": "integer", "float": "number", "bool": "true | false"}[hint.__name__]
