"""The parsers of numbers, times and JSON return a value or None; they never raise."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from listener.ews.values import amount, http_date, json_object, moment, utc


@given(
    st.text() | st.from_regex(r"\w{3}, \d{1,25} \w{3} \d{1,25} \d{1,9}:\d{1,9}:\d{1,9} (GMT|[+-]\d{1,30})")
)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("")
def test_any_text_is_a_date_or_none(text: str) -> None:
    date = http_date(text)
    assert date is None or date.tzinfo is UTC


@given(
    st.text()
    | st.datetimes().map(lambda d: d.isoformat())
    | st.from_regex(r"[09]{4}-[01]\d-\d\dT\d\d:\d\d:\d\d[+-]2\d:\d\d")
)
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
def test_any_text_is_a_datetime_or_none(text: str) -> None:
    found = moment(text)
    if found is not None:
        found.astimezone(UTC)
        found.timestamp()
    utc(text)


@given(st.text() | st.floats().map(repr) | st.integers().map(str))
@example("1e999")
@example("NaN")
@example("inf")
@example("-1")
@example("٣")
@example("9" * 5000)
def test_any_text_is_an_amount_or_none(text: str) -> None:
    found = amount(text, 60.0)
    assert found is None or 0 <= found <= 60


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("59", 59.0), ("999999999999", 60.0), ("1.5", None)]
)
def test_amounts(text: str, seconds: float | None) -> None:
    assert amount(text, 60.0) == seconds


def test_dates() -> None:
    assert http_date("Tue, 14 May 2024 11:30:01 +0200") == datetime(2024, 5, 14, 9, 30, 1, tzinfo=UTC)
    assert http_date("Mon, 01 Jan 99999999999999999999 00:00:00 GMT") is None


@given(st.text() | st.binary())
@example("[" * 100_000)
@example('{"a": ' * 50_000)
@example("9" * 5000)
@example(b"\xff\xfe")
@example("[]")
def test_anything_is_a_json_object_or_none(text: str | bytes) -> None:
    assert isinstance(json_object(text), dict | None)
