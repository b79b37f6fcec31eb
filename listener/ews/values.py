"""Numbers and times as servers write them."""

import re
from datetime import MAXYEAR, UTC, datetime


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
    except ValueError:
        return None
    return found if found.tzinfo and found.year < MAXYEAR else None  # a later moment can be reckoned with


_INTEGER = re.compile(r"-?[0-9]{1,10}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-](?:0\d|1[0-4]):[0-5]\d)?", re.ASCII)
