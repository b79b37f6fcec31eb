"""What outside servers answer must neither end the daemon nor harm other mailboxes, nor lead credentials astray."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.system.processes import Listen, Start, until
from tests.system.strange import Asked, Strange, Told, lives_at, redirected, settings, users_of

Serve = Callable[..., Strange]
SOON = "\n[backoff]\nfirst = 0.05\ncap = 0.1\nsuspended_first = 0.1\nsuspended_cap = 0.2\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that answer by script."""
    servers: list[Strange] = []

    def start(answer: Callable[[Asked], Told], host: str = "127.0.0.1") -> Strange:
        servers.append(Strange(answer, host))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def eve_at(server: Strange) -> str:
    """The configuration of a mailbox that this server has."""
    return (
        f'\n[[groups]]\news_url = "{server.url}/EWS/Exchange.asmx"\nmailboxes = ["eve@evil.example"]\n{SOON}'
    )


FAR = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
BACK_OFF = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>'
    '<faultstring>Busy</faultstring><detail><e:ResponseCode xmlns:e="urn:e">ErrorInternalServerError'
    '</e:ResponseCode><t:MessageXml xmlns:t="urn:t"><t:Value Name="BackOffMilliseconds">{}</t:Value></t:MessageXml>'
    "</detail></s:Fault></s:Body></s:Envelope>"
)
HOSTILE = [
    Told(503, headers=[("Retry-After", FAR), ("Date", FAR)]),
    Told(503, headers=[("Retry-After", "Fri, 31 Dec 9999 23:59:59 -2359")]),
    Told(503, headers=[("Retry-After", "1e999"), ("Date", "Mon, 01 Jan 0001 00:00:00 +2359")]),
    *(Told(302, headers=[("Location", where)]) for where in (
        "https://[bad", "https://xn--.contoso.example/", "https://mail.contoso.example:99999/", "//\\evil", "\x01",
        "https://" + "a" * 300 + "/", "http://[::1%25eth0]:0/", "https://\xe4\xf6.\xfc/",
    )),
    Told(451, headers=[("X-MS-Location", "https://[bad")]),
    Told(404, headers=[("X-CasErrorCode", "\x01\xff" * 50)]),
    Told(401, headers=[("WWW-Authenticate", 'Basic realm="\xff, claims="!!", Negotiate \xff')]),
    *(Told(500, BACK_OFF.format(value)) for value in ("1e999", "NaN", "-5", "\u0663", "9" * 5000, "")),
    Told(401, headers=[("WWW-Authenticate", "Negotiate " + "a=" * 30_000 + '"')]),
    Told(401, headers=[("WWW-Authenticate", 'Bearer claims="' + "\\\\" * 15_000)]),
    Told(200, headers=[("Set-Cookie", "a=b; Max-Age=" + "9" * 30), ("Set-Cookie", f"c=d; expires={FAR}")]),
    Told(200, "<html/>", [("Content-Type", "text/html; charset=\xff"), ("Content-Encoding", "\x01zip")]),
    Told(200, "x", [("Content-Length", "99999999999999999999999999")]),
    Told(200, "x", [("Content-Length", "-1")]),
]  # fmt: skip


def test_hostile_values_end_nothing(simulator: Start, listen: Listen, serve: Serve) -> None:
    turn = iter(HOSTILE)
    strange = serve(lambda _asked: next(turn, Told(503)))
    there = simulator()
    there.append_config(eve_at(strange))
    daemon = listen(there)
    there.until_streaming(4)
    until(lambda: len(strange.asked) > len(HOSTILE), lambda: f"{len(strange.asked)} of {len(HOSTILE)}", 30)
    assert daemon.logged("group.crashed") == []
    there.create_events(there.mailboxes[0])
    until(lambda: there.deliveries, "the event of another mailbox")
    assert daemon.stop() == 0


ENVELOPE = (
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:m="http://schemas.microsoft.com/exchange/services/2006/messages" '
    'xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"><s:Body>'
    '<m:{0}Response><m:ResponseMessages><m:{0}ResponseMessage ResponseClass="{1}">'
    "<m:ResponseCode>{2}</m:ResponseCode>{3}</m:{0}ResponseMessage></m:ResponseMessages></m:{0}Response></s:Body></s:Envelope>"
)
SUBSCRIBED = ENVELOPE.format("Subscribe", "Success", "NoError", "<m:SubscriptionId>theirs</m:SubscriptionId>")


def operation(asked: Asked) -> str:
    (name,) = re.findall(r"<(?:m:)?(\w+)", asked.body.partition("Body>")[2])[:1]
    return str(name)


def test_a_delegate_with_rights_on_no_folder_is_suspended(
    simulator: Start, listen: Listen, serve: Serve
) -> None:
    """The server subscribes it all the same, and would report nothing."""

    def answer(asked: Asked) -> Told:
        if operation(asked) == "Subscribe":
            return Told(200, SUBSCRIBED)
        return Told(200, ENVELOPE.format(operation(asked), "Error", "ErrorAccessDenied", ""))

    strange = serve(answer)
    there = simulator()
    there.append_config(
        eve_at(strange)
        + '\n[[mailboxes.overrides]]\naddresses = ["eve@evil.example"]\naccess = "delegate"\nfolders = ["inbox"]\n'
    )
    daemon = listen(there)
    there.until_streaming(4)
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


def test_events_without_an_id_or_a_time(simulator: Start, listen: Listen, serve: Serve) -> None:
    """Each that has an id comes with a valid time; for the others the mailbox is compared, and they are counted."""
    told = "".join(f"<t:CreatedEvent>{event}</t:CreatedEvent>" for event, _, _ in EVENTS)
    notification = (
        f"<m:Notifications><m:Notification><t:SubscriptionId>theirs</t:SubscriptionId>{told}"
        "</m:Notification></m:Notifications>"
    )
    streams = 0

    def answer(asked: Asked) -> Told:
        nonlocal streams
        match operation(asked):
            case "Subscribe":
                return Told(200, SUBSCRIBED)
            case "GetStreamingEvents":
                streams += 1
                content = notification if streams == 1 else "<m:ConnectionStatus>OK</m:ConnectionStatus>"
                return Told(200, ENVELOPE.format("GetStreamingEvents", "Success", "NoError", content))
        return Told(500)

    strange = serve(answer)
    there = simulator()
    there.append_config(eve_at(strange))
    daemon = listen(there)
    wanted = {subject for _, subject, _ in EVENTS if subject}
    until(
        lambda: {event.get("subject") for event in there.deliveries} >= wanted, "the events that have an id"
    )
    came = {event["subject"]: event for event in there.deliveries}
    assert came.keys() == wanted
    for _, subject, moment in EVENTS:
        if subject is not None:
            parsed = datetime.fromisoformat(came[subject]["time"])
            assert moment is None or parsed == datetime.fromisoformat(moment)
            assert came[subject]["type"] == "exchange.item.created"
    (line, *_) = daemon.until_logged("stream.events_dropped")
    assert (line["mailbox"], line["events"]) == ("eve@evil.example", 2)
    assert daemon.stop() == 0


PLACES = [
    *map(lives_at, (
        "https://[bad", "https://xn--.contoso.example/", "https://mail.contoso.example:99999/EWS", "",
        "https://a@mail.contoso.example/", "mail", "https://mail.contoso.example/&#10;Host:",
        "https://" + "a." * 3000,
    )),
    *(redirected("RedirectUrl", url) for url in ("https://[bad", "https://xn--.x/", "https://a:0/", "ftp://a/")),
    *(redirected("RedirectAddress", address) for address in (
        "eve", "eve@", "@", "eve@[1.2.3.4]", "eve@xn--.contoso.example", "eve@" + "a" * 300, "&#10;@&#13;",
        "eve@evil.example", "EVE@contoso.example",
    )),
]  # fmt: skip


def test_hostile_places_are_told_and_the_others_stream(
    simulator: Start, listen: Listen, serve: Serve
) -> None:
    there = simulator()
    turn = iter(PLACES)

    def answer(asked: Asked) -> Told:
        if not asked.path.endswith(".svc"):
            return Told(404)
        good = lives_at(there.info["ews_url"])
        return settings(
            "".join(
                next(turn, lives_at("https://[bad")) if user.startswith("eve@") else good
                for user in users_of(asked)
            )
        )

    strange = serve(answer)
    there.replace_config(there.info["autodiscover_url"], f"{strange.url}/autodiscover/autodiscover.svc")
    there.replace_config("ews_url", "#ews_url")
    there.append_config(SOON)
    with (there.folder / "mailboxes.txt").open("a") as file:
        file.write("eve@contoso.example\n")
    there.append_config(
        f'\n[[groups]]\news_url = "{there.info["ews_url"]}"\nmailboxes = ["{there.mailboxes[0]}"]\n'
    )
    daemon = listen(there)
    there.until_streaming(4)
    until(lambda: len(strange.asked) > len(PLACES), lambda: f"{len(strange.asked)} of {len(PLACES)}", 30)
    assert daemon.logged("discovery.crashed") == []
    codes = {line["code"] for line in daemon.logged("discovery.failed", mailbox="eve@contoso.example")}
    assert {"InvalidUrl", "UntrustedRedirect", "ErrorInvalidSmtpAddress", "TooManyRedirects"} <= codes
    assert daemon.stop() == 0


@pytest.mark.parametrize("named", ["EWS URL", "RedirectUrl", "302"])
def test_no_credentials_reach_a_server_that_an_answer_names(
    simulator: Start, listen: Listen, serve: Serve, named: str
) -> None:
    there = simulator()
    stranger = serve(lambda _asked: Told(401, headers=[("WWW-Authenticate", "Basic")]), "127.0.0.2")

    def answer(asked: Asked) -> Told:
        match named:
            case "EWS URL":
                return settings(lives_at(f"{stranger.url}/EWS/Exchange.asmx") * len(users_of(asked)))
            case "RedirectUrl":
                return settings(redirected("RedirectUrl", f"{stranger.url}/a.svc") * len(users_of(asked)))
        return Told(302, headers=[("Location", f"{stranger.url}/autodiscover/autodiscover.svc")])

    strange = serve(answer)
    there.replace_config(there.info["autodiscover_url"], f"{strange.url}/autodiscover/autodiscover.svc")
    there.replace_config("ews_url", "#ews_url")
    there.append_config(SOON)
    daemon = listen(there)
    (failed, *_) = daemon.until_logged("discovery.failed", 4)
    assert failed["code"] == "InsecureRedirect"
    assert "127.0.0.2" in failed["text"]
    assert daemon.stop() == 0
    assert "authorization" in strange.asked[0].headers, "the configured server is asked with credentials"
    assert stranger.asked == []


def test_an_address_with_an_umlaut_streams(simulator: Start, listen: Listen) -> None:
    there = simulator("--person", "jürgen", "--backends", "1")
    mailbox = "jürgen@contoso.example"
    assert mailbox in there.mailboxes
    daemon = listen(there)
    there.until_streaming(5)
    assert daemon.logged("group.crashed") == []
    there.create_events(mailbox)
    until(lambda: [event for event in there.deliveries if mailbox in str(event)], "its event")
    assert daemon.stop() == 0


@pytest.mark.parametrize("which", [0, -1], ids=["anchor", "another"])
def test_a_mailbox_that_is_refused_alone_is_suspended_alone(
    simulator: Start, listen: Listen, which: int
) -> None:
    there = simulator("--lock-after", "4", "--backends", "1")
    refused = sorted(there.mailboxes)[which]
    there.inject_fault(kind="http", status=401, mailbox=refused, times=1000)
    there.append_config(SOON)
    daemon = listen(there)
    there.until_streaming(3)
    (suspended, *_) = daemon.until_logged("mailbox.suspended", mailbox=refused)
    assert suspended["code"] == "MailboxRefused"
    daemon.until_logged("auth.mailbox_refused", mailbox=refused)
    daemon.until_logged("group.subscribing", 8)  # it is asked for again and again
    assert [line for line in daemon.logged("auth.refused") if line["pause"]] == []
    assert {line["mailbox"] for line in daemon.logged("mailbox.suspended")} == {refused}
    assert there.state()["mailboxes_streaming"] == 3
    assert daemon.stop() == 0
