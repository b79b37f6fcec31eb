"""What can be broken, as values. Who makes these faults, and when, stands in chaos.py and plans.py.

    {"kind": "http", "status": 503, "retry_after": 2}

Each class is a kind; its fields are the parameters. There are three sorts:

- a `RequestFault` waits for the next request that fits and spoils its answer;
- a `StreamFault` befalls an open GetStreamingEvents response, or waits for one;
- an `OrganisationFault` happens at once.

Where a mailbox, a back end or a stream is not named, the dice choose one. Times are in seconds.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec


class FaultError(ValueError):
    """A fault that makes no sense; the text says why, and is made for operators."""


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
    """The root of all kinds."""

    @property
    def kind(self) -> str:
        return _kind(type(self).__name__)

    def parameters(self) -> dict[str, Any]:
        """The parameters that differ from their defaults."""
        given = msgspec.to_builtins(self)
        return {name: given[name] for name in self.__struct_fields__ if given[name] != _default(self, name)}


class RequestFault(Fault, frozen=True, kw_only=True):
    """`operation` "" is any but Autodiscover; `mailbox` "" is any. It strikes `times` requests, and lapses after
    `within` seconds, if they are given."""

    operation: Operation = ""
    mailbox: str = ""
    times: Annotated[int, msgspec.Meta(ge=1)] = 1
    within: Seconds | None = None


class StreamFault(Fault, frozen=True, kw_only=True):
    """It befalls one stream: one of this back end that has this mailbox, if they are given. Without such a stream
    it waits for one, for `within` seconds at most, if they are given."""

    mailbox: str = ""
    backend: Backend = ""
    within: Seconds | None = None


class OrganizationFault(Fault, frozen=True, kw_only=True):
    """It happens at once."""


# -- answers -------------------------------------------------------------------------------------------------


class ResponseCode(RequestFault, frozen=True, kw_only=True):
    """An EWS response code in place of the answer: in a response message on HTTP 200, in a SOAP fault's detail, or
    in nothing but its faultcode. `status` is that of a fault: 500, or 200 as some servers have it. `ids` says how
    many SubscriptionIds stand in ErrorSubscriptionIds when a response message answers GetStreamingEvents."""

    code: Code
    place: Literal["message", "fault", "faultcode"] = "message"
    status: Literal[200, 500] = 500
    back_off_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    ids: Literal["none", "one", "all"] = "all"


class Http(RequestFault, frozen=True, kw_only=True):
    """An HTTP status with an HTML page. 401 comes with WWW-Authenticate, a redirect with `location`, 403 with
    `policy_reason` in X-EWS-Policy-Reason; `retry_after` is written in seconds, or as a date."""

    status: Annotated[int, msgspec.Meta(ge=300, le=599)]
    retry_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    retry_after_date: bool = False
    policy_reason: str = ""
    location: str = "/owa/auth/errorFE.aspx?httpCode=500"


class LoginPage(RequestFault, frozen=True, kw_only=True):
    """HTTP 200 with the HTML of a login page, as proxies send it."""


class NoAnswer(RequestFault, frozen=True, kw_only=True):
    """The request is accepted and never answered; the connection is closed after `seconds`, if they are given."""

    seconds: Seconds | None = None


class HangUp(RequestFault, frozen=True, kw_only=True):
    """The connection is closed before an answer, or reset."""

    reset: bool = False


class Gzip(RequestFault, frozen=True, kw_only=True):
    """The answer comes compressed, whatever the client accepts; a stream too, if it is opened so."""


class StrayResponse(RequestFault, frozen=True, kw_only=True):
    """A fault, and on the same connection a second response that nobody asked for."""

    code: Code = "ErrorInternalServerError"


# -- streams, and answers where an operation is named --------------------------------------------------------


class Slow(StreamFault, frozen=True, kw_only=True):
    """One byte every `interval` seconds, for `seconds`; then the rest at once. With an `operation` it is the next
    answer to that, and no open stream."""

    seconds: Seconds = 5.0
    interval: Seconds = 1.0
    operation: Operation = ""


class Cut(StreamFault, frozen=True, kw_only=True):
    """The body stops in the middle of an envelope, or behind one: in good order, by closing the connection without
    the last chunk, or by a reset (RST). With an `operation` it is the next answer to that, and no open stream."""

    where: Literal["envelope", "end"] = "envelope"
    how: Literal["order", "close", "reset"] = "reset"
    operation: Operation = ""


class SilentStream(StreamFault, frozen=True, kw_only=True):
    """Not one byte more, while the socket stays open; for `seconds`, or until the client goes."""

    seconds: Seconds | None = None


class StreamCode(StreamFault, frozen=True, kw_only=True):
    """A response code in an open stream, with the ids of one, of all or of no subscription in ErrorSubscriptionIds.
    A code that says that a subscription is lost makes it so. After it, the body ends, or stays open and says nothing
    but heart-beats."""

    code: Code
    ids: Literal["none", "one", "all"] = "one"
    ends: bool = True


class Closed(StreamFault, frozen=True, kw_only=True):
    """ConnectionStatus `Closed` before its time: then the body ends, or events follow for some seconds, or a second
    `Closed`."""

    then: Literal["end", "events", "closed"] = "end"
    seconds: Seconds = 2.0


class Padding(StreamFault, frozen=True, kw_only=True):
    """An envelope that is very large and says nothing."""

    megabytes: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 50.0


class InvalidCharacters(StreamFault, frozen=True, kw_only=True):
    """An envelope with characters that XML forbids: the reference &#x0;, a raw control character, or bytes that are
    no UTF-8."""

    form: Literal["reference", "control", "utf8"] = "reference"


class Doctype(StreamFault, frozen=True, kw_only=True):
    """An envelope with a document type definition: a harmless one, or a bomb of entities."""

    bomb: bool = True


# -- the organisation ----------------------------------------------------------------------------------------


class BackendRestart(OrganizationFault, frozen=True, kw_only=True):
    """A back end starts anew: its streams are reset, its subscriptions are lost, their ids start again at 1. Its
    requests are answered 503 for `seconds`, if they are given."""

    backend: Backend = ""
    seconds: Seconds | None = None


class Failover(OrganizationFault, frozen=True, kw_only=True):
    """A back end dies for `seconds`: its mailboxes live on the others from now on, its streams are reset, its
    subscriptions are lost, cookies that lead there are worth nothing."""

    backend: Backend = ""
    seconds: Seconds = 10.0


class MailboxMove(OrganizationFault, frozen=True, kw_only=True):
    """A mailbox moves to another back end, which Autodiscover tells. Its subscriptions end with `code`; for
    `seconds`, if they are given, new ones are answered ErrorMailboxMoveInProgress."""

    mailbox: str = ""
    backend: Backend = ""
    code: Code = "ErrorReadEventsFailed"
    seconds: Seconds | None = None


class MailboxReplaced(OrganizationFault, frozen=True, kw_only=True):
    """Another mailbox takes the place of this one under its address, as after a migration or a restore: the folders
    and items of the old one are copied into it and have new ids, and are created now, though they were received
    before. Its subscriptions end with `code`; if it is `quiet`, they stay and report nothing."""

    mailbox: str = ""
    code: Code = "ErrorSubscriptionNotFound"
    quiet: bool = False


class Overflow(OrganizationFault, frozen=True, kw_only=True):
    """The event queue of a subscription overflows: it ends with ErrorMissedNotificationEvents, or just loses what
    is queued."""

    mailbox: str = ""
    quiet: bool = False


class SilentSubscription(OrganizationFault, frozen=True, kw_only=True):
    """A mailbox's subscriptions deliver nothing for `seconds`, while heart-beats and all others go on."""

    mailbox: str = ""
    seconds: Seconds = 10.0


class SyncStateLost(OrganizationFault, frozen=True, kw_only=True):
    """The SyncStates of a mailbox (`*`: of any) are worth nothing from now on: they are refused with
    ErrorInvalidSyncStateData, or, if it is `quiet`, all that is there is told anew as if there were none."""

    mailbox: str = ""
    quiet: bool = False


class MailboxDisabled(OrganizationFault, frozen=True, kw_only=True):
    """A mailbox is gone for `seconds`: its subscriptions end with `code`, which every request about it gets too."""

    mailbox: str = ""
    seconds: Seconds = 10.0
    code: Code = "ErrorNonExistentMailbox"


class ImpersonationWithdrawn(OrganizationFault, frozen=True, kw_only=True):
    """The right to impersonate a mailbox (`*`: any) is withdrawn for `seconds`. Streams that are open stay so."""

    mailbox: str = ""
    seconds: Seconds = 10.0
    code: Code = "ErrorImpersonateUserDenied"


class Throttled(OrganizationFault, frozen=True, kw_only=True):
    """For `seconds` the service account may have no more than `concurrency` requests under way, and `connections`
    streams, if they are given. What is too much gets ErrorServerBusy, to come back in `back_off_ms`."""

    seconds: Seconds = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=0)] = 2
    connections: Annotated[int, msgspec.Meta(ge=0)] | None = None
    back_off_ms: Annotated[int, msgspec.Meta(ge=0)] = 1000


class Outage(OrganizationFault, frozen=True, kw_only=True):
    """For `seconds` nothing works: streams are reset, and connections refused, or reset upon a request, or each
    request is answered 503."""

    seconds: Seconds = 10.0
    how: Literal["refuse", "reset", "503"] = "refuse"


class BufferedStreams(OrganizationFault, frozen=True, kw_only=True):
    """For `seconds` a reverse proxy in front holds streams back: streams are reset, and of new ones not one byte
    comes, headers included. All else works."""

    seconds: Seconds = 10.0


class AutodiscoverFailure(OrganizationFault, frozen=True, kw_only=True):
    """For `seconds` Autodiscover answers with this HTTP status; or, if `code` is given, with this ErrorCode for the
    whole request or for each user."""

    seconds: Seconds = 10.0
    status: Annotated[int, msgspec.Meta(ge=300, le=599)] = 503
    code: Code | None = None
    level: Literal["response", "user"] = "response"


class BadCertificate(OrganizationFault, frozen=True, kw_only=True):
    """For `seconds` new connections are shown a certificate that has expired, or is for another host, or comes from
    an authority that nobody knows. It needs TLS."""

    seconds: Seconds = 10.0
    how: Literal["expired", "other_host", "other_authority"] = "expired"


class AccessFault(OrganizationFault, frozen=True, kw_only=True):
    """It happens at once, to whoever wants to come in. What is open stays so."""


class AccountLocked(AccessFault, frozen=True, kw_only=True):
    """For `seconds` the right credentials are refused too: with 401, by Entra ID with AADSTS50053."""

    seconds: Seconds = 10.0


class TokenRefused(AccessFault, frozen=True, kw_only=True):
    """For `seconds` Entra ID gives no token, but this AADSTS code."""

    seconds: Seconds = 10.0
    code: Literal[50053, 90002, 500011, 700016, 700024, 700027, 7000215, 7000222] = 7000222


class ClaimsChallenge(AccessFault, frozen=True, kw_only=True):
    """For `seconds` Exchange wants tokens with the authentication context `value`: others are answered 401 with a
    claims challenge, and whoever passes that on to Entra ID gets such a token."""

    seconds: Seconds = 60.0
    value: str = "c1"


class EwsDisabled(AccessFault, frozen=True, kw_only=True):
    """For `seconds` EWS is switched off for the tenant: 403 with `reason` in X-EWS-Policy-Reason."""

    seconds: Seconds = 10.0
    reason: str = "EWSDisabledForTenant"


class TlsOffloaded(AccessFault, frozen=True, kw_only=True):
    """For `seconds` a load balancer in front ends TLS with a certificate of its own: credentials that are bound to
    it do not fit the server's. It needs TLS."""

    seconds: Seconds = 10.0


class ClockOff(AccessFault, frozen=True, kw_only=True):
    """For `seconds` the clocks of Exchange and Entra ID are `offset` seconds ahead, or behind if it is negative."""

    seconds: Seconds = 10.0
    offset: float = 600.0


def _leaves(root: type[Fault]) -> Iterator[type[Fault]]:
    for branch in root.__subclasses__():
        if branch.__subclasses__():
            yield from _leaves(branch)
        else:
            yield branch


KINDS: dict[str, type[Fault]] = {_kind(leaf.__name__): leaf for leaf in _leaves(Fault)}


# -- reading and describing ----------------------------------------------------------------------------------


def parse(value: Mapping[str, Any]) -> Fault:
    """The fault that is written so. FaultError: there is no such kind or parameter, or a value is out of range."""
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
    """The end of a sentence about an unknown `word`: the nearest of `known`, else all of them."""
    names = list(known)
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f', did you mean "{near[0]}"?' if near else f"; known: {', '.join(names)}"


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a kind. `type` is for people; a required one has no default."""

    name: str
    type: str
    required: bool
    default: Any


def parameters(kind: type[Fault]) -> list[Parameter]:
    """The parameters of a kind, its own ones first."""
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
    """What a kind does, in one paragraph."""
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
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true | false"}[hint.__name__]
