"""End-to-end tests of the verdict table: from the bytes of a reply to the actions of a group.

Each code is tested in all positions of a reply to Subscribe and of a stream, with the ids of one subscription and
without. The expected reactions are listed here independently, from the documentation of the response codes
("ResponseCode", MS-OXWSCDATA; "EWS throttling in Exchange", learn.microsoft.com), to detect mistakes in the table.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog.testing

from listener.backoff import Backoff
from listener.ews.autodiscover import read_pox, read_user_settings
from listener.ews.codes import VERDICTS, ExchangeError, Failure, Verdict
from listener.ews.http import http_failure
from listener.ews.stream import StreamParser
from listener.ews.subscription import read_subscribe
from listener.exchange.throttle import Throttle
from listener.groups.actions import (
    Action,
    Discover,
    Discovered,
    Stream,
    StreamEnded,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Wait,
    Waited,
)
from listener.groups.group import GroupState, advance
from listener.groups.member import Policy

# Expected reactions, with their codes.
AGAIN = """
    ErrorInternalServerTransientError ErrorTimeoutExpired ErrorTooManyObjectsOpened ErrorInsufficientResources
    ErrorADUnavailable ErrorMailboxFailover ErrorInternalServerError ErrorConnectionFailed
    ErrorBatchProcessingStopped ErrorNewEventStreamConnectionOpened
    Http301 Http302 Http307 Http308 Http500 Http502 Http503 Http504 NotSoap
"""
PAUSE = "ErrorServerBusy ErrorExceededConnectionCount Http429 ServerBusy"
RESUBSCRIBE = """
    ErrorSubscriptionNotFound ErrorInvalidSubscription ErrorExpiredSubscription ErrorEventNotFound
    ErrorInvalidWatermark ErrorSubscriptionUnsubscribed ErrorProxiedSubscriptionCallFailure
    ErrorMissedNotificationEvents
"""
REGROUP = """
    ErrorProxyRequestNotAllowed ErrorReadEventsFailed ErrorMailboxMoveInProgress ErrorMailboxStoreUnavailable
    ErrorCrossSiteRequest ErrorWrongServerVersion ErrorNoRespondingCASInDestinationSite ErrorProxyCallFailed
    Http451
"""
SUSPEND = """
    ErrorNonExistentMailbox ErrorInvalidSmtpAddress ErrorAccountDisabled ErrorCannotFindUser
    ErrorSubscriptionDelegateAccessNotSupported ErrorImpersonateUserDenied ErrorImpersonationDenied
    ErrorImpersonationFailed ErrorAccessDenied ErrorSubscriptionAccessDenied ErrorExceededSubscriptionCount
    InvalidUser InvalidDomain NotFederated SettingIsNotAvailable
"""
LOUD = """
    ErrorInvalidSubscriptionRequest ErrorSchemaValidation ErrorIncorrectSchemaVersion ErrorInvalidServerVersion
    EwsDisabled InvalidRequest InvalidSetting
"""
LOGIN = "Http401"
FULL_SYNC = "ErrorInvalidSyncStateData"
WORDS = {
    "again": AGAIN, "pause": PAUSE, "resubscribe": RESUBSCRIBE, "regroup": REGROUP, "suspend": SUSPEND, "loud": LOUD,
    "login": LOGIN, "full sync": FULL_SYNC,
}  # fmt: skip
DOCUMENTED = {code: word for word, codes in WORDS.items() for code in codes.split()}
WORD_OF = {
    Verdict.RETRY: "again", Verdict.WAIT: "pause", Verdict.RESUBSCRIBE: "resubscribe", Verdict.REGROUP: "regroup",
    Verdict.SUSPEND: "suspend", Verdict.CREDENTIALS: "login", Verdict.STOP: "loud", Verdict.RESYNC: "full sync",
}  # fmt: skip
UNKNOWN = "ErrorOfAnotherDay"

# ruff: noqa: SIM905
# Codes that only Autodiscover returns, in its own format.
AUTODISCOVER = """
    InvalidUser InvalidDomain NotFederated SettingIsNotAvailable ServerBusy InternalServerError InvalidRequest
    InvalidSetting Pox500 Pox600 Pox601 InsecureRedirect TooManyRedirects UntrustedRedirect
""".split()
OF_SOAP = ["Client", "Server", "MustUnderstand", "VersionMismatch"]
OF_EWS = [
    code
    for code in (*VERDICTS, UNKNOWN)
    if code.startswith("Error") or code in OF_SOAP or code == "SoapFault"
]
OF_HTTP = [code for code in VERDICTS if code.startswith("Http")] + ["EwsDisabled"]
UNREADABLE = [
    "NotSoap",
    "MalformedXml",
    "ForbiddenXml",
    "UnexpectedReply",
    "EnvelopeTooLarge",
    "StreamIncomplete",
]
# Codes of ews-listener for failures of a connection, from the client and the authentication method.
BY_THE_CLIENT = sorted(set(VERDICTS) - {*OF_EWS, *OF_HTTP, *UNREADABLE, *AUTODISCOVER})

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
M = "http://schemas.microsoft.com/exchange/services/2006/messages"
T = "http://schemas.microsoft.com/exchange/services/2006/types"
A = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
ERRORS = "http://schemas.microsoft.com/exchange/services/2006/errors"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVER_WAIT = 5.0  # seconds, requested by the server


def envelope(body: str) -> bytes:
    return (
        f'<s:Envelope xmlns:s="{SOAP}" xmlns:m="{M}" xmlns:t="{T}"><s:Body>{body}</s:Body></s:Envelope>'
    ).encode()


def back_off(code: str) -> str:
    """Return MessageXml with BackOffMilliseconds if the code means a pause."""
    if WORD_OF[Failure(code=code).verdict] != "pause":
        return ""
    return f'<t:Value Name="BackOffMilliseconds">{SERVER_WAIT * 1000:.0f}</t:Value>'


def message(operation: str, code: str, ids: tuple[str, ...] = ()) -> bytes:
    listed = "".join(f"<t:SubscriptionId>{id_}</t:SubscriptionId>" for id_ in ids)
    xml = f"<m:MessageXml>{back_off(code)}</m:MessageXml>" if back_off(code) else ""
    failed_ids = f"<m:ErrorSubscriptionIds>{listed}</m:ErrorSubscriptionIds>" if ids else ""
    return envelope(
        f"<m:{operation}Response><m:ResponseMessages><m:{operation}ResponseMessage ResponseClass='Error'>"
        f"<m:MessageText>It is so.</m:MessageText><m:ResponseCode>{code}</m:ResponseCode>"
        f"<m:DescriptiveLinkKey>0</m:DescriptiveLinkKey>{xml}{failed_ids}"
        f"</m:{operation}ResponseMessage></m:ResponseMessages></m:{operation}Response>"
    )


def fault_with_detail(code: str) -> bytes:
    xml = f"<t:MessageXml>{back_off(code)}</t:MessageXml>" if back_off(code) else ""
    return envelope(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>It is so.</faultstring><detail>"
        f'<e:ResponseCode xmlns:e="{ERRORS}">{code}</e:ResponseCode>{xml}</detail></s:Fault>'
    )


def fault_of(faultcode: str) -> bytes:
    return envelope(f"<s:Fault>{faultcode}<faultstring>It is so.</faultstring></s:Fault>")


def subscribe_failure(content: bytes) -> Failure:
    """Return the failure of a Subscribe with this reply and HTTP 200."""
    with pytest.raises(ExchangeError) as raised:
        read_subscribe(content)
    return raised.value.failure


def stream_failure(content: bytes, *, end: bool = False, max_envelope: int = 1 << 20) -> Failure:
    """Return the failure of a stream with this content."""
    parser = StreamParser(max_envelope=max_envelope)
    signals = parser.feed(content) + (parser.end() if end else [])
    (failure,) = (signal for signal in signals if isinstance(signal, Failure))
    return failure


def faults(code: str) -> Iterator[tuple[str, bytes]]:
    if code == "SoapFault":
        yield "faultcode", fault_of("")
        return
    prefix = "s" if code in OF_SOAP else "a"
    yield "faultcode", fault_of(f"<faultcode xmlns:a='{T}'>{prefix}:{code}</faultcode>")
    if code.startswith("Error"):
        yield "detail", fault_with_detail(code)


def pages(code: str) -> Iterator[tuple[str, Failure]]:
    html = b"<!DOCTYPE html><html><head><title>Trouble</title></head><body></body></html>"
    headers = {"Retry-After": f"{SERVER_WAIT:.0f}"} if code == "Http429" else {}
    if code == "EwsDisabled":
        yield "page", http_failure(403, {"X-EWS-Policy-Reason": "Disabled"}, html, NOW)
        return
    for name, body in (("page", html), ("empty", b"")):
        yield name, http_failure(int(code.removeprefix("Http")), headers, body, NOW)


def places(code: str, operation: str, ids: tuple[str, ...] = ()) -> list[tuple[str, Failure]]:
    """Return the failures of all positions of this code in a reply to this operation; in a stream, with these ids."""
    read = stream_failure if operation == "GetStreamingEvents" else subscribe_failure
    found: list[tuple[str, Failure]] = []
    if code.startswith("Error"):
        found.append(("message", read(message(operation, code, ids))))
    if not ids:
        if code in OF_EWS:
            found += [(f"{place} on 200", read(content)) for place, content in faults(code)]
        if code.startswith("Error"):
            found += [
                (f"{place} on 500", http_failure(500, {}, content, NOW)) for place, content in faults(code)
            ]
            found.append(("message on 500", http_failure(500, {}, message(operation, code), NOW)))
        if code in OF_HTTP:
            found += pages(code)
        if code in BY_THE_CLIENT:
            found.append(("connection", Failure(code=code)))
        match code:
            case "NotSoap":
                found.append(("login page", read(b"<!DOCTYPE html><html><body>Sign in</body></html>")))
            case "MalformedXml":
                found.append(("bad bytes", read(envelope("<m:R><m:S></m:R>"))))
            case "ForbiddenXml":
                found.append(("doctype", read(b"<!DOCTYPE Envelope [<!ENTITY a 'b'>]>" + envelope("<m:R/>"))))
            case "UnexpectedReply":
                found.append(("nothing", read(envelope(f"<m:{operation}Response/>"))))
            case "EnvelopeTooLarge" if read is stream_failure:
                found.append(("large", stream_failure(envelope("<m:R/>" + "x" * 5000), max_envelope=2000)))
            case "StreamIncomplete" if read is stream_failure:
                found.append(("cut", stream_failure(envelope("<m:R/>")[:-9], end=True)))
    for place, failure in found:
        assert failure.code == code, place
    return found


# --- the affected group

POLICY = Policy(
    backoff=Backoff(1, 2, 60), suspended=Backoff(60, 2, 3600), flapping=Backoff(2, 2, 15), stable_after=30
)
ALL_MEMBERS = (("ann", "1"), ("bob", "2"), ("cat", "3"))
OTHERS = (("ann", "1"), ("cat", "3"))


def streaming() -> GroupState:
    return advance(GroupState.start(("ann", "bob", "cat"), POLICY), Subscribed(ALL_MEMBERS), now=0)


def word(code: str) -> str:
    return DOCUMENTED.get(code) or WORD_OF[Failure(code=code).verdict]


def server_wait(failure: Failure) -> float:
    """Return the wait from a fault's detail, a response message or Retry-After; 0 without one."""
    return failure.wait or 0.0


def after_the_wait(state: GroupState) -> GroupState:
    until = min(action.until for action in state.actions if isinstance(action, Wait))
    return advance(state, Waited(), until)


ALL = sorted({*VERDICTS, UNKNOWN} - set(AUTODISCOVER))


def test_every_documented_code_has_its_verdict() -> None:
    assert {code: WORD_OF[VERDICTS[code]] for code in DOCUMENTED} == DOCUMENTED


def test_every_code_is_tested_in_every_position() -> None:
    found_by_code = {code: places(code, "Subscribe") + places(code, "GetStreamingEvents") for code in ALL}
    assert not [code for code, found in found_by_code.items() if not found]
    for code in ALL:
        if code.startswith("Error"):
            assert [place for place, _ in found_by_code[code]] == 2 * [
                "message", "faultcode on 200", "detail on 200", "faultcode on 500", "detail on 500",
                "message on 500",
            ]  # fmt: skip


def test_wait_is_read_in_every_position() -> None:
    for operation in ("Subscribe", "GetStreamingEvents"):
        waits = {place: failure.wait for place, failure in places("ErrorServerBusy", operation)}
        assert waits == {
            "message": SERVER_WAIT, "message on 500": SERVER_WAIT,
            "detail on 200": SERVER_WAIT, "detail on 500": SERVER_WAIT,
            "faultcode on 200": None, "faultcode on 500": None,
        }  # fmt: skip


@pytest.mark.parametrize("code", ALL)
def test_failed_subscribe_of_a_member(code: str) -> None:
    """The other members are subscribed. They stream, unless the server requests a pause."""
    for place, failure in places(code, "Subscribe"):
        state = advance(
            GroupState.start(("ann", "bob", "cat"), POLICY), Subscribed(OTHERS, (("bob", failure),)), now=0
        )
        bob = state.members[1]
        again = Subscribe(("bob",), "ann", from_anchor=False)
        stream = Stream(OTHERS, "ann")
        match word(code):
            case "pause":
                assert state.actions == (Wait(server_wait(failure) + 1),), place
                assert set(after_the_wait(state).actions) == {stream, again}, place
            case "suspend" | "loud":
                assert (bob.suspended, bob.failure) == (True, failure), place
                assert state.actions == (stream, Wait(60)), place
                assert after_the_wait(state).actions == (stream, again), place
            case "regroup":
                assert state.actions == (stream, Wait(1)), place
                assert after_the_wait(state).actions == (stream, Discover(("bob",))), place
            case "login":
                assert state.actions == (stream, Wait(1)), place
                state = after_the_wait(state)
                assert state.actions == (stream, again), place
                state = advance(state, Subscribed(refused=(("bob", failure),)), now=1)
                assert state.members[1].suspended, "only one retry with new credentials"
                assert state.actions == (stream, Wait(61)), place
            case _:  # no subscription yet, so subscribing again is both a retry and a re-subscription
                assert not bob.suspended
                assert state.actions == (stream, Wait(1)), place
                assert after_the_wait(state).actions == (stream, again), place


@pytest.mark.parametrize("code", ALL)
def test_failed_subscribe_of_the_anchor(code: str) -> None:
    """No member is subscribed: a failure of the server delays all members, one of the anchor only the anchor."""
    for place, failure in places(code, "Subscribe"):
        start = GroupState.start(("ann", "bob", "cat"), POLICY)
        state = advance(start, Subscribed(refused=(("ann", failure),)), now=0)
        eager = failure.verdict is Verdict.RETRY and failure.wait is None
        match word(code):
            case "pause":
                assert state.actions == (Wait(server_wait(failure) + 1),), place
                assert after_the_wait(state).actions == start.actions, place
            case "suspend":
                assert state.actions == (Subscribe(("bob", "cat"), "bob", from_anchor=True),), place
                assert state.members[0].suspended
            case "regroup":
                assert state.actions == (Subscribe(("bob", "cat"), "bob", from_anchor=True), Wait(1)), place
                assert state.members[0].misplaced
            case "loud":
                assert state.actions == (Wait(60),), place
                assert state.members[0].suspended
            case "login":
                assert state.actions == (Wait(1),), place
                state = after_the_wait(state)
                assert state.actions == start.actions, place
                state = advance(state, Subscribed(refused=(("ann", failure),)), now=1)
                assert state.members[0].suspended
                assert state.actions == (Wait(1 + 120),), "a rejected password is not retried continuously"
            case _:
                assert state.actions == (Wait(1, eager),), place
                assert after_the_wait(state).actions == start.actions, place


def main_actions(state: GroupState) -> tuple[Action, ...]:
    """Return the actions of the group without Unsubscribe."""
    return tuple(action for action in state.actions if not isinstance(action, Unsubscribe))


@pytest.mark.parametrize("code", [code for code in ALL if code.startswith("Error")])
def test_stream_failure_of_one_subscription(code: str) -> None:
    """The stream is reopened immediately without the failed subscription, which may block events of the others."""
    for place, failure in places(code, "GetStreamingEvents", ("2",)):
        state = advance(streaming(), StreamEnded(20, (failure,)), now=20)
        bob = state.members[1]
        stream = Stream(OTHERS, "ann")
        dead_lettered = word(code) in ("full sync", "regroup", "suspend", "loud")
        assert state.abandoned == ((("bob", "2"),) if dead_lettered else ()), (
            "a subscription that the server lost is not unsubscribed"
        )
        match word(code):
            case "again":
                assert main_actions(state) == (Stream(ALL_MEMBERS, "ann"),), place
                for _ in range(2):  # but not repeatedly with the other members
                    state = advance(state, StreamEnded(0.1, (failure,)), now=20)
                assert stream in main_actions(state), place
                assert state.members[1].leaving, place
            case "pause":
                assert main_actions(state) == (Wait(20 + SERVER_WAIT + 2),), place
                assert main_actions(after_the_wait(state)) == (Stream(ALL_MEMBERS, "ann"),), place
            case "resubscribe" | "full sync":
                assert main_actions(state) == (stream, Subscribe(("bob",), "ann", from_anchor=False)), place
            case "regroup":
                assert main_actions(state) == (stream, Discover(("bob",))), place
            case "suspend":  # Subscribe shows whether access is denied to the mailbox or only in this group
                assert main_actions(state) == (stream, Subscribe(("bob",), "ann", from_anchor=False)), place
                suspended = advance(state, Subscribed(refused=(("bob", failure),)), now=20)
                assert suspended.members[1].suspended, place
                assert main_actions(suspended) == (stream, Wait(20 + 60)), place
                joined = advance(state, Subscribed((("bob", "2"),)), now=20)
                alone = advance(joined, StreamEnded(0.1, (failure,)), now=20)
                assert (stream in main_actions(alone), alone.members[1].leaving) == (True, True), place
            case "loud":
                assert (bob.suspended, bob.subscription) == (True, None), place
                assert main_actions(state) == (stream, Wait(20 + 60)), place
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize("code", ALL)
def test_failure_of_the_whole_stream(code: str) -> None:
    """The stream is rejected, or ends before any data arrives."""
    for place, failure in places(code, "GetStreamingEvents"):
        state = advance(streaming(), StreamEnded(0.1, (failure,), alive=False), now=20)
        all_of_them = Stream(ALL_MEMBERS, "ann")
        eager = failure.verdict is Verdict.RETRY and failure.wait is None
        match word(code):
            case "pause":
                assert main_actions(state) == (Wait(20 + server_wait(failure) + 1),), place
                assert main_actions(after_the_wait(state)) == (all_of_them,), place
            case "resubscribe":
                assert main_actions(state) == (Subscribe(("ann", "bob", "cat"), "ann", from_anchor=True),), (
                    place
                )
            case "regroup":
                assert main_actions(state) == (Discover(("ann", "bob", "cat")),), place
            case "suspend":
                assert main_actions(state) == (Stream(ALL_MEMBERS, "bob"),), (
                    "the stream impersonated the anchor"
                )
            case "loud":
                assert main_actions(state) == (Wait(20 + 60),), place
            case "login":
                assert main_actions(state) == (Wait(21),), place
                state = after_the_wait(state)
                assert main_actions(state) == (all_of_them,), place
                state = advance(state, StreamEnded(0.1, (failure,), alive=False), now=21)
                assert main_actions(state) == (Wait(21 + 120),), place
            case _:
                assert main_actions(state) == (Wait(21, eager),), place
                assert main_actions(after_the_wait(state)) == (all_of_them,), place


@pytest.mark.parametrize("code", ALL)
def test_failure_of_the_stream_of_a_single_mailbox(code: str) -> None:
    """In a group with one member, a failure of the connection is a failure of the mailbox."""
    for place, failure in places(code, "GetStreamingEvents"):
        state = advance(GroupState.start(("ann",), POLICY), Subscribed((("ann", "1"),)), now=0)
        state = advance(state, StreamEnded(0.1, (failure,), alive=False), now=20)
        if word(code) == "suspend":
            assert state.members[0].suspended
            assert main_actions(state) == (Wait(20 + 60),), place
        else:
            assert not state.members[0].suspended
        assert main_actions(state), "the group always continues"


# --- Autodiscover


def autodiscover_failure(code: str) -> Failure:
    if code.startswith("Pox"):
        page = (
            '<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006">'
            '<Response><Error Time="1" Id="2">'
            f"<ErrorCode>{code.removeprefix('Pox')}</ErrorCode><Message>It is so.</Message></Error></Response>"
            "</Autodiscover>"
        )
        try:
            answer = read_pox(page.encode())
        except ExchangeError as error:
            return error.failure
        assert isinstance(answer, Failure)
        return answer
    if not VERDICTS[code] or code.endswith(("Redirect", "Redirects")):
        return Failure(code=code)
    body = (
        f'<a:GetUserSettingsResponseMessage xmlns:a="{A}"><a:Response><a:ErrorCode>NoError</a:ErrorCode>'
        f"<a:UserResponses><a:UserResponse><a:ErrorCode>{code}</a:ErrorCode><a:ErrorMessage>It is so."
        "</a:ErrorMessage></a:UserResponse></a:UserResponses></a:Response></a:GetUserSettingsResponseMessage>"
    )
    failure = read_user_settings(envelope(body), ["bob"])["bob"]
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize("code", AUTODISCOVER)
def test_autodiscover_failure_of_a_member(code: str) -> None:
    failure = autodiscover_failure(code)
    assert failure.code == code
    state = advance(streaming(), StreamEnded(20, (_about_bob("ErrorReadEventsFailed"),)), now=20)
    assert Discover(("bob",)) in main_actions(state)
    state = advance(state, Discovered(unknown=(("bob", failure),)), now=21)
    bob = state.members[1]
    suspended = word(code) in ("suspend", "loud")
    assert bob.suspended == suspended
    assert main_actions(state) == (Stream(OTHERS, "ann"), Wait(21 + (60 if suspended else 2))), (
        "other members are not affected"
    )
    assert main_actions(after_the_wait(state)) == (Stream(OTHERS, "ann"), Discover(("bob",)))


# --- unknown codes


async def test_unknown_code_is_transient_and_is_logged_once() -> None:
    throttle = Throttle(10)
    with structlog.testing.capture_logs() as lines:
        for operation in ("Subscribe", "GetStreamingEvents"):
            for _, failure in places(UNKNOWN, operation):
                assert failure.verdict is Verdict.RETRY
                throttle.failed(failure)
        throttle.failed(Failure(code="Http418"))
        for code in VERDICTS:
            throttle.failed(Failure(code=code))
    assert [line["code"] for line in lines if line["event"] == "exchange.unknown_code"] == [
        UNKNOWN,
        "Http418",
    ]
    assert all(line["log_level"] == "warning" for line in lines)


def test_requested_wait_is_observed_for_every_code() -> None:
    for code in ALL:
        failure = Failure(code=code, wait=7)
        state = advance(streaming(), StreamEnded(0.1, (failure,), alive=False), now=20, jitter=0)
        if word(code) in ("again", "pause", "login", "loud", "full sync"):
            assert main_actions(state) == (Wait(27),), code


def test_repeated_failure_of_a_subscription_counts_once() -> None:
    """Two messages about the same subscription in one envelope are one failure."""
    for code in OF_EWS:
        failure = _about_bob(code)
        state = advance(streaming(), StreamEnded(20, (failure, failure)), now=20)
        assert [m.mailbox for m in state.members] == ["ann", "bob", "cat"]
        assert state.members[1].failures <= 1


def test_suspended_mailbox_stays_suspended_after_any_other_failure() -> None:
    """Otherwise the suspension would be logged again each time."""
    suspended = Failure(code="ErrorNonExistentMailbox")
    for code in ALL:
        start = GroupState.start(("ann", "bob", "cat"), POLICY)
        state = advance(start, Subscribed(OTHERS, (("bob", suspended),)), now=0)
        state = advance(after_the_wait(state), Subscribed(refused=(("bob", Failure(code=code)),)), now=80)
        assert state.members[1].suspended, code
        state = advance(after_the_wait(state), Subscribed((("bob", "9"),)), now=1000)
        assert not state.members[1].suspended, code


def _about_bob(code: str) -> Failure:
    return Failure(code=code, subscription_ids=("2",))


# --- limits of the wait


@pytest.mark.parametrize(("requested", "wait"), [("30", 30.0), ("86400", 3600.0), ("99999999", 3600.0)])
def test_wait_is_limited(requested: str, wait: float) -> None:
    assert http_failure(503, {"Retry-After": requested}, b"", NOW).wait == wait
    body = message("Subscribe", "ErrorServerBusy").replace(b">5000<", f">{requested}000<".encode())
    assert subscribe_failure(body).wait == http_failure(500, {}, body, NOW).wait == wait


def test_retry_after_date_is_relative_to_the_date_header() -> None:
    """The server's clock may be a year ahead, and our clock may jump."""
    headers = {"Date": "Fri, 01 Jan 2027 00:00:00 GMT", "Retry-After": "Fri, 01 Jan 2027 00:00:07 GMT"}
    assert http_failure(503, headers, b"", NOW).wait == 7
    assert http_failure(503, headers | {"Date": "rubbish"}, b"", NOW).wait == 3600
    assert http_failure(503, {"Retry-After": "Thu, 01 Jan 2026 00:00:09 GMT"}, b"", NOW).wait == 9
