"""Faults in an open stream."""

import pytest
from lxml import etree

from listener.simulator import faults
from listener.simulator.settings import Settings, StreamFormat
from tests.simulator.client import NAMES, Client, Reader, envelopes
from tests.simulator.codes import CODES
from tests.xsd import validate, xsd_available


class StreamSetup:
    """Two mailboxes on one stream that has sent its first heartbeat."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.client = Client(settings)
        self.alice, self.bob = self.client.mailboxes[:2]
        anchor = {"anchor": self.alice.address, "affinity": True}
        self.ids = [self.client.subscribe(each, **anchor) for each in (self.alice, self.bob)]
        self.reader: Reader = self.client.stream(self.alice, self.ids, affinity=True)
        assert self.reader.read() == ["OK"]

    def deliver_mail(self) -> None:
        for mailbox in (self.alice, self.bob):
            self.client.exchange.publish(mailbox.deliver("Hello", "x@fabrikam.example", self.client.now))


MAIL_EVENTS = ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]


@pytest.mark.parametrize("code", CODES)
def test_stream_code(code: str) -> None:
    setup = StreamSetup()
    (line,) = setup.client.make_fault("stream_code", code=code)
    assert setup.reader.read() == [f"{code} 1"]
    assert setup.reader.stream.ended
    assert line.subscription in setup.ids
    assert line.mailbox in (setup.alice.address, setup.bob.address)
    assert line.backend == setup.reader.stream.backend


@xsd_available
@pytest.mark.parametrize("ids", ["none", "one", "all"])
def test_errors_are_valid(ids: str) -> None:
    setup = StreamSetup()
    setup.client.make_fault("stream_code", code="ErrorExpiredSubscription", ids=ids)
    (root,) = envelopes(setup.reader.bytes())
    body = root.find("s:Body/*", NAMES)
    assert body is not None
    validate(body)
    assert len(root.findall(".//t:SubscriptionId", NAMES)) == {"none": 0, "one": 1, "all": 2}[ids]


def test_lost_subscription_is_not_removed_twice() -> None:
    setup = StreamSetup()
    for _ in range(2):
        setup.client.make_fault("stream_code", code="ErrorSubscriptionNotFound", ends=False)
    assert list(setup.client.exchange.subscriptions) == []
    assert setup.client.make_fault("stream_code", code="ErrorSubscriptionNotFound") == []
    ids = [
        id_.text
        for root in envelopes(setup.reader.bytes())
        for id_ in root.iterfind(".//t:SubscriptionId", NAMES)
    ]
    assert sorted(map(str, ids)) == sorted(setup.ids)


@pytest.mark.parametrize(
    ("code", "ids", "left"),
    [
        ("ErrorSubscriptionNotFound", "one", 1),
        ("ErrorSubscriptionNotFound", "all", 0),
        ("ErrorSubscriptionNotFound", "none", 0),
        ("ErrorInternalServerTransientError", "all", 2),
    ],
)
def test_stream_code_for_a_lost_subscription_removes_it(code: str, ids: str, left: int) -> None:
    setup = StreamSetup()
    setup.client.make_fault("stream_code", code=code, ids=ids)
    assert len(list(setup.client.exchange.subscriptions)) == left
    setup.reader.hang_up()
    assert setup.client.exchange.subscriptions.queued() == 0


def test_open_stream_sends_only_heartbeats_after_an_error() -> None:
    setup = StreamSetup(Settings(rate=0, heartbeat=45))
    setup.client.make_fault("stream_code", code="ErrorServerBusy", ends=False, mailbox=setup.alice.address)
    setup.deliver_mail()
    assert setup.reader.read() == ["ErrorServerBusy 1"]
    setup.client.now += 45
    assert setup.reader.read() == ["OK"]
    assert not setup.reader.stream.ended


def test_closed_too_early() -> None:
    setup = StreamSetup()
    setup.deliver_mail()
    setup.client.make_fault("closed")
    assert setup.reader.read() == [*MAIL_EVENTS, *MAIL_EVENTS, "Closed"]
    assert setup.reader.stream.ended


def test_closed_twice() -> None:
    setup = StreamSetup()
    setup.client.make_fault("closed", then="closed")
    assert setup.reader.read() == ["Closed", "Closed"]
    assert setup.reader.stream.ended


def test_closed_followed_by_events() -> None:
    setup = StreamSetup()
    setup.client.make_fault("closed", then="events", seconds=2)
    assert setup.reader.read() == ["Closed"]
    setup.deliver_mail()
    assert setup.reader.read() == MAIL_EVENTS * 2
    setup.client.now += 2
    assert setup.reader.read() == []
    assert setup.reader.stream.ended


def test_padding() -> None:
    setup = StreamSetup()
    setup.client.make_fault("padding")
    data = setup.reader.bytes()
    assert 50_000_000 < len(data) < 50_002_000
    assert data.startswith(b"<Envelope")
    assert data.endswith(b"</Envelope>")


@pytest.mark.parametrize("form", ["reference", "control", "utf8"])
def test_invalid_characters(form: str) -> None:
    setup = StreamSetup()
    setup.client.make_fault("invalid_characters", form=form)
    data = setup.reader.bytes()
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(data)
    # Without the forbidden characters, a heartbeat remains.
    for bad in (b"&#x0;", b"&#x1F;", b"\x00", b"\x1f", b"\xc3\x28\xff"):
        data = data.replace(bad, b"")
    assert etree.fromstring(data).findtext(".//m:ConnectionStatus", namespaces=NAMES) == "OK"


@pytest.mark.parametrize("declaration", [0.0, 1.0])
def test_doctype(declaration: float) -> None:
    setup = StreamSetup(Settings(rate=0, stream_format=StreamFormat(declaration=declaration)))
    setup.client.make_fault("doctype", bomb=False)
    root = etree.fromstring(setup.reader.bytes())
    assert root.findtext(".//m:MessageText", namespaces=NAMES) == "a word"
    setup.client.make_fault("doctype")
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(setup.reader.bytes(), etree.XMLParser(resolve_entities=True))


@pytest.mark.parametrize("kind", ["slow", "silent_stream"])
def test_stream_faults_that_end_after_seconds(kind: str) -> None:
    setup = StreamSetup()
    woken: list[float] = []
    setup.reader.stream.wake = lambda: woken.append(setup.client.now)
    setup.client.make_fault(kind, seconds=5)
    assert setup.reader.stream.fault is not None
    assert setup.reader.stream.fault.kind == kind
    setup.client.advance_time(4)
    assert setup.reader.stream.fault is not None
    setup.client.advance_time(1)
    assert setup.reader.stream.fault is None
    assert len(woken) == 2


def test_cut_is_set_on_the_stream() -> None:
    setup = StreamSetup()
    setup.client.make_fault("cut", how="close")
    assert setup.reader.stream.fault == faults.Cut(how="close")


def test_fault_matches_mailbox_and_back_end_of_a_stream() -> None:
    client = Client()
    (alice,), (bob,) = client.on(0), client.on(1)
    streams = [client.stream(each, [client.subscribe(each)]) for each in (alice, bob)]
    for reader in streams:
        reader.read()
    client.make_fault("closed", mailbox=bob.address)
    assert [reader.read() for reader in streams] == [[], ["Closed"]]
    client.make_fault("closed", backend="EX01")
    assert [reader.read() for reader in streams] == [["Closed"], []]


def test_fault_waits_for_a_stream() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    assert client.make_fault("closed") == []
    assert client.exchange.fault_scheduler.waits_for_stream
    client.advance_time(1)
    reader = client.stream(alice, [id_])
    assert reader.read() == ["OK"]
    client.advance_time(0.1)
    assert reader.read() == ["Closed"]
    assert client.exchange.fault_scheduler.made == {"closed": 1}
    assert not client.exchange.fault_scheduler.waits_for_stream


def test_fault_expires_without_a_matching_stream() -> None:
    client = Client()
    client.make_fault("closed", within=5)
    client.advance_time(5)
    assert not client.exchange.fault_scheduler.waits_for_stream
    assert client.ledger.faults == 0
