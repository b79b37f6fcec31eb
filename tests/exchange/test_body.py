"""Response bodies: supported encodings in chunks of any size, and limits on size and expansion."""

import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from listener.ews.codes import ExchangeError
from listener.exchange.body import (
    EXPANSION_FREE,
    MAX_EXPANSION,
    PADDING_LIMIT,
    PIECE,
    Body,
    Decoder,
)

TEXT = b"<s:Envelope>" + bytes(range(256)) * 8 + b"</s:Envelope>"


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def decoded(encoding: str, chunks: Iterable[bytes], *, close: bool = True) -> bytes:
    decoder = Decoder(encoding)
    content = b""
    for chunk in chunks:
        decoder.feed(chunk)
        while piece := decoder.take():
            assert len(piece) <= PIECE
            content += piece
    if close:
        decoder.close()
    return content


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def failure(encoding: str, chunks: Iterable[bytes]) -> tuple[str, str]:
    with pytest.raises(ExchangeError) as caught:
        decoded(encoding, chunks)
    return caught.value.failure.code, caught.value.failure.text


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("", bytes),
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        (" x-gzip ", gzip.compress),
        ("identity, gzip", gzip.compress),
        ("gzip", zlib.compress),  # servers that mix them up
        ("deflate", zlib.compress),
        ("Deflate", raw_deflate),
        ("deflate", gzip.compress),
    ],
)
def test_encodings(encoding: str, encode: Callable[[bytes], bytes], size: int) -> None:
    assert decoded(encoding, cut(encode(TEXT), size)) == TEXT


@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.integers(1, 40),
    st.integers(0, 9),
    st.sampled_from([lambda data: gzip.compress(data), lambda data: zlib.compress(data)]),
)
def test_gzip_members_may_follow_each_other(
    texts: list[bytes], size: int, padding: int, encode: Callable[[bytes], bytes]
) -> None:
    body = b"".join(encode(text) + bytes(padding) for text in texts)
    assert decoded("gzip", cut(body, size)) == b"".join(texts)


def test_a_piece_is_returned_as_soon_as_it_can_be_decompressed() -> None:
    compressor = zlib.compressobj(wbits=31)
    first = compressor.compress(TEXT) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert decoded("gzip", [first], close=False) == TEXT


@given(st.binary(min_size=1, max_size=400), st.data())
def test_an_unfinished_member_is_incomplete(text: bytes, data: st.DataObject) -> None:
    body = gzip.compress(b"first") + gzip.compress(text)
    end = data.draw(st.integers(len(gzip.compress(b"first")) + 1, len(body) - 1))
    assert failure("gzip", [body[:end]])[0] == "StreamIncomplete"


def test_an_empty_body_is_complete() -> None:
    assert decoded("gzip", []) == decoded("deflate", []) == b""


@pytest.mark.parametrize("garbage", [b"<s:Envelope>", b"\x1f\x8c", b"\x78\x02more", b"\0\0y"])
@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate])
def test_unexpected_bytes_after_the_data_are_refused(
    garbage: bytes, encode: Callable[[bytes], bytes]
) -> None:
    encoding = "deflate" if encode is raw_deflate else "gzip"
    code, text = failure(encoding, cut(encode(TEXT) + garbage, 5))
    assert code == "NotSoap"
    assert "after the data" in text or "incorrect header" in text


def test_padding_is_limited() -> None:
    assert decoded("gzip", [gzip.compress(TEXT), bytes(PADDING_LIMIT)]) == TEXT
    assert "zero bytes" in failure("gzip", [gzip.compress(TEXT), *[bytes(PADDING_LIMIT)] * 2])[1]


@pytest.mark.parametrize("encoding", ["gzip, gzip", "GZIP,deflate", "br", "gzip, br", "zstd", "x" * 10_000])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    code, text = failure(encoding, [b"x"])
    assert code == "NotSoap"
    assert encoding[:50] in text
    assert len(text) < 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_a_failure(encoding: str, data: bytes) -> None:
    try:
        decoded(encoding, cut(data, 3))
    except ExchangeError as error:
        assert error.failure.code in ("NotSoap", "StreamIncomplete")  # noqa: PT017  (either is correct)


def test_a_gzip_bomb_is_decoded_in_pieces_and_refused_at_its_limit() -> None:
    decoder, bomb = Decoder("gzip"), gzip.compress(bytes(8 * EXPANSION_FREE))
    decoder.feed(bomb)
    decoded_bytes = 0
    with pytest.raises(ExchangeError) as caught:
        while piece := decoder.take():
            assert len(piece) <= PIECE
            decoded_bytes += len(piece)
    assert caught.value.failure.code == "EnvelopeTooLarge"
    assert decoded_bytes <= max(EXPANSION_FREE, MAX_EXPANSION * len(bomb))


def test_heartbeats_may_expand_without_limit() -> None:
    """A healthy stream repeats one message, flushed each time, and expands as much."""
    compressor, decoder, decoded_bytes = zlib.compressobj(wbits=31), Decoder("gzip"), 0
    heartbeat = b"<Envelope>" + b"x" * 1500 + b"</Envelope>"
    while decoded_bytes < 2 * EXPANSION_FREE:
        decoder.feed(compressor.compress(heartbeat) + compressor.flush(zlib.Z_SYNC_FLUSH))
        while piece := decoder.take():
            decoded_bytes += len(piece)


class Chunks(httpx.AsyncByteStream):
    """A body that never waits: all chunks have been received already."""

    def __init__(self, chunk: bytes, count: int) -> None:
        self.chunk, self.count, self.sent, self.closed = chunk, count, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < self.count and not self.closed:
            self.sent += 1
            yield self.chunk

    async def aclose(self) -> None:
        self.closed = True


@asynccontextmanager
async def body(stream: Chunks, **headers: str) -> AsyncIterator[Body]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aclosing(Body(httpx.Response(200, stream=stream, headers=fields))) as opened:
        yield opened


async def test_a_body_is_read_up_to_its_limit() -> None:
    async with body(Chunks(b"x" * 1000, 8)) as good:
        assert await good.whole(8000) == b"x" * 8000
    endless = Chunks(b"x" * 1000, 10**9)
    async with body(endless) as bad:
        with pytest.raises(ExchangeError) as caught:
            await bad.whole(8000)
    assert (caught.value.failure.code, endless.sent) == ("EnvelopeTooLarge", 9)


async def test_only_the_beginning_of_an_error_page_is_read() -> None:
    endless = Chunks(b"x" * 1000, 10**9)
    async with body(endless) as page:
        assert await page.beginning(2500) == b"x" * 2500
    assert endless.sent == 3


async def test_a_gzip_bomb_is_limited_as_other_bodies_are() -> None:
    bomb = Chunks(gzip.compress(bytes(10_000_000)), 1)
    async with body(bomb, content_encoding="gzip") as answer:
        with pytest.raises(ExchangeError) as caught:
            await answer.whole(1_000_000)
    assert caught.value.failure.text == "the response is longer than 1000000 bytes"


async def test_other_tasks_run_between_two_pieces() -> None:
    """Even if the whole body has been received already."""
    checkpoints = 0

    async def other() -> None:
        nonlocal checkpoints
        while True:
            checkpoints += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with body(Chunks(gzip.compress(bytes(5_000_000)), 1), content_encoding="gzip") as answer:
            assert len(await answer.whole(5_000_000)) == 5_000_000
        assert checkpoints >= 5_000_000 // PIECE
        checkpoints = 0
        async with body(Chunks(b"x", 500)) as answer:
            await answer.whole(1000)
        assert checkpoints >= 500
        nursery.cancel_scope.cancel()
