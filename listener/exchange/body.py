"""Response bodies: reads them with bounds on size, decompression and the time between two checkpoints of trio.

All bodies of HTTP responses are read here. The rules:

1. A body comes in pieces of at most `PIECE` bytes, after decompression. Before each piece other tasks may run.
2. Each kind of response has its own limit (`SOAP_LIMIT` and so on). A longer body is an error, except for an error
   page, of which only the beginning is read.
3. `Content-Encoding` may be `gzip`, `x-gzip` or `deflate` (zlib or raw), in any case; some proxies compress although
   the request asks for `identity`. A combination of two encodings is refused.
4. The members of a gzip body follow each other (RFC 1952 section 2.2). Zero bytes after a member are padding, up to
   `PADDING_LIMIT`. Anything else there is an error, because on a stream it may be an event.
5. A body that ends inside compressed data is incomplete (`StreamIncomplete`).
6. A body that grows by more than `MAX_EXPANSION` times is refused once it has passed `EXPANSION_FREE` bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import trio

from listener.ews.codes import ExchangeError, Failure
from listener.ews.xml import excerpt
from listener.exchange.transport_errors import mapped_errors

PIECE = 64 * 1024
"""Bytes that are decompressed at a time."""
SOAP_LIMIT = 8 * 1024 * 1024
"""Bytes of the response to one SOAP request that is not a stream."""
AUTODISCOVER_LIMIT = 2 * 1024 * 1024
"""Bytes of an Autodiscover response, which has at most 100 mailboxes."""
TOKEN_LIMIT = 256 * 1024
"""Bytes of a response of a token endpoint."""
ERROR_PAGE_LIMIT = 256 * 1024
"""Bytes that are read of the body of an HTTP error."""
PADDING_LIMIT = 64 * 1024
"""Zero bytes that may follow a gzip member."""
MAX_EXPANSION = 500
"""The largest ratio of decompressed to received bytes. Repeated heartbeats reach 130, a gzip bomb over 1000."""
EXPANSION_FREE = 16 * 1024 * 1024
"""Decompressed bytes up to which MAX_EXPANSION is not enforced."""


class Decoder:
    """Decoder of a Content-Encoding, in pieces and without I/O. ExchangeError: the encoding is not supported.

    Call take() after each feed() until it returns nothing, and close() at the end of the body.
    """

    def __init__(self, encoding: str) -> None:
        codings = [coding for part in encoding.split(",") if (coding := part.strip().lower())]
        codings = [coding for coding in codings if coding != "identity"]
        if len(codings) > 1 or not _SUPPORTED.issuperset(codings):
            text = f"Content-Encoding {excerpt(encoding)} is not supported: only one of gzip and deflate is"
            raise ExchangeError(Failure(code="NotSoap", text=text))
        self._coding = codings[0] if codings else ""
        self._pending = b""
        self._offset = 0  # bytes of `_pending` that have been taken; used only without an encoding
        self._inflate: Any = None  # zlib's decompressor of the current member
        self._full = False  # zlib may hold more output for the bytes that it has received
        self._members = 0
        self._padding = 0
        self._received = self._given = 0

    def feed(self, data: bytes) -> None:
        """Add bytes of the body."""
        self._received += len(data)
        pending = self._pending[self._offset :]
        self._pending, self._offset = pending + data if pending else data, 0

    def take(self) -> bytes:
        """Return the next piece; empty if more bytes are needed. ExchangeError: the data cannot be decompressed."""
        if not self._coding:
            # An offset, because cutting off each piece would copy what remains: quadratic for one large chunk.
            piece = self._pending[self._offset : self._offset + PIECE]
            self._offset += len(piece)
            return piece
        piece = b""
        try:
            while not piece and (self._pending or self._full):
                if self._inflate is None and not self._begin_member():
                    break
                piece = self._step()
        except zlib.error as error:
            raise self._broken(str(error)) from error
        self._given += len(piece)
        if self._given > max(EXPANSION_FREE, MAX_EXPANSION * self._received):
            text = f"{self._received} bytes of {self._coding} data became over {self._given} bytes"
            raise ExchangeError(Failure(code="EnvelopeTooLarge", text=text))
        return piece

    def close(self) -> None:
        """Finish the body. ExchangeError: it ended inside compressed data."""
        if self._coding and (self._inflate is not None or self._pending):
            text = f"the body ended inside {self._coding} data, after {self._received} bytes"
            raise ExchangeError(Failure(code="StreamIncomplete", text=text))

    def _step(self) -> bytes:
        inflate = self._inflate
        piece: bytes = inflate.decompress(self._pending, PIECE)
        self._pending = inflate.unconsumed_tail
        self._full = len(piece) == PIECE and not inflate.eof
        if inflate.eof:
            self._pending, self._inflate = inflate.unused_data, None
            self._members += 1
        return piece

    def _begin_member(self) -> bool:
        """Return whether the pending bytes begin a member; False if there are too few bytes to decide."""
        if self._members:
            padded = len(self._pending)
            self._pending = self._pending.lstrip(b"\0")
            self._padding += padded - len(self._pending)
            if self._padding > PADDING_LIMIT:
                raise self._broken(f"over {PADDING_LIMIT} zero bytes after the data")
        head = self._pending[:2]
        if not head or (len(head) == 1 and self._may_begin(head[0])):
            return False
        if head == _GZIP:
            bits = 16 + zlib.MAX_WBITS
        elif (
            len(head) == 2 and head[0] & 0x8F == 8 and int.from_bytes(head) % 31 == 0
        ):  # RFC 1950 section 2.2
            bits = zlib.MAX_WBITS
        elif self._coding == "deflate" and not self._members:
            bits = -zlib.MAX_WBITS  # raw deflate: some servers send it, against RFC 9110 section 8.4.1.2
        else:
            raise self._broken(
                "unexpected bytes after the data" if self._members else "unexpected bytes at the start"
            )
        self._inflate = zlib.decompressobj(wbits=bits)
        return True

    def _may_begin(self, byte: int) -> bool:
        return byte == _GZIP[0] or byte & 0x8F == 8

    def _broken(self, why: str) -> ExchangeError:
        text = f"cannot decompress the response (Content-Encoding: {self._coding}): {why}"
        return ExchangeError(Failure(code="NotSoap", text=text))


_SUPPORTED = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP = b"\x1f\x8b"


class Body:
    """The body of one response that was requested with `stream=True`. All methods raise ExchangeError."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] = response.aiter_raw()
        self._decoder: Decoder | None = None

    async def receive(self) -> bytes:
        """Return the next bytes, at most PIECE; empty at the end."""
        if self._decoder is None:
            self._decoder = Decoder(self._response.headers.get("content-encoding", ""))
        while True:
            # Received bytes are returned without waiting. Tiny chunks, or a high expansion, would block other tasks.
            await trio.lowlevel.checkpoint()
            if piece := self._decoder.take():
                return piece
            with mapped_errors():
                chunk = await anext(self._chunks, b"")
            if not chunk:
                self._decoder.close()
                return b""
            self._decoder.feed(chunk)

    async def whole(self, limit: int) -> bytes:
        """Return all bytes. `EnvelopeTooLarge`: there are more than `limit`."""
        content = bytearray()
        while piece := await self.receive():
            if len(content) + len(piece) > limit:
                raise ExchangeError(
                    Failure(code="EnvelopeTooLarge", text=f"the response is longer than {limit} bytes")
                )
            content += piece
        return bytes(content)

    async def beginning(self, limit: int) -> bytes:
        """Return the first `limit` bytes, or all if there are fewer."""
        content = bytearray()
        while len(content) < limit and (piece := await self.receive()):
            content += piece
        return bytes(content[:limit])

    async def aclose(self) -> None:
        """Close the connection unless the whole body has been received. Takes at most one second."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._response.aclose()
            # Exhaust httpx's nested generators here, so that none is left to the garbage collector.
            with suppress(httpx.HTTPError, httpx.StreamError):
                async for _ in self._chunks:
                    pass
