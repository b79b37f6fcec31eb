"""A test client that writes requests by hand and shares no code with the listener."""

from base64 import b64encode
from collections.abc import Iterable

from lxml import etree

from listener.simulator.exchange import Exchange
from listener.simulator.faults import parse
from listener.simulator.frontend import COOKIE, override_cookie
from listener.simulator.http import HttpRequest, Reply
from listener.simulator.ledger import Ledger, Line
from listener.simulator.mailstore import KINDS, Mailbox
from listener.simulator.settings import Settings
from listener.simulator.subscriptions import Stream

S = "http://schemas.xmlsoap.org/soap/envelope/"
M = "http://schemas.microsoft.com/exchange/services/2006/messages"
T = "http://schemas.microsoft.com/exchange/services/2006/types"
NAMES = {"s": S, "m": M, "t": T}
NOON = 1_700_000_000.0


def envelope(body: str, *, impersonate: str | None = None, version: str = "Exchange2013_SP1") -> bytes:
    impersonation = ""
    if impersonate is not None:
        sid = f"<t:PrimarySmtpAddress>{impersonate}</t:PrimarySmtpAddress>"
        impersonation = (
            f"<t:ExchangeImpersonation><t:ConnectingSID>{sid}</t:ConnectingSID></t:ExchangeImpersonation>"
        )
    return (
        f'<s:Envelope xmlns:s="{S}" xmlns:m="{M}" xmlns:t="{T}"><s:Header>'
        f'<t:RequestServerVersion Version="{version}"/>{impersonation}</s:Header><s:Body>{body}</s:Body></s:Envelope>'
    ).encode()


def subscribe_body(kinds: Iterable[str] = KINDS, folders: str = "") -> str:
    everything = "" if folders else ' SubscribeToAllFolders="true"'
    types = "".join(f"<t:EventType>{kind}</t:EventType>" for kind in kinds)
    listed = f"<t:FolderIds>{folders}</t:FolderIds>" if folders else ""
    return (
        f"<m:Subscribe><m:StreamingSubscriptionRequest{everything}>{listed}<t:EventTypes>{types}</t:EventTypes>"
        "</m:StreamingSubscriptionRequest></m:Subscribe>"
    )


def stream_body(ids: Iterable[str], minutes: int = 30) -> str:
    listed = "".join(f"<t:SubscriptionId>{id_}</t:SubscriptionId>" for id_ in ids)
    return (
        f"<m:GetStreamingEvents><m:SubscriptionIds>{listed}</m:SubscriptionIds>"
        f"<m:ConnectionTimeout>{minutes}</m:ConnectionTimeout></m:GetStreamingEvents>"
    )


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


class Client:
    """Sends requests to an Exchange without sockets. Tests change `now`, the time."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(rate=0)
        self.now = NOON
        self.ledger = Ledger(None)
        self.exchange = Exchange(self.settings, self.ledger, self.now)
        self.exchange.base_url = "https://mail.contoso.example"
        self.mailboxes = list(self.exchange.directory)

    def on(self, backend: int, *, count: int = 1) -> list[Mailbox]:
        """Return mailboxes on the n-th back end, counted from 0."""
        directory = self.exchange.directory
        return [m for m in self.mailboxes if directory.home(m) == directory.backends[backend]][:count]

    def post(
        self,
        body: str,
        *,
        impersonate: str | None = None,
        anchor: str | None = None,
        affinity: bool = False,
        cookie: int | None = None,
        account: str | None = None,
        version: str = "Exchange2013_SP1",
    ) -> Reply:
        headers = {}
        if anchor or impersonate:
            headers["x-anchormailbox"] = anchor or impersonate or ""
        if affinity:
            headers["x-preferserveraffinity"] = "true"
        if cookie is not None:
            headers["cookie"] = f"{COOKIE}={override_cookie(self.exchange.directory.backends[cookie])}"
        content = envelope(body, impersonate=impersonate, version=version)
        request = HttpRequest("POST", "/EWS/Exchange.asmx", headers, content, account or self.settings.user)
        return self.exchange.handle(request, self.now)

    def subscribe(self, mailbox: Mailbox, **options: object) -> str:
        """Return the id of a new subscription to all folders."""
        body = str(options.pop("body", subscribe_body()))
        reply = self.post(body, impersonate=mailbox.address, **options)  # type: ignore[arg-type]
        assert code(reply) == "NoError"
        id_ = message(reply).findtext("m:SubscriptionId", namespaces=NAMES)
        assert id_
        reply.finish()
        return id_

    def make_fault(self, kind: str, **given: object) -> list[Line]:
        """Make a fault now. Return its ledger lines, none if it is pending."""
        return self.exchange.fault_scheduler.make_now(parse({"kind": kind, **given}), self.now)

    def advance_time(self, seconds: float) -> None:
        """Advance the time."""
        self.now += seconds
        self.exchange.advance(self.now)

    def stream(self, mailbox: Mailbox, ids: Iterable[str], minutes: int = 30, **options: object) -> "Reader":
        body = stream_body(ids, minutes)
        reply = self.post(body, impersonate=mailbox.address, **options)  # type: ignore[arg-type]
        assert reply.status == 200
        assert isinstance(reply.body, Stream)
        return Reader(self, reply.body, reply)


class Reader:
    """Reads a stream at the client's time, as short lines of text."""

    def __init__(self, client: Client, stream: Stream, reply: Reply) -> None:
        self.stream = stream
        self.reply = reply
        self._client = client

    def bytes(self) -> bytes:
        return self.stream.take(self._client.now)

    def read(self) -> list[str]:
        """Return events by kind, `OK` and `Closed`, error codes with the number of ids, `MORE` for
        MoreEvents."""
        lines = []
        for root in envelopes(self.bytes()):
            for each in root.iter(f"{{{M}}}GetStreamingEventsResponseMessage"):
                lines += _to_lines(each)
        return lines

    def hang_up(self) -> None:
        self.stream.close(self._client.now)
        self.reply.finish()


def _to_lines(each: etree._Element) -> list[str]:
    lines = []
    failure = each.findtext("m:ResponseCode", namespaces=NAMES)
    if failure != "NoError":
        lines.append(f"{failure} {len(each.findall('m:ErrorSubscriptionIds/t:SubscriptionId', NAMES))}")
    for notification in each.findall("m:Notifications/*", NAMES):
        names = [etree.QName(child).localname for child in notification]
        lines += [name for name in names if name.endswith("Event")]
        lines += ["MORE"] if notification.findtext("t:MoreEvents", namespaces=NAMES) == "true" else []
    lines += [element.text or "" for element in each.iterfind("m:ConnectionStatus", NAMES)]
    return lines


def envelopes(data: bytes) -> list[etree._Element]:
    """Split concatenated envelopes, with any prefixes and declarations."""
    found = []
    while data:
        start = data.find(b"Envelope", data.find(b"?>") if data.startswith(b"<?xml") else 0)
        tag = data[:start].rpartition(b"<")[2]
        end = data.index(b"</" + tag + b"Envelope>") + len(tag) + 11
        found.append(etree.fromstring(data[:end]))
        data = data[end:]
    return found


def root(reply: Reply) -> etree._Element:
    assert isinstance(reply.body, bytes)
    return etree.fromstring(reply.body)


def message(reply: Reply) -> etree._Element:
    """Return the first response message."""
    found = root(reply).find("s:Body/*/m:ResponseMessages/*", NAMES)
    assert found is not None, reply.body
    return found


def code(reply: Reply) -> str:
    """Return the ResponseCode of the first response message, or status and code of a SOAP fault."""
    if isinstance(reply.body, Stream):
        return "stream"
    fault = root(reply).findtext(
        ".//{http://schemas.microsoft.com/exchange/services/2006/errors}ResponseCode"
    )
    if fault:
        return f"{reply.status} {fault}"
    return message(reply).findtext("m:ResponseCode", namespaces=NAMES) or ""
