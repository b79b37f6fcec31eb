"""Streams and subscriptions, as transcripts of what a client reads."""

from base64 import b64decode
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from listener.simulator.mailstore import Mailbox
from listener.simulator.responses import Failure
from listener.simulator.settings import Limits, Settings, StreamFormat
from tests.simulator.client import NAMES, Client, M, T, code, envelopes, stream_body, subscribe_body
from tests.xsd import validate, xsd_available

MAIL_EVENTS = ["CreatedEvent", "NewMailEvent", "ModifiedEvent"]


def deliver_mail(client: Client, mailbox: Mailbox, count: int = 1) -> None:
    for _ in range(count):
        client.exchange.publish(mailbox.deliver("Hello", "bob@fabrikam.example", client.now))


def edit_draft(client: Client, mailbox: Mailbox) -> None:
    """Make a change that has exactly one event."""
    folder = mailbox.distinguished("drafts")
    if not folder.items:
        client.exchange.publish(mailbox.save(folder, "IPM.Note", "x", client.now))
    item = next(iter(folder.items.values()))
    client.exchange.publish(mailbox.edit(item, "y", client.now))


def test_stream_without_events() -> None:
    client = Client(Settings(rate=0, heartbeat=45))
    alice = client.mailboxes[0]
    reader = client.stream(alice, [client.subscribe(alice)], minutes=2)
    transcript = []
    while not reader.stream.ended:
        client.now = max(client.now, reader.stream.deadline)
        transcript.append((client.now - 1_700_000_000, reader.read()))
    assert transcript == [(0, ["OK"]), (45, ["OK"]), (90, ["OK"]), (120, ["Closed"])]


def test_events_are_available_at_once_and_wake_the_writer() -> None:
    client = Client()
    alice = client.mailboxes[0]
    reader = client.stream(alice, [client.subscribe(alice)])
    assert reader.read() == ["OK"]
    woken: list[float] = []
    reader.stream.wake = lambda: woken.append(client.now)
    assert reader.stream.deadline > client.now
    deliver_mail(client, alice)
    assert woken
    assert reader.stream.deadline <= client.now
    assert reader.read() == MAIL_EVENTS
    assert reader.read() == []


def test_events_are_queued_without_a_stream() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    deliver_mail(client, alice)
    first = client.stream(alice, [id_], minutes=1)
    assert first.read() == ["OK", *MAIL_EVENTS]
    client.now += 60
    assert first.read() == ["OK", "Closed"]
    first.hang_up()
    deliver_mail(client, alice)
    second = client.stream(alice, [id_])
    assert second.read() == ["OK", *MAIL_EVENTS]


def test_only_requested_kinds_and_folders() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    inbox = f'<t:FolderId Id="{alice.distinguished("inbox").id}"/>'
    new_mail = client.subscribe(alice, body=subscribe_body(["NewMailEvent"]))
    in_inbox = client.subscribe(alice, body=subscribe_body(folders=inbox))
    kinds = client.stream(alice, [new_mail])
    folders = client.stream(alice, [in_inbox])
    deliver_mail(client, alice)
    deliver_mail(client, bob)
    edit_draft(client, alice)
    item = next(iter(alice.distinguished("inbox").items.values()))
    client.exchange.publish(alice.move(item, alice.distinguished("junkemail"), client.now))
    assert kinds.read() == ["OK", "NewMailEvent"]
    # The subscription gets the move out of the folder and the folder's own change.
    assert folders.read() == ["OK", *MAIL_EVENTS, "MovedEvent", "ModifiedEvent"]


def test_fifty_events_per_notification() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice, body=subscribe_body(["NewMailEvent"]))
    deliver_mail(client, alice, 120)
    data = client.stream(alice, [id_]).bytes()
    sizes, more = [], []
    for notification in (n for root in envelopes(data) for n in root.iter(f"{{{M}}}Notification")):
        sizes.append(len(notification.findall("t:NewMailEvent", NAMES)))
        more.append(notification.findtext("t:MoreEvents", namespaces=NAMES))
    assert (sizes, more) == ([50, 50, 20], ["true", "true", None])


def test_long_queue_is_returned_in_several_chunks() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    deliver_mail(client, alice, 600)
    reader = client.stream(alice, [id_], minutes=1)
    goes = [reader.bytes()]
    while reader.stream.deadline <= client.now:
        goes.append(reader.bytes())
    assert len(goes) > 2
    assert max(map(len, goes)) < 400_000
    assert sum(go.count(b"<t:NewMailEvent>") for go in goes) == 600


def test_newest_stream_wins_after_the_old_one_wrote_its_queue() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    ids = [client.subscribe(mailbox, anchor=alice.address, affinity=True) for mailbox in (alice, bob)]
    old = client.stream(alice, ids)
    assert old.read() == ["OK"]
    deliver_mail(client, alice)
    new = client.stream(alice, ids[:1])
    deliver_mail(client, alice)
    assert old.stream.ended
    assert old.read() == [*MAIL_EVENTS, "ErrorNewEventStreamConnectionOpened 0"]
    assert old.read() == []
    assert new.read() == ["OK", *MAIL_EVENTS]


def test_bad_id_stops_the_other_subscriptions() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    deliver_mail(client, alice)
    reader = client.stream(alice, [id_, "bm9uc2Vuc2U=", "bW9yZQ=="])
    assert reader.read() == ["ErrorSubscriptionNotFound 2"]
    assert reader.stream.ended
    reader.hang_up()
    assert client.stream(alice, [id_]).read() == ["OK", *MAIL_EVENTS]


def test_stream_can_stay_open_after_a_bad_id() -> None:
    client = Client(Settings(rate=0, stream_format=StreamFormat(ends_after_bad_id=False)))
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    reader = client.stream(alice, [id_, "bm9uc2Vuc2U="], minutes=1)
    assert reader.read() == ["ErrorSubscriptionNotFound 1", "OK"]
    deliver_mail(client, alice)
    assert reader.read() == []
    client.now += 45
    assert reader.read() == ["OK"]
    client.now += 15
    assert reader.read() == ["Closed"]


def test_queue_overflow_without_a_stream() -> None:
    client = Client(Settings(rate=0, limits=Limits(queued_events=5)))
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    deliver_mail(client, alice, 2)
    assert client.exchange.subscriptions.queued() == 0
    assert client.stream(alice, [id_]).read() == ["ErrorMissedNotificationEvents 1"]
    assert client.stream(alice, [id_]).read() == ["ErrorSubscriptionNotFound 1"]


def test_queue_overflow_during_a_stream() -> None:
    client = Client(Settings(rate=0, limits=Limits(queued_events=5)))
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    reader = client.stream(alice, [id_])
    deliver_mail(client, alice, 2)
    assert reader.read() == ["OK", "ErrorMissedNotificationEvents 1"]
    assert reader.stream.ended
    assert client.stream(alice, [id_]).read() == ["ErrorSubscriptionNotFound 1"]


def test_subscription_expires_only_without_a_stream() -> None:
    client = Client(Settings(rate=0, limits=Limits(idle_minutes=5)))
    alice, bob = client.mailboxes[:2]
    read, unread = client.subscribe(alice), client.subscribe(bob)
    reader = client.stream(alice, [read])
    client.now += 299
    client.exchange.advance(client.now)
    assert len(list(client.exchange.subscriptions)) == 2
    client.now += 10
    client.exchange.advance(client.now)
    assert client.stream(bob, [unread]).read() == ["ErrorSubscriptionNotFound 1"]
    reader.hang_up()
    client.now += 310
    client.exchange.advance(client.now)
    assert client.stream(alice, [read]).read() == ["ErrorSubscriptionNotFound 1"]


def test_last_unsubscribe_ends_the_stream() -> None:
    client = Client()
    alice, bob = client.mailboxes[:2]
    ids = [client.subscribe(mailbox, anchor=alice.address, affinity=True) for mailbox in (alice, bob)]
    reader = client.stream(alice, ids)
    reader.read()
    for id_ in ids:
        body = f"<m:Unsubscribe><m:SubscriptionId>{id_}</m:SubscriptionId></m:Unsubscribe>"
        assert not reader.stream.ended
        assert code(client.post(body, impersonate=alice.address)) == "NoError"
        assert reader.read() == ["ErrorSubscriptionUnsubscribed 1"]
    assert reader.stream.ended


def test_subscription_belongs_to_its_account() -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    with pytest.raises(Failure, match="ErrorSubscriptionAccessDenied"):
        client.exchange.subscriptions.find(
            client.exchange.directory.home(alice), id_, "other@contoso.example"
        )


def test_subscription_is_unknown_on_another_back_end() -> None:
    client = Client()
    (alice,), (bob,) = client.on(0), client.on(1)
    id_ = client.subscribe(alice)
    wrong = client.stream(alice, [id_], anchor=bob.address)
    assert wrong.read() == ["ErrorSubscriptionNotFound 1"]


def test_group_stays_on_the_back_end_of_its_anchor() -> None:
    client = Client()
    (alice,), (bob,) = client.on(0), client.on(1)
    ids = [
        client.subscribe(alice, affinity=True),
        client.subscribe(bob, anchor=alice.address, affinity=True, cookie=0),
    ]
    reader = client.stream(alice, ids, affinity=True, cookie=0)
    deliver_mail(client, bob)
    assert reader.read() == ["OK", *MAIL_EVENTS]


def test_subscriptions_sometimes_share_an_envelope() -> None:
    client = Client(Settings(rate=0, stream_format=StreamFormat(combined=0.5)))
    anchor = client.mailboxes[0]
    ids = [client.subscribe(m, anchor=anchor.address, affinity=True) for m in client.mailboxes]
    reader = client.stream(anchor, ids)
    sizes: Counter[int] = Counter()
    for mailbox in client.mailboxes:
        deliver_mail(client, mailbox)
    for root in envelopes(reader.bytes()):
        sizes[len(list(root.iter(f"{{{M}}}Notification")))] += 1
    assert sum(size * count for size, count in sizes.items()) == len(client.mailboxes)
    assert max(sizes) > 1


@given(st.lists(st.sampled_from(["arrive", "arrive", "read", "reopen", "hang up", "wait"]), max_size=30))
def test_each_event_is_delivered_once_and_in_order(actions: list[str]) -> None:
    client = Client()
    alice = client.mailboxes[0]
    id_ = client.subscribe(alice)
    reader = client.stream(alice, [id_], minutes=1)
    seen = b""
    for action in [*actions, "reopen"]:
        if action == "arrive":
            deliver_mail(client, alice)
        elif action == "read":
            seen += reader.bytes()
        elif action == "wait":
            client.now += 50
        else:
            if action == "hang up":
                # All events that were taken arrived; the others are still queued.
                seen += reader.bytes()
                reader.hang_up()
            newer = client.stream(alice, [id_], minutes=1)
            seen += reader.bytes()
            reader.hang_up()
            reader = newer
    seen += reader.bytes()
    keys = [element.get("ChangeKey") for root in envelopes(seen) for element in root.iter(f"{{{T}}}ItemId")]
    numbers = [int.from_bytes(b64decode(key or "")[-6:], "big") for key in keys]
    # Each new email makes two events of one item, CreatedEvent and NewMailEvent.
    assert numbers == sorted(numbers)
    assert numbers[::2] == numbers[1::2]
    assert len(set(numbers)) == actions.count("arrive") == len(numbers) / 2


@xsd_available
@pytest.mark.parametrize("prefixes", [False, True])
def test_every_envelope_is_valid(prefixes: bool) -> None:
    # Servers write Notification in the messages' namespace; the schema has it in the types' namespace.
    stream_format = StreamFormat(
        notification_in_types=True, prefixes=prefixes, declaration=0.3, status_events=0.5, combined=0.5
    )
    client = Client(Settings(rate=0, stream_format=stream_format, heartbeat=10))
    anchor = client.mailboxes[0]
    ids = [client.subscribe(m, anchor=anchor.address, affinity=True) for m in client.mailboxes]
    data = client.stream(anchor, [*ids, "bm9uc2Vuc2U="]).bytes()
    reader = client.stream(anchor, ids, minutes=1)
    for _ in range(7):
        for mailbox in client.mailboxes:
            deliver_mail(client, mailbox)
            edit_draft(client, mailbox)
        data += reader.bytes()
        client.now += 10
    roots = envelopes(data)
    assert len(roots) > 50
    for root in roots:
        body = root.find("s:Body/*", NAMES)
        assert body is not None
        validate(body)


def test_prefixes_and_declarations_vary_if_configured() -> None:
    client = Client(Settings(rate=0, stream_format=StreamFormat(prefixes=True, declaration=0.5), heartbeat=1))
    alice = client.mailboxes[0]
    reader = client.stream(alice, [client.subscribe(alice)], minutes=1)
    data = b""
    while not reader.stream.ended:
        data += reader.bytes()
        client.now += 1
    assert {root.prefix for root in envelopes(data)} == {"s", "soap", "SOAP"}
    assert 10 < data.count(b"<?xml") < 50
    respond = Client()
    reader = respond.stream(respond.mailboxes[0], [respond.subscribe(respond.mailboxes[0])])
    assert reader.bytes().startswith(
        b'<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><soap11:Header'
    )


def test_stream_of_unknown_ids_only() -> None:
    client = Client()
    reply = client.post(stream_body(["bm9uc2Vuc2U="]), impersonate=client.mailboxes[0].address)
    assert code(reply) == "stream"
    assert etree.QName(envelopes(reply.body.take(client.now))[0]).localname == "Envelope"  # type: ignore[union-attr]
    assert reply.body.ended  # type: ignore[union-attr]
