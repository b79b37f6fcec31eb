"""Numbers and times as servers write them."""

import re
from datetime import UTC, datetime


def integer(digits: str) -> int | None:
    """An xs:int; None if it is none."""
    return int(digits) if _INTEGER.fullmatch(digits) else None


def utc(time: str) -> str:
    """An xs:dateTime as RFC 3339 in UTC, with as many fractional digits as it has; what is none stays as it is."""
    if time.endswith("Z") or (match := _TIME.fullmatch(time)) is None:
        return time
    seconds, fraction, offset = match.groups()
    if offset is None:
        return f"{time}Z"
    try:
        moment = datetime.fromisoformat(seconds + offset).astimezone(UTC)
    except (ValueError, OverflowError):
        return time
    return f"{moment.replace(tzinfo=None).isoformat()}{fraction or ''}Z"


def moment(time: str | None) -> datetime | None:
    """RFC 3339 as an aware datetime; None if it is none."""
    try:
        found = datetime.fromisoformat(time or "")
    except ValueError:
        return None
    return found if found.tzinfo else None


_INTEGER = re.compile(r"-?[0-9]{1,10}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?([+-]\d\d:\d\d)?", re.ASCII)
