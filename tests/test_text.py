"""Text from servers, plugins and child processes."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from listener.text import (
    describe,
    encodable,
    format_traceback,
    printable,
    represent,
    shortened,
    shortened_inside,
)

# Hypothesis generates no surrogates unless requested.
ANY_TEXT = st.text(st.characters(exclude_categories=()))


class EvilError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    def __repr__(self) -> str:
        raise KeyboardInterrupt


class HugeError(Exception):
    def __str__(self) -> str:
        return "x" * 3_000_000


@given(ANY_TEXT)
def test_control_characters_are_escaped(text: str) -> None:
    shown = printable(text)
    bad = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\t"]
    assert not bad
    assert not any(unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
                   for c in shown)  # fmt: skip
    shown.encode()


def test_escapes_are_readable() -> None:
    assert (
        printable("a\x1b[31m\x9b2J\u202eb\ud800\x7f\r\n\tc")
        == "a\\x1b[31m\\x9b2J\\u202eb\\ud800\\x7f\\x0d\\n\tc"
    )
    assert printable("a\nb\x07", multiline=True) == "a\nb\\x07"


@given(ANY_TEXT)
def test_text_can_be_encoded(text: str) -> None:
    encodable(text).encode()


@given(ANY_TEXT, st.integers(8, 100))
def test_short_text_is_unchanged(text: str, most: int) -> None:
    for short in (shortened(text, most), shortened_inside(text, most)):
        assert len(short) <= most + 40
    if len(text) <= most:
        assert shortened(text, most) == shortened_inside(text, most) == text


def test_exception_whose_methods_raise_is_described() -> None:
    assert describe(EvilError()) == "EvilError: <str() raises SystemExit>"
    assert "EvilError" in format_traceback(EvilError())
    assert represent(EvilError()) == "<EvilError whose repr() raises KeyboardInterrupt>"


def test_huge_exception_is_shortened() -> None:
    assert len(describe(HugeError())) < 5000
    assert len(format_traceback(HugeError())) < 17000


def test_lone_surrogate_is_escaped() -> None:
    assert describe(ValueError("\udc80")) == "ValueError: \\udc80"
    format_traceback(ValueError("\udc80")).encode()


def test_group_of_one_is_described_by_its_exception() -> None:
    assert describe(BaseExceptionGroup("g", [ExceptionGroup("h", [ValueError("x")])])) == "ValueError: x"
