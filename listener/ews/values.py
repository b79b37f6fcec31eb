"""Numbers and times as servers write them. Each parser returns None for what is not one, and never raises."""

import json
import re
from datetime import MAXYEAR, UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any


def integer(digits: str) -> int | None:
    """An xs:int; None if it is none."""
    return int(digits) if _INTEGER.fullmatch(digits) else None


def utc(time: str) -> str:
    """An xs:dateTime as RFC 3339 in UTC, with as many fractional digits as it has, at most nine.

    Empty if it is no time: not of this form, not in the calendar, or outside of the years 1 to 9998 in UTC. A time
    without an offset is taken as UTC.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return ""
    seconds, fraction, offset = match.groups()
    try:
        moment = datetime.fromisoformat(seconds)
        if offset and offset != "Z":
            moment = datetime.fromisoformat(seconds + offset).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return ""
    return f"{moment.isoformat()}{(fraction or '')[:10]}Z" if moment.year < MAXYEAR else ""


def moment(time: str | None) -> datetime | None:
    """RFC 3339 as an aware datetime; None if it is none."""
    try:
        found = datetime.fromisoformat(time or "")
        # Near the years 1 and 9999 an offset leads outside of the calendar: it would raise wherever it is converted.
        found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo and found.year < MAXYEAR else None  # a later moment can be reckoned with


def http_date(text: str) -> datetime | None:
    """An HTTP date (RFC 9110 section 5.6.7) in UTC; a date without a zone is UTC. None if it is none."""
    if len(text) > _LONGEST_DATE:
        return None
    try:
        date = parsedate_to_datetime(text)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (
        ValueError,
        OverflowError,
        TypeError,
        LookupError,
    ):  # the parser of the standard library raises all these
        return None


def amount(digits: str, most: float) -> float | None:
    """A whole number of up to 18 ASCII digits without a sign, `most` at most; None if it is none."""
    return min(float(digits), most) if _AMOUNT.fullmatch(digits) else None


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


_LONGEST_DATE = 100
_AMOUNT = re.compile(r"[0-9]{1,18}")
_INTEGER = re.compile(r"-?[0-9]{1,10}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-](?:0\d|1[0-4]):[0-5]\d)?", re.ASCII)
