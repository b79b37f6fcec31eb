"""Incremental parser for the reply to GetStreamingEvents. It converts bytes to signals, without I/O.

Rules:

1. The body is a sequence of SOAP envelopes in UTF-8. White space, byte order marks, XML declarations and comments
   before and between them are skipped.
2. An envelope begins with a start tag with the local name Envelope. It ends with the first end tag of the same name
   and prefix. `</s:Envelope` could also occur in a comment or in CDATA, but no server writes it there.
3. An envelope is parsed after its last byte, and that feed() call returns its signals in document order. The result
   does not depend on the boundaries of the chunks.
4. Each response message returns its Notifications with events (valid or not), then its Failure, if it is one, then
   Closed, if that is its status. A message without any of these is a Heartbeat: NoError with status OK, or a
   StatusEvent. Closed is not the end of the body.
5. Unreadable content (not XML, not SOAP, a document type declaration, an envelope larger than `max_envelope` or with
   too many tags) returns one Failure as soon as it is detected. After that, the parser returns nothing. Signals of
   earlier envelopes are still returned. A fault is a valid envelope and does not stop the parser.
6. The buffer contains at most `max_envelope` bytes and one chunk. Offsets are stored, so that no byte is searched
   again when further chunks arrive.
"""

import re
from typing import TypeAlias

import msgspec
from lxml import etree

from listener.ews.codes import ExchangeError, Failure
from listener.ews.events import Notification, read_notification
from listener.ews.soap import message_failure, parse, response_messages, text
from listener.ews.values import identifier
from listener.ews.xml import forbidden, is_html, local_name, not_soap


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """The connection is alive, and there are no events."""


class Closed(msgspec.Struct, frozen=True, gc=False):
    """The window of this connection has ended. The subscriptions continue."""


Signal: TypeAlias = Notification | Heartbeat | Closed | Failure


class StreamParser:
    """Parser of one reply to GetStreamingEvents. `max_envelope` is in bytes."""

    def __init__(self, max_envelope: int = 16 * 1024 * 1024) -> None:
        self._max = max_envelope
        self._buffer = bytearray()
        self._offset = 0  # the current search has covered all bytes before it
        self._closing = b""  # inside an envelope: the beginning of its end tag
        self._ended = False  # the end tag begins at or before _offset, and its `>` is missing
        self._stopped = False

    def feed(self, data: bytes) -> list[Signal]:
        """Return the signals of all envelopes that these bytes complete."""
        if self._stopped:
            return []
        self._buffer += data
        signals: list[Signal] = []
        try:
            while (content := self._next_envelope()) is not None:
                _read_envelope(content, signals)
        except ExchangeError as error:
            signals.append(error.failure)
            self._stop()
        return signals

    def end(self) -> list[Signal]:
        """Handle the end of the body. Returns a `StreamIncomplete` failure inside an envelope."""
        left = len(self._buffer)
        self._stop()
        if left:
            return [
                Failure(
                    code="StreamIncomplete", text=f"the body ended inside an envelope, after {left} bytes"
                )
            ]
        return []

    def _next_envelope(self) -> bytes | None:
        """Remove the next complete envelope from the buffer and return it; None if more bytes are needed."""
        if not self._closing:
            self._find_start()
        end = self._find_end() if self._closing else None
        self._check_size(len(self._buffer) if end is None else end)
        if end is None:
            return None
        with memoryview(self._buffer) as view:  # slicing the bytearray itself would copy twice
            content = bytes(view[:end])
        self._discard(end)
        return content

    def _find_start(self) -> None:
        """Discard the content between envelopes, and set `_closing` if an envelope begins."""
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
            for opening, closing in _SKIPPED:
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
        """Raise ExchangeError unless the buffer can still become a valid beginning with more bytes."""
        head = bytes(self._buffer[:_HEAD])
        if head.upper().startswith(_DOCTYPE):
            # The name of the document type identifies a web page, and may still be missing.
            if is_html(head) or len(head) == _HEAD or b">" in head or b"[" in head:
                raise ExchangeError(not_soap(bytes(self._buffer)) if is_html(head) else forbidden())
        elif not (
            _TAG_SO_FAR.fullmatch(head) or any(begin.startswith(head.upper()) for begin in _BEGINNINGS)
        ):
            raise ExchangeError(not_soap(bytes(self._buffer)))

    def _find_end(self) -> int | None:
        """Return the end offset of the envelope; None if more bytes are needed."""
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
            self._ended = False  # a longer name with the same beginning

    def _search(self, what: bytes, start: int) -> int | None:
        """Return the end of `what` after `start`. If it is not found, store the offset for the next search."""
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
                Failure(code="EnvelopeTooLarge", text=f"an envelope of more than {self._max} bytes")
            )

    def _stop(self) -> None:
        self._stopped = True
        self._buffer = bytearray()


_HEAD = 320  # bytes that identify the beginning of an envelope or a page
_BLANK = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)+")
_SPACE = re.compile(rb"[ \t\r\n]+")
_SKIPPED = ((b"<?", b"?>"), (b"<!--", b"-->"))
_DOCTYPE = b"<!DOCTYPE"
_BEGINNINGS = (b"\xef\xbb\xbf", b"<!--", _DOCTYPE)
# No server uses longer names.
_START = re.compile(rb"<([^\s<>/:!?&'\"=]{1,128}:)?([^\s<>/:!?&'\"=]{1,128})(?=[\s>/])")
_TAG_SO_FAR = re.compile(rb"<[^\s<>/!?&'\"=]{0,256}")


def _read_envelope(content: bytes, signals: list[Signal]) -> None:
    """Append the signals of one envelope. Raises ExchangeError if it is unreadable; a fault is a signal."""
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
    count_before = len(signals)
    failed_ids: tuple[str, ...] = ()
    no_error = closed = False
    for part in message:
        match local_name(part):
            case "ResponseCode":
                no_error = part.text == "NoError"
            case "Notifications":
                notifications = [
                    read_notification(each) for each in part if local_name(each) == "Notification"
                ]
                signals += [each for each in notifications if each.events or each.dropped]
            case "ErrorSubscriptionIds":
                failed_ids = tuple(id_ for each in part if (id_ := identifier(text(each))))
            case "ConnectionStatus":
                closed = text(part) == "Closed"
    if not no_error and (failure := message_failure(message, failed_ids)):
        signals.append(failure)
    if closed:
        signals.append(Closed())
    if len(signals) == count_before:
        signals.append(Heartbeat())


_UNREADABLE = frozenset({"EnvelopeTooLarge", "NotSoap", "MalformedXml", "ForbiddenXml"})
