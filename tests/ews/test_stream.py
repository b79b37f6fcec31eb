"""The parser of the reply to GetStreamingEvents."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.ews.codes import Failure
from listener.ews.events import Event, EventKind, Notification
from listener.ews.stream import Closed, Heartbeat, Signal, StreamParser
from tests.ews.samples import (
    DECLARATION,
    STATUS,
    back_off,
    envelope,
    event,
    failing,
    fault,
    message,
    notification,
    stream,
)

BEAT = stream(message(status="OK"))
CLOSED = stream(message(status="Closed"))
CREATED = event("CreatedEvent", ItemId="i1", ChangeKey="k1", ParentFolderId="inbox")
ONE_EVENT = stream(message(notification("sub", CREATED)))
ONE = Notification(
    subscription_id="sub",
    events=(
        Event(
            kind=EventKind.CREATED,
            timestamp="2024-05-14T09:30:05Z",
            item_id="i1",
            change_key="k1",
            parent_folder_id="inbox",
        ),
    ),
)


def read(*chunks: bytes) -> list[Signal]:
    parser = StreamParser()
    return [signal for chunk in chunks for signal in parser.feed(chunk)] + parser.end()


def code(*chunks: bytes) -> list[str]:
    """Return the codes of failures, and the classes of other signals."""
    return [s.code if isinstance(s, Failure) else type(s).__name__ for s in read(*chunks)]


# --- messages


def test_one_event() -> None:
    assert read(ONE_EVENT) == [ONE]


def test_events_keep_their_order() -> None:
    kinds = [kind.value for kind in EventKind]
    events = [event(kind, ItemId="i", ParentFolderId="p") for kind in kinds]
    events += [event(kind, FolderId="f", ParentFolderId="p") for kind in kinds]
    (signal,) = read(stream(message(notification("sub", *events))))
    assert isinstance(signal, Notification)
    assert [(e.kind, e.item_id, e.folder_id) for e in signal.events] == [
        *((kind, "i", None) for kind in EventKind),
        *((kind, None, "f") for kind in EventKind),
    ]


@pytest.mark.parametrize(
    "heartbeat",
    [
        message(status="OK"),
        message("", status="OK"),
        message(),
        message(notification("sub", STATUS)),
        message(notification("sub", STATUS), notification("other", STATUS)),
        message(notification("sub")),
    ],
)
def test_heartbeats(heartbeat: str) -> None:
    assert read(stream(heartbeat)) == [Heartbeat()]


def test_status_event_with_events_is_not_a_signal() -> None:
    assert read(stream(message(notification("other", STATUS), notification("sub", STATUS, CREATED)))) == [ONE]


def test_closed_with_events_and_before_further_events() -> None:
    both = stream(message(notification("sub", CREATED), status="Closed"))
    assert read(both, CLOSED, ONE_EVENT, CLOSED) == [ONE, Closed(), Closed(), ONE, Closed()]


@pytest.mark.parametrize(("more", "expected"), [(None, False), (False, False), (True, True)])
def test_more_events(more: bool | None, expected: bool) -> None:
    (signal,) = read(stream(message(notification("sub", CREATED, more=more))))
    assert isinstance(signal, Notification)
    assert signal.more_events is expected


@pytest.mark.parametrize("prefix", ["m", "t"])
def test_notification_in_either_namespace(prefix: str) -> None:
    assert read(stream(message(notification("sub", CREATED, prefix=prefix)))) == [ONE]


def test_several_messages_and_notifications_in_one_envelope() -> None:
    other = notification("other", event("DeletedEvent", ItemId="i2", ParentFolderId="p"))
    signals = read(
        stream(
            message(other, notification("sub", CREATED)),
            message(code="ErrorSubscriptionNotFound", failing=failing("bad")),
            message(status="OK"),
            message(status="Closed"),
        )
    )
    assert [type(s) for s in signals] == [Notification, Notification, Failure, Heartbeat, Closed]
    assert signals[1] == ONE


@pytest.mark.parametrize("prefix", ["m", "t", ""])
def test_failed_subscription_ids_in_any_namespace(prefix: str) -> None:
    text = "The specified subscription was not found."
    bad = message(code="ErrorSubscriptionNotFound", text=text, failing=failing("a", "b", prefix=prefix))
    assert read(stream(bad)) == [
        Failure(code="ErrorSubscriptionNotFound", text=text, subscription_ids=("a", "b"))
    ]


def test_error_without_ids_applies_to_all() -> None:
    assert read(stream(message(code="ErrorReadEventsFailed"))) == [Failure(code="ErrorReadEventsFailed")]


def test_error_with_wait_and_closed() -> None:
    xml = back_off(1500).replace("t:MessageXml", "m:MessageXml")
    busy = message(code="ErrorServerBusy", xml=xml, status="Closed")
    assert read(stream(busy)) == [Failure(code="ErrorServerBusy", wait=1.5), Closed()]


def test_events_precede_the_error_of_their_message() -> None:
    text = message(notification("sub", CREATED), code="ErrorMissedNotificationEvents", failing=failing("sub"))
    assert code(stream(text)) == ["Notification", "ErrorMissedNotificationEvents"]


def test_warning_is_not_a_failure() -> None:
    warned = message(
        notification("sub", CREATED), code="ErrorBatchProcessingStopped", response_class="Warning"
    )
    assert read(stream(warned)) == [ONE]


def test_fault_does_not_stop_the_parser() -> None:
    assert code(fault(), BEAT) == ["ErrorServerBusy", "Heartbeat"]


def test_other_reply_is_unexpected() -> None:
    assert code(envelope("<x/>"), BEAT) == ["UnexpectedReply", "Heartbeat"]


def test_unknown_elements_are_ignored() -> None:
    unknown = '<t:ThingHappenedEvent><t:ItemId Id="x"/></t:ThingHappenedEvent>'
    later = CREATED.replace("</t:CreatedEvent>", "<t:News>1</t:News></t:CreatedEvent>")
    assert read(stream(message(notification("sub", unknown, later)))) == [ONE]


def test_control_characters_in_ids_do_not_stop_the_parser() -> None:
    bad = message(code="ErrorAccessDenied", text="No access to &#x0;&#31;\x02this")
    (signal,) = read(stream(bad))
    assert signal == Failure(code="ErrorAccessDenied", text="No access to \ufffd\ufffd\ufffdthis")


# --- boundaries of envelopes


@pytest.mark.parametrize("prefix", ["", "s", "soap", "SOAP", "soap11", "ns-0.x_é"])
@pytest.mark.parametrize("space", ["", " ", "\r\n\t "])
def test_any_prefix_and_white_space_in_the_end_tag(prefix: str, space: str) -> None:
    content = stream(message(notification("sub", CREATED)), prefix=prefix, end_space=space)
    assert read(content * 2) == [ONE, ONE]


def test_prefixes_may_change_from_one_envelope_to_the_next() -> None:
    assert read(BEAT + stream(message(status="Closed"), prefix="") + ONE_EVENT) == [
        Heartbeat(),
        Closed(),
        ONE,
    ]


@pytest.mark.parametrize(
    "between",
    [b"", b"\r\n", b"\xef\xbb\xbf", DECLARATION, b"\xef\xbb\xbf" + DECLARATION + b"\n\n", b"<!-- > -->"],
)
def test_content_between_envelopes_is_skipped(between: bytes) -> None:
    content = between + BEAT + between + ONE_EVENT + between
    assert read(content) == [Heartbeat(), ONE]
    assert read(*(bytes([byte]) for byte in content)) == [Heartbeat(), ONE]


def test_longer_name_does_not_end_the_envelope() -> None:
    odd = BEAT.replace(b"<s:Body>", b"<s:EnvelopeSize>3</s:EnvelopeSize><s:Body>")
    assert read(odd, ONE_EVENT) == [Heartbeat(), ONE]


def test_envelope_is_returned_as_soon_as_it_is_complete() -> None:
    parser = StreamParser()
    assert parser.feed(ONE_EVENT[:-1]) == []
    assert parser.feed(ONE_EVENT[-1:] + BEAT[:40]) == [ONE]
    assert parser.feed(BEAT[40:]) == [Heartbeat()]
    assert parser.end() == []


def test_end_inside_an_envelope() -> None:
    assert code(ONE_EVENT + BEAT[:-1]) == ["Notification", "StreamIncomplete"]


def test_end_between_envelopes() -> None:
    assert read(BEAT + b"\r\n") == [Heartbeat()]
    assert read() == []


# --- unreadable content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<html><body>Sign in</body></html>", "NotSoap"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>", "NotSoap"),
        (b"<!doctype HTML PUBLIC '-//W3C//DTD HTML 4.01//EN'>", "NotSoap"),
        (b"upstream connect error", "NotSoap"),
        (b"\xff\xfe<\0s\0", "NotSoap"),
        (b"<feed xmlns='x'/>", "NotSoap"),
        (b"</s:Envelope>", "NotSoap"),
        (b"<" + b"n" * 400 + b">", "NotSoap"),
        (b"<![CDATA[", "NotSoap"),
        (b'<!DOCTYPE Envelope SYSTEM "http://192.0.2.1/x.dtd">' + BEAT, "ForbiddenXml"),
        (b'<!DOCTYPE e [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + BEAT, "ForbiddenXml"),
        (b'<?xml version="1.0"?><!-- --> <!DOCTYPE lolz [<!ENTITY a "ha">]>' + BEAT, "ForbiddenXml"),
        (BEAT.replace(b"OK", b"&xxe;"), "MalformedXml"),
        (BEAT.replace(b"OK", b"<x>"), "MalformedXml"),
        (BEAT.replace(b"OK", b"\xff\xfe"), "MalformedXml"),
        (BEAT.replace(b"<s:Body>", b"<!DOCTYPE x><s:Body>"), "MalformedXml"),
        (b"<s:Envelope>" + b"<a>" * 300 + b"</a>" * 300 + b"</s:Envelope>", "MalformedXml"),
        (b"<s:Envelope/>" + BEAT, "MalformedXml"),
    ],
)
def test_unreadable_content_stops_the_parser_after_earlier_signals(content: bytes, expected: str) -> None:
    assert code(ONE_EVENT + content, BEAT) == ["Notification", expected]
    assert code(*(bytes([byte]) for byte in ONE_EVENT + content + BEAT)) == ["Notification", expected]


@pytest.mark.parametrize("page", [b"<html>", b"<!DOCTYPE html>", b"<!doctype HTML ", b"Service", b"\n{"])
def test_content_that_is_not_soap_is_detected_immediately(page: bytes) -> None:
    (failure,) = StreamParser().feed(page)
    assert isinstance(failure, Failure)
    assert failure.code == "NotSoap"


def test_web_page_is_reported_with_its_title() -> None:
    page = b"<!DOCTYPE html>\n<html><head><title>Sign\n in to Contoso</title>"
    assert read(page) == [Failure(code="NotSoap", text="an HTML page: Sign in to Contoso")]


# --- limits


@pytest.mark.parametrize(
    "endless",
    [
        b"<s:Envelope>" + b"x" * 5000,
        b"<s:Envelope>" + b"</s:Envelope" * 500,
        b"<s:Envelope></s:Envelope" + b" " * 5000,
        b"<?" + b"x" * 5000,
        b"<!--" + b"-" * 5000,
        b"<s:Envelope " + b"a='" * 5000,
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_envelope_without_an_end_is_rejected(endless: bytes, size: int) -> None:
    parser = StreamParser(max_envelope=1000)
    signals: list[Signal] = []
    for start in range(0, len(endless), size):
        signals += parser.feed(endless[start : start + size])
        assert len(parser._buffer) <= 1000 + size
    assert [s.code for s in signals if isinstance(s, Failure)] == ["EnvelopeTooLarge"]
    assert parser.end() == []


def test_limit_applies_to_each_envelope_and_not_to_the_chunk() -> None:
    parser = StreamParser(max_envelope=len(ONE_EVENT))
    assert parser.feed(ONE_EVENT * 50) == [ONE] * 50
    assert parser.feed(b" " * 10 * len(ONE_EVENT)) == []
    (failure,) = parser.feed(ONE_EVENT[:-1] + b" >")
    assert isinstance(failure, Failure)
    assert failure.code == "EnvelopeTooLarge"


def test_cost_of_small_chunks_is_linear() -> None:
    def seconds(size: int) -> float:
        content = b"<s:Envelope><a>" + b"</s:Envelop" * (size // 11)
        parser = StreamParser()
        started_at = time.process_time()
        for start in range(0, size, 8):
            parser.feed(content[start : start + 8])
        return time.process_time() - started_at

    small = min(seconds(50_000) for _ in range(3))
    assert (
        seconds(1_600_000) < 32 * small * 6
    )  # a search from the beginning each time would take 1024 times as long


# --- any content in any chunks

_NOISE = [
    b"<s:Envelope>",
    b"</s:Envelope>",
    b"<?",
    b"?>",
    b"<!--",
    b"-->",
    b"<!DOCTYPE",
    b"&#0;",
    b"\xef\xbb\xbf",
    BEAT,
]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20) | st.sampled_from(_NOISE), max_size=30))
def test_any_bytes_neither_raise_nor_exceed_the_buffer(chunks: list[bytes]) -> None:
    parser = StreamParser(max_envelope=2000)
    for chunk in chunks:
        parser.feed(chunk)
        assert len(parser._buffer) <= 2000 + len(chunk)
    parser.end()
    assert parser.feed(BEAT) == []


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(ONE_EVENT)), st.integers(0, 40))
def test_damaged_envelope_never_raises(junk: bytes, start: int, length: int) -> None:
    parser = StreamParser()
    signals = parser.feed(ONE_EVENT[:start] + junk + ONE_EVENT[start + length :]) + parser.end()
    assert all(isinstance(s, Notification | Heartbeat | Closed | Failure) for s in signals)
