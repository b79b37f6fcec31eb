"""The reply to GetStreamingEvents, read as it comes. Bytes in, signals out; no I/O.

The rules:

1. The body is one SOAP envelope after another. Between them, and before the first, there may be white space, byte
   order marks, XML declarations and comments; all of these are passed over. The encoding is UTF-8.
2. An envelope begins with a start tag whose local name is Envelope. It ends with the first end tag of just this
   name, prefix included: `</s:Envelope` can stand inside only in a comment or in CDATA, where no server puts it.
3. An envelope is parsed when its last byte has come, and its signals are returned by that feed(), in the order of
   the document. How the bytes are cut into chunks changes nothing of that.
4. Each response message gives its Notifications that hold events (valid or not), then its Failure if it is one, then
   Closed if that is its status. One that gives none of these is a Heartbeat: NoError with status OK, or a
   StatusEvent. Closed is not the end of the body.
5. What cannot be read (no XML, no SOAP, a document type declaration, an envelope larger than `max_envelope` or of
   too many tags) gives one Failure, as soon as it is recognised, and the parser is spent: it returns nothing any
   more. What was read before is still given. A fault is no such case, since it is a good envelope.
6. The buffer holds at most `max_envelope` bytes and one chunk. No byte is looked at a second time because more
   came after it: offsets are remembered.
"""

import re
from typing import TypeAlias

import msgspec
from lxml import etree

from listener.errors import ExchangeError
from listener.ews import texts
from listener.ews.codes import Failure
from listener.ews.events import Notification, read_notification
from listener.ews.soap import message_failure, parse, response_messages, text
from listener.ews.xml import forbidden, is_html, local_name, not_soap


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """The server is there and has nothing to tell."""


class Closed(msgspec.Struct, frozen=True, gc=False):
    """The window of this connection is over; the subscriptions live on."""


Signal: TypeAlias = Notification | Heartbeat | Closed | Failure


class StreamParser:
    """Reads one reply to GetStreamingEvents. `max_envelope` is in bytes."""

    def __init__(self, max_envelope: int = 16 * 1024 * 1024) -> None:
        self._max = max_envelope
        self._buffer = bytearray()
        self._offset = 0  # what lies before it has been searched, as far as the present search goes
        self._closing = b""  # inside an envelope: how its end tag begins
        self._ended = False  # the end tag has begun at or before _offset, its `>` is yet to come
        self._spent = False

    def feed(self, data: bytes) -> list[Signal]:
        """All that has become complete by these bytes."""
        if self._spent:
            return []
        self._buffer += data
        signals: list[Signal] = []
        try:
            while (content := self._next_envelope()) is not None:
                _read_envelope(content, signals)
        except ExchangeError as error:
            signals.append(error.failure)
            self._spend()
        return signals

    def end(self) -> list[Signal]:
        """The body has ended: `StreamIncomplete` if it did so inside an envelope."""
        left = len(self._buffer)
        self._spend()
        if left:
            return [
                Failure(
                    code="StreamIncomplete", text=f"the body ended inside an envelope, after {left} bytes"
                )
            ]
        return []

    def _next_envelope(self) -> bytes | None:
        """Cuts the next whole envelope off the buffer; None if more bytes are needed."""
        if not self._closing:
            self._find_start()
        end = self._find_end() if self._closing else None
        self._check_size(len(self._buffer) if end is None else end)
        if end is None:
            return None
        with memoryview(self._buffer) as view:  # a slice of the buffer would be a second copy
            content = bytes(view[:end])
        self._discard(end)
        return content

    def _find_start(self) -> None:
        """Discards what may stand between envelopes, and sets `_closing` if an envelope begins."""
        while self._buffer:
            if start := _START.match(self._buffer):
                if start[2] != b"Envelope":
                    raise ExchangeError(not_soap(bytes(self._buffer)))
                self._closing = b"</" + (start[1] or b"") + b"Envelope"
                self._offset = start.end()
                return
            if blank := _BLANK.match(self._buffer):
                self._discard(blank.end())
                continue
            for opening, closing in _PASSED_OVER:
                if self._buffer.startswith(opening):
                    end = self._search(closing, max(self._offset, len(opening)))
                    break
            else:
                self._expect_start()
                return
            if end is None:
                return
            self._check_size(end)
            self._discard(end)

    def _expect_start(self) -> None:
        """Raises ExchangeError unless more bytes could still make this the beginning of something good."""
        head = bytes(self._buffer[:_HEAD])
        if head.upper().startswith(_DOCTYPE):
            # The name of the document type tells a web page: it may be yet to come.
            if is_html(head) or len(head) == _HEAD or b">" in head or b"[" in head:
                raise ExchangeError(not_soap(bytes(self._buffer)) if is_html(head) else forbidden())
        elif not (
            _TAG_SO_FAR.fullmatch(head) or any(begin.startswith(head.upper()) for begin in _BEGINNINGS)
        ):
            raise ExchangeError(not_soap(bytes(self._buffer)))

    def _find_end(self) -> int | None:
        """Where the envelope ends; None if more bytes are needed."""
        while True:
            if not self._ended:
                end = self._search(self._closing, self._offset)
                if end is None:
                    return None
                self._offset, self._ended = end, True
            if space := _SPACE.match(self._buffer, self._offset):
                self._offset = space.end()
            if self._offset == len(self._buffer):
                return None
            if self._buffer.startswith(b">", self._offset):
                return self._offset + 1
            self._ended = False  # a longer name, which only begins like ours

    def _search(self, what: bytes, start: int) -> int | None:
        """Where `what` ends, searched from `start`; if it is not there, remembers how far that is certain."""
        found = self._buffer.find(what, start)
        if found < 0:
            self._offset = max(start, len(self._buffer) - len(what) + 1)
            return None
        return found + len(what)

    def _discard(self, end: int) -> None:
        del self._buffer[:end]
        self._offset, self._closing, self._ended = 0, b"", False

    def _check_size(self, size: int) -> None:
        if size > self._max:
            raise ExchangeError(
                Failure(code="EnvelopeTooLarge", text=f"an envelope of over {self._max} bytes")
            )

    def _spend(self) -> None:
        self._spent = True
        self._buffer = bytearray()


_HEAD = 320  # enough of the buffer to tell what begins there
_BLANK = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)+")
_SPACE = re.compile(rb"[ \t\r\n]+")
_PASSED_OVER = ((b"<?", b"?>"), (b"<!--", b"-->"))
_DOCTYPE = b"<!DOCTYPE"
_BEGINNINGS = (b"\xef\xbb\xbf", b"<!--", _DOCTYPE)
# No server needs longer names than this.
_START = re.compile(rb"<([^\s<>/:!?&'\"=]{1,128}:)?([^\s<>/:!?&'\"=]{1,128})(?=[\s>/])")
_TAG_SO_FAR = re.compile(rb"<[^\s<>/!?&'\"=]{0,256}")


def _read_envelope(content: bytes, signals: list[Signal]) -> None:
    """Appends the signals of one envelope. Raises ExchangeError if it cannot be read; a fault can."""
    try:
        messages = response_messages(parse(content))
    except ExchangeError as error:
        if error.failure.code in _UNREADABLE:
            raise
        signals.append(error.failure)
        return
    for message in messages:
        _read_message(message, signals)


def _read_message(message: etree._Element, signals: list[Signal]) -> None:
    told = len(signals)
    failing: tuple[str, ...] = ()
    good = closed = False
    for part in message:
        match local_name(part):
            case "ResponseCode":
                good = part.text == "NoError"
            case "Notifications":
                notifications = [
                    read_notification(each) for each in part if local_name(each) == "Notification"
                ]
                signals += [each for each in notifications if each.events or each.dropped]
            case "ErrorSubscriptionIds":
                failing = tuple(id_ for each in part if (id_ := texts.identifier(text(each))))
            case "ConnectionStatus":
                closed = text(part) == "Closed"
    if not good and (failure := message_failure(message, failing)):
        signals.append(failure)
    if closed:
        signals.append(Closed())
    if len(signals) == told:
        signals.append(Heartbeat())


_UNREADABLE = frozenset({"EnvelopeTooLarge", "NotSoap", "MalformedXml", "ForbiddenXml"})
