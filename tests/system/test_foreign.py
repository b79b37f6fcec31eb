"""Hostile responses must not stop the daemon, affect other mailboxes or get credentials sent to other servers."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.system.processes import Listen, Start, until
from tests.system.scripted_server import (
    Request,
    Response,
    ScriptedServer,
    requested_mailboxes,
    settings_response,
    user_redirect,
    user_with_url,
)

StartServer = Callable[..., ScriptedServer]
SHORT_BACKOFF = "\n[backoff]\nfirst = 0.05\ncap = 0.1\nsuspended_first = 0.1\nsuspended_cap = 0.2\n"


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start scripted servers."""
    servers: list[ScriptedServer] = []

    def start(respond: Callable[[Request], Response], host: str = "127.0.0.1") -> ScriptedServer:
        servers.append(ScriptedServer(respond, host))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def hostile_group(server: ScriptedServer) -> str:
    """Return the configuration of a group with one mailbox at this server."""
    group = f'\n[[groups]]\news_url = "{server.url}/EWS/Exchange.asmx"\nmailboxes = ["eve@evil.example"]\n'
    return group + SHORT_BACKOFF


FAR = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
BACK_OFF = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>'
    '<faultstring>Busy</faultstring><detail><e:ResponseCode xmlns:e="urn:e">ErrorInternalServerError'
    '</e:ResponseCode><t:MessageXml xmlns:t="urn:t"><t:Value Name="BackOffMilliseconds">{}</t:Value></t:MessageXml>'
    "</detail></s:Fault></s:Body></s:Envelope>"
)
HOSTILE_RESPONSES = [
    Response(503, headers=[("Retry-After", FAR), ("Date", FAR)]),
    Response(503, headers=[("Retry-After", "Fri, 31 Dec 9999 23:59:59 -2359")]),
    Response(503, headers=[("Retry-After", "1e999"), ("Date", "Mon, 01 Jan 0001 00:00:00 +2359")]),
    *(Response(302, headers=[("Location", url)]) for url in (
        "https://[bad", "https://xn--.contoso.example/", "https://mail.contoso.example:99999/", "//\\evil", "\x01",
        "https://" + "a" * 300 + "/", "http://[::1%25eth0]:0/", "https://\xe4\xf6.\xfc/",
    )),
    Response(451, headers=[("X-MS-Location", "https://[bad")]),
    Response(404, headers=[("X-CasErrorCode", "\x01\xff" * 50)]),
    Response(401, headers=[("WWW-Authenticate", 'Basic realm="\xff, claims="!!", Negotiate \xff')]),
    *(Response(500, BACK_OFF.format(value)) for value in ("1e999", "NaN", "-5", "\u0663", "9" * 5000, "")),
    Response(401, headers=[("WWW-Authenticate", "Negotiate " + "a=" * 30_000 + '"')]),
    Response(401, headers=[("WWW-Authenticate", 'Bearer claims="' + "\\\\" * 15_000)]),
    Response(200, headers=[("Set-Cookie", "a=b; Max-Age=" + "9" * 30), ("Set-Cookie", f"c=d; expires={FAR}")]),
    Response(200, "<html/>", [("Content-Type", "text/html; charset=\xff"), ("Content-Encoding", "\x01zip")]),
    Response(200, "x", [("Content-Length", "99999999999999999999999999")]),
    Response(200, "x", [("Content-Length", "-1")]),
]  # fmt: skip


def test_hostile_responses_do_not_affect_other_mailboxes(
    simulator: Start, listen: Listen, start_server: StartServer
) -> None:
    responses = iter(HOSTILE_RESPONSES)
    hostile = start_server(lambda _request: next(responses, Response(503)))
    exchange = simulator()
    exchange.append_config(hostile_group(hostile))
    daemon = listen(exchange)
    exchange.until_streaming(4)
    until(
        lambda: len(hostile.requests) > len(HOSTILE_RESPONSES),
        lambda: f"{len(hostile.requests)} of {len(HOSTILE_RESPONSES)}",
        30,
    )
    assert daemon.logged("group.crashed") == []
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: exchange.deliveries, "the event of another mailbox")
    assert daemon.stop() == 0


ENVELOPE = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:m="http://schemas.microsoft.com/exchange/services/2006/messages" '
    'xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"><s:Body>'
    '<m:{0}Response><m:ResponseMessages><m:{0}ResponseMessage ResponseClass="{1}">'
    "<m:ResponseCode>{2}</m:ResponseCode>{3}</m:{0}ResponseMessage></m:ResponseMessages></m:{0}Response></s:Body></s:Envelope>"
)
SUBSCRIBED = ENVELOPE.format(
    "Subscribe", "Success", "NoError", "<m:SubscriptionId>subscription-1</m:SubscriptionId>"
)


def operation(request: Request) -> str:
    (name,) = re.findall(r"<(?:m:)?(\w+)", request.body.partition("Body>")[2])[:1]
    return str(name)


def test_delegate_without_folder_permissions_is_suspended(
    simulator: Start, listen: Listen, start_server: StartServer
) -> None:
    """The server accepts the subscription anyway, but would never report an event."""

    def respond(request: Request) -> Response:
        if operation(request) == "Subscribe":
            return Response(200, SUBSCRIBED)
        return Response(200, ENVELOPE.format(operation(request), "Error", "ErrorAccessDenied", ""))

    hostile = start_server(respond)
    exchange = simulator()
    exchange.append_config(
        hostile_group(hostile)
        + '\n[[mailboxes.overrides]]\naddresses = ["eve@evil.example"]\naccess = "delegate"\nfolders = ["inbox"]\n'
    )
    daemon = listen(exchange)
    exchange.until_streaming(4)
    (line, *_) = daemon.until_logged("mailbox.suspended", mailbox="eve@evil.example")
    assert line["code"] == "ErrorAccessDenied"
    assert not daemon.logged("group.streaming", anchor="eve@evil.example")
    assert daemon.stop() == 0


EVENTS = [
    ('<t:TimeStamp>2026-11-28T10:00:00Z</t:TimeStamp><t:ItemId Id="good"/>', "good", "2026-11-28T10:00:00Z"),
    ('<t:ItemId Id="no-time"/>', "no-time", None),
    ('<t:TimeStamp>yesterday</t:TimeStamp><t:ItemId Id="odd-time"/>', "odd-time", None),
    ("<t:TimeStamp>2026-11-28T10:00:00Z</t:TimeStamp>", None, None),
    ('<t:TimeStamp>2026-11-28T10:00:00Z</t:TimeStamp><t:ItemId Id=" "/>', None, None),
]


def test_events_without_an_id_or_a_time(simulator: Start, listen: Listen, start_server: StartServer) -> None:
    """Events with an id get a valid time. Events without one are counted and cause a catch-up of the mailbox."""
    events = "".join(f"<t:CreatedEvent>{event}</t:CreatedEvent>" for event, _, _ in EVENTS)
    notification = (
        f"<m:Notifications><m:Notification><t:SubscriptionId>subscription-1</t:SubscriptionId>{events}"
        "</m:Notification></m:Notifications>"
    )
    streams = 0

    def respond(request: Request) -> Response:
        nonlocal streams
        match operation(request):
            case "Subscribe":
                return Response(200, SUBSCRIBED)
            case "GetStreamingEvents":
                streams += 1
                content = notification if streams == 1 else "<m:ConnectionStatus>OK</m:ConnectionStatus>"
                return Response(200, ENVELOPE.format("GetStreamingEvents", "Success", "NoError", content))
        return Response(500)

    hostile = start_server(respond)
    exchange = simulator()
    exchange.append_config(hostile_group(hostile))
    daemon = listen(exchange)
    wanted = {subject for _, subject, _ in EVENTS if subject}
    until(
        lambda: {event.get("subject") for event in exchange.deliveries} >= wanted,
        "the events that have an id",
    )
    delivered = {event["subject"]: event for event in exchange.deliveries}
    assert delivered.keys() == wanted
    for _, subject, time in EVENTS:
        if subject is not None:
            parsed = datetime.fromisoformat(delivered[subject]["time"])
            assert time is None or parsed == datetime.fromisoformat(time)
            assert delivered[subject]["type"] == "exchange.item.created"
    (line, *_) = daemon.until_logged("stream.events_dropped")
    assert (line["mailbox"], line["events"]) == ("eve@evil.example", 2)
    assert daemon.stop() == 0


HOSTILE_SETTINGS = [
    *map(user_with_url, (
        "https://[bad", "https://xn--.contoso.example/", "https://mail.contoso.example:99999/EWS", "",
        "https://a@mail.contoso.example/", "mail", "https://mail.contoso.example/&#10;Host:",
        "https://" + "a." * 3000,
    )),
    *(user_redirect("RedirectUrl", url) for url in ("https://[bad", "https://xn--.x/", "https://a:0/", "ftp://a/")),
    *(user_redirect("RedirectAddress", address) for address in (
        "eve", "eve@", "@", "eve@[1.2.3.4]", "eve@xn--.contoso.example", "eve@" + "a" * 300, "&#10;@&#13;",
        "eve@evil.example", "EVE@contoso.example",
    )),
]  # fmt: skip


def test_hostile_settings_are_logged_and_other_mailboxes_stream(
    simulator: Start, listen: Listen, start_server: StartServer
) -> None:
    exchange = simulator()
    responses = iter(HOSTILE_SETTINGS)

    def respond(request: Request) -> Response:
        if not request.path.endswith(".svc"):
            return Response(404)
        valid = user_with_url(exchange.info["ews_url"])
        return settings_response(
            "".join(
                next(responses, user_with_url("https://[bad")) if user.startswith("eve@") else valid
                for user in requested_mailboxes(request)
            )
        )

    hostile = start_server(respond)
    exchange.replace_config(exchange.info["autodiscover_url"], f"{hostile.url}/autodiscover/autodiscover.svc")
    exchange.replace_config("ews_url", "#ews_url")
    exchange.append_config(SHORT_BACKOFF)
    with (exchange.folder / "mailboxes.txt").open("a") as file:
        file.write("eve@contoso.example\n")
    exchange.append_config(
        f'\n[[groups]]\news_url = "{exchange.info["ews_url"]}"\nmailboxes = ["{exchange.mailboxes[0]}"]\n'
    )
    daemon = listen(exchange)
    exchange.until_streaming(4)
    until(
        lambda: len(hostile.requests) > len(HOSTILE_SETTINGS),
        lambda: f"{len(hostile.requests)} of {len(HOSTILE_SETTINGS)}",
        30,
    )
    assert daemon.logged("discovery.crashed") == []
    codes = {line["code"] for line in daemon.logged("discovery.failed", mailbox="eve@contoso.example")}
    assert {"InvalidUrl", "UntrustedRedirect", "ErrorInvalidSmtpAddress", "TooManyRedirects"} <= codes
    assert daemon.stop() == 0


@pytest.mark.parametrize("location", ["EWS URL", "RedirectUrl", "302"])
def test_no_credentials_are_sent_to_a_server_named_in_a_response(
    simulator: Start, listen: Listen, start_server: StartServer, location: str
) -> None:
    exchange = simulator()
    other_server = start_server(
        lambda _request: Response(401, headers=[("WWW-Authenticate", "Basic")]), "127.0.0.2"
    )

    def respond(request: Request) -> Response:
        match location:
            case "EWS URL":
                return settings_response(
                    user_with_url(f"{other_server.url}/EWS/Exchange.asmx") * len(requested_mailboxes(request))
                )
            case "RedirectUrl":
                return settings_response(
                    user_redirect("RedirectUrl", f"{other_server.url}/a.svc")
                    * len(requested_mailboxes(request))
                )
        return Response(302, headers=[("Location", f"{other_server.url}/autodiscover/autodiscover.svc")])

    hostile = start_server(respond)
    exchange.replace_config(exchange.info["autodiscover_url"], f"{hostile.url}/autodiscover/autodiscover.svc")
    exchange.replace_config("ews_url", "#ews_url")
    exchange.append_config(SHORT_BACKOFF)
    daemon = listen(exchange)
    (failed, *_) = daemon.until_logged("discovery.failed", 4)
    assert failed["code"] == "InsecureRedirect"
    assert "127.0.0.2" in failed["text"]
    assert daemon.stop() == 0
    assert "authorization" in hostile.requests[0].headers, "the configured server must get credentials"
    assert other_server.requests == []


def test_address_with_an_umlaut_streams(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--person", "jürgen", "--backends", "1")
    mailbox = "jürgen@contoso.example"
    assert mailbox in exchange.mailboxes
    daemon = listen(exchange)
    exchange.until_streaming(5)
    assert daemon.logged("group.crashed") == []
    exchange.create_events(mailbox)
    until(lambda: [event for event in exchange.deliveries if mailbox in str(event)], "its event")
    assert daemon.stop() == 0


@pytest.mark.parametrize("which", [0, -1], ids=["anchor", "another"])
def test_only_the_refused_mailbox_is_suspended(simulator: Start, listen: Listen, which: int) -> None:
    exchange = simulator("--lock-after", "4", "--backends", "1")
    refused = sorted(exchange.mailboxes)[which]
    exchange.inject_fault(kind="http", status=401, mailbox=refused, times=1000)
    exchange.append_config(SHORT_BACKOFF)
    daemon = listen(exchange)
    exchange.until_streaming(3)
    (suspended, *_) = daemon.until_logged("mailbox.suspended", mailbox=refused)
    assert suspended["code"] == "MailboxRefused"
    daemon.until_logged("auth.mailbox_refused", mailbox=refused)
    daemon.until_logged("group.subscribing", 8)  # the daemon keeps retrying it
    assert [line for line in daemon.logged("auth.refused") if line["pause"]] == []
    assert {line["mailbox"] for line in daemon.logged("mailbox.suspended")} == {refused}
    assert exchange.state()["mailboxes_streaming"] == 3
    assert daemon.stop() == 0
