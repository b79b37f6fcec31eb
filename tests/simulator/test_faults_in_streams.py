"""What faults do to an open stream."""

import pytest
from lxml import etree

from listener.simulator import faults
from listener.simulator.settings import Settings, Wire
from tests.simulator.client import NAMES, Client, Reader, envelopes
from tests.simulator.codes import CODES
from tests.xsd import validate, xsd_available


class Office:
    """Two mailboxes on one stream that has said its first heart-beat."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.client = Client(settings)
        self.alice, self.bob = self.client.mailboxes[:2]
        anchor = {"anchor": self.alice.address, "affinity": True}
        self.ids = [self.client.subscribe(each, **anchor) for each in (self.alice, self.bob)]
        self.reader: Reader = self.client.stream(self.alice, self.ids, affinity=True)
        assert self.reader.read() == ["OK"]

    def arrive(self) -> None:
        for mailbox in (self.alice, self.bob):
            self.client.exchange.publish(mailbox.deliver("Hello", "x@fabrikam.example", self.client.now))


ARRIVAL = ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]


@pytest.mark.parametrize("code", CODES)
def test_every_code(code: str) -> None:
    office = Office()
    (line,) = office.client.break_("stream_code", code=code)
    assert office.reader.read() == [f"{code} 1"]
    assert office.reader.stream.ended
    assert line.subscription in office.ids
    assert line.mailbox in (office.alice.address, office.bob.address)
    assert line.backend == office.reader.stream.backend


@xsd_available
@pytest.mark.parametrize("ids", ["none", "one", "all"])
def test_errors_are_valid(ids: str) -> None:
    office = Office()
    office.client.break_("stream_code", code="ErrorExpiredSubscription", ids=ids)
    (root,) = envelopes(office.reader.bytes())
    body = root.find("s:Body/*", NAMES)
    assert body is not None
    validate(body)
    assert len(root.findall(".//t:SubscriptionId", NAMES)) == {"none": 0, "one": 1, "all": 2}[ids]


def test_what_is_gone_is_not_lost_twice() -> None:
    office = Office()
    for _ in range(2):
        office.client.break_("stream_code", code="ErrorSubscriptionNotFound", ends=False)
    assert list(office.client.exchange.subscriptions) == []
    assert office.client.break_("stream_code", code="ErrorSubscriptionNotFound") == []
    ids = [
        id_.text
        for root in envelopes(office.reader.bytes())
        for id_ in root.iterfind(".//t:SubscriptionId", NAMES)
    ]
    assert sorted(map(str, ids)) == sorted(office.ids)


@pytest.mark.parametrize(
    ("code", "ids", "left"),
    [
        ("ErrorSubscriptionNotFound", "one", 1),
        ("ErrorSubscriptionNotFound", "all", 0),
        ("ErrorSubscriptionNotFound", "none", 0),
        ("ErrorInternalServerTransientError", "all", 2),
    ],
)
def test_a_code_that_says_that_a_subscription_is_lost_makes_it_so(code: str, ids: str, left: int) -> None:
    office = Office()
    office.client.break_("stream_code", code=code, ids=ids)
    assert len(list(office.client.exchange.subscriptions)) == left
    office.reader.hang_up()
    assert office.client.exchange.subscriptions.queued() == 0


def test_beside_an_error_a_stream_that_stays_open_has_nothing_but_heart_beats() -> None:
    office = Office(Settings(rate=0, heartbeat=45))
    office.client.break_("stream_code", code="ErrorServerBusy", ends=False, mailbox=office.alice.address)
    office.arrive()
    assert office.reader.read() == ["ErrorServerBusy 1"]
    office.client.now += 45
    assert office.reader.read() == ["OK"]
    assert not office.reader.stream.ended


def test_closed_early() -> None:
    office = Office()
    office.arrive()
    office.client.break_("closed")
    assert office.reader.read() == [*ARRIVAL, *ARRIVAL, "Closed"]
    assert office.reader.stream.ended


def test_closed_twice() -> None:
    office = Office()
    office.client.break_("closed", then="closed")
    assert office.reader.read() == ["Closed", "Closed"]
    assert office.reader.stream.ended


def test_closed_and_more_events() -> None:
    office = Office()
    office.client.break_("closed", then="events", seconds=2)
    assert office.reader.read() == ["Closed"]
    office.arrive()
    assert office.reader.read() == ARRIVAL * 2
    office.client.now += 2
    assert office.reader.read() == []
    assert office.reader.stream.ended


def test_padding() -> None:
    office = Office()
    office.client.break_("padding")
    data = office.reader.bytes()
    assert 50_000_000 < len(data) < 50_002_000
    assert data.startswith(b"<Envelope")
    assert data.endswith(b"</Envelope>")


@pytest.mark.parametrize("form", ["reference", "control", "utf8"])
def test_invalid_characters(form: str) -> None:
    office = Office()
    office.client.break_("invalid_characters", form=form)
    data = office.reader.bytes()
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(data)
    # Whoever drops what XML forbids has a heart-beat left.
    for bad in (b"&#x0;", b"&#x1F;", b"\x00", b"\x1f", b"\xc3\x28\xff"):
        data = data.replace(bad, b"")
    assert etree.fromstring(data).findtext(".//m:ConnectionStatus", namespaces=NAMES) == "OK"


@pytest.mark.parametrize("declaration", [0.0, 1.0])
def test_a_document_type_definition(declaration: float) -> None:
    office = Office(Settings(rate=0, wire=Wire(declaration=declaration)))
    office.client.break_("doctype", bomb=False)
    root = etree.fromstring(office.reader.bytes())
    assert root.findtext(".//m:MessageText", namespaces=NAMES) == "a word"
    office.client.break_("doctype")
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(office.reader.bytes(), etree.XMLParser(resolve_entities=True))


@pytest.mark.parametrize("kind", ["slow", "silent_stream"])
def test_manners_that_end_by_themselves(kind: str) -> None:
    office = Office()
    woken: list[float] = []
    office.reader.stream.wake = lambda: woken.append(office.client.now)
    office.client.break_(kind, seconds=5)
    assert office.reader.stream.fault is not None
    assert office.reader.stream.fault.kind == kind
    office.client.pass_(4)
    assert office.reader.stream.fault is not None
    office.client.pass_(1)
    assert office.reader.stream.fault is None
    assert len(woken) == 2


def test_a_cut_is_made_by_the_connection() -> None:
    office = Office()
    office.client.break_("cut", how="close")
    assert office.reader.stream.fault == faults.Cut(how="close")


def test_the_stream_of_a_mailbox_or_of_a_back_end() -> None:
    client = Client()
    (alice,), (bob,) = client.on(0), client.on(1)
    streams = [client.stream(each, [client.subscribe(each)]) for each in (alice, bob)]
    for reader in streams:
        reader.read()
    client.break_("closed", mailbox=bob.address)
    assert [reader.read() for reader in streams] == [[], ["Closed"]]
    client.break_("closed", backend="EX01")
    assert [reader.read() for reader in streams] == [["Closed"], []]


def test_without_a_stream_it_waits_for_one() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    assert client.break_("closed") == []
    assert client.exchange.fault_scheduler.waits_for_stream
    client.pass_(1)
    reader = client.stream(alice, [id_])
    assert reader.read() == ["OK"]
    client.pass_(0.1)
    assert reader.read() == ["Closed"]
    assert client.exchange.fault_scheduler.made == {"closed": 1}
    assert not client.exchange.fault_scheduler.waits_for_stream


def test_without_a_stream_in_time_it_lapses() -> None:
    client = Client()
    client.break_("closed", within=5)
    client.pass_(5)
    assert not client.exchange.fault_scheduler.waits_for_stream
    assert client.ledger.faults == 0
