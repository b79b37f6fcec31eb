"""The signals do not depend on the XML variant of the reply or on the boundaries of its chunks."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from listener.ews.codes import Failure
from listener.ews.events import Event, EventKind, Notification
from listener.ews.stream import Closed, Heartbeat, Signal, StreamParser
from tests.ews.samples import (
    DECLARATION,
    STATUS,
    back_off,
    event,
    failing,
    fault,
    message,
    notification,
    stream,
)

# Multi-byte characters, so that splits occur inside them; no control characters, which XML forbids.
_ID = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
_PREFIX = st.sampled_from(["", "s", "soap", "SOAP", "soap11", "é"])
_BETWEEN = st.lists(
    st.sampled_from([b"\r\n", b" ", DECLARATION, b"\xef\xbb\xbf", b"<!-- -->"]), max_size=3
).map(b"".join)
_END_SPACE = st.sampled_from(["", " ", "\r\n  "])
_CODE = st.sampled_from(["ErrorSubscriptionNotFound", "ErrorServerBusy", "ErrorMadeUp"])
_TIMES = ["", ".1", ".123", ".1234567", ".123456789"]


@dataclass
class Written:
    """XML and its signals."""

    xml: str
    signals: list[Signal]


@st.composite
def events(draw: st.DrawFn) -> tuple[str, Event]:
    kind = draw(st.sampled_from(EventKind))
    time = "2024-02-29T23:59:59" + draw(st.sampled_from(_TIMES))
    what = draw(st.sampled_from(["Item", "Folder"]))
    own, parent, key = draw(_ID), draw(_ID), draw(st.none() | _ID)
    old, old_parent, unread = None, None, None
    if kind in (EventKind.MOVED, EventKind.COPIED):
        old, old_parent = draw(_ID), draw(_ID)
    if kind is EventKind.MODIFIED:
        unread = draw(st.none() | st.integers(0, 2**31 - 1))
    ids = {f"{what}Id": own, "ParentFolderId": parent, f"Old{what}Id": old, "OldParentFolderId": old_parent}
    xml = event(kind, time + draw(st.sampled_from(["", "Z"])), **ids, ChangeKey=key, UnreadCount=unread)
    value = Event(
        kind=kind,
        timestamp=time + "Z",
        item_id=own if what == "Item" else None,
        folder_id=own if what == "Folder" else None,
        change_key=key,
        parent_folder_id=parent,
        old_item_id=old if what == "Item" else None,
        old_folder_id=old if what == "Folder" else None,
        old_parent_folder_id=old_parent,
        unread_count=unread,
    )
    return xml, value


@st.composite
def notifications(draw: st.DrawFn) -> Written:
    inside = draw(st.lists(events(), max_size=4))
    status = STATUS if draw(st.booleans()) else ""
    name, more = "sub-" + str(draw(st.integers(0, 9))), draw(st.none() | st.booleans())
    xml = notification(
        name, *(xml for xml, _ in inside), status, prefix=draw(st.sampled_from("mt")), more=more
    )
    value = Notification(subscription_id=name, events=tuple(e for _, e in inside), more_events=bool(more))
    return Written(xml, [value] if inside else [])


@st.composite
def messages(draw: st.DrawFn) -> Written:
    drawn = draw(st.lists(notifications(), max_size=3))
    signals = [signal for written in drawn for signal in written.signals]
    status = draw(st.sampled_from(["", "OK", "Closed"]))
    code, named, xml, wait = "NoError", "", "", None
    if draw(st.booleans()):
        code = draw(_CODE)
        ids = tuple(f"sub-{n}" for n in draw(st.lists(st.integers(0, 9), max_size=3)))
        named = failing(*ids, prefix=draw(st.sampled_from(["m", "t", ""]))) if ids else ""
        if draw(st.booleans()):
            xml, wait = back_off(2500).replace("t:MessageXml", "m:MessageXml"), 2.5
        signals.append(Failure(code=code, wait=wait, subscription_ids=ids))
    if status == "Closed":
        signals.append(Closed())
    written = message(*(n.xml for n in drawn), code=code, failing=named, status=status, xml=xml)
    return Written(written, signals or [Heartbeat()])


@st.composite
def envelopes(draw: st.DrawFn) -> tuple[bytes, list[Signal]]:
    if draw(st.integers(0, 9)) == 0:
        busy = Failure(code="ErrorServerBusy", text="Busy.", wait=0.25)
        return fault(text="Busy.", values=back_off(250)), [busy]
    inside = draw(st.lists(messages(), min_size=1, max_size=3))
    xml = stream(*(m.xml for m in inside), prefix=draw(_PREFIX), end_space=draw(_END_SPACE))
    return xml, [signal for m in inside for signal in m.signals]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, list[Signal]]:
    """Return a complete body and its signals."""
    content, signals = b"", list[Signal]()
    for xml, expected in draw(st.lists(envelopes(), max_size=3)):
        content += draw(_BETWEEN) + xml
        signals += expected
    return content + draw(_BETWEEN), signals


def read(chunks: list[bytes]) -> list[Signal]:
    parser = StreamParser()
    return [signal for chunk in chunks for signal in parser.feed(chunk)] + parser.end()


@settings(deadline=None)
@given(bodies(), st.data())
def test_any_split_returns_the_same_signals(body: tuple[bytes, list[Signal]], data: st.DataObject) -> None:
    content, expected = body
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    chunks = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert read(chunks) == expected
    assert read([content]) == expected
    assert read([bytes([byte]) for byte in content]) == expected


_UNREADABLE = {
    "MalformedXml": b"<s:Envelope>&x;</s:Envelope>",
    "ForbiddenXml": b"<!DOCTYPE x [<!ENTITY a 'b'>]><s:Envelope>&a;</s:Envelope>",
    "NotSoap": b"<html><title>Sign in</title></html>",
    "StreamIncomplete": b"<s:Envelope>",
}


@settings(deadline=None)
@given(bodies(), st.sampled_from(sorted(_UNREADABLE)), st.data())
def test_any_split_returns_the_signals_before_unreadable_content(
    body: tuple[bytes, list[Signal]], code: str, data: st.DataObject
) -> None:
    content = body[0] + _UNREADABLE[code]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    chunks = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    *before, last = read(chunks)
    assert before == body[1]
    assert isinstance(last, Failure)
    assert last.code == code
