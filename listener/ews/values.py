"""Parse numbers, times and texts from servers. For an invalid value they return None or an empty text.

Codes, ids, labels and URLs from a server are logged, displayed, stored and compared. The parsers limit their
length, so that other code need not check it. Free text goes through `listener.ews.xml.excerpt`: 200 printable
characters on one line.
"""

import json
import re
from datetime import MAXYEAR, UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

CODE_LENGTH = 100
"""Characters of a response code. The longest code in the schema has 56."""
ID_LENGTH = 4096
"""Characters of the id of an item, folder or subscription. Those of Exchange have a few hundred."""
URL_LENGTH = 2048
"""Characters of a URL."""


def integer(digits: str) -> int | None:
    """Return an xs:int; None if it is invalid."""
    return int(digits) if _INTEGER.fullmatch(digits) else None


def utc(time: str) -> str:
    """Return an xs:dateTime as RFC 3339 in UTC, with its fractional digits, at most nine.

    Empty if the format or the date is invalid, or the time is outside of the years 1 to 9998 in UTC. A time without
    an offset is UTC.
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
    """Return an aware datetime for RFC 3339; None if it is invalid."""
    try:
        found = datetime.fromisoformat(time or "")
        # Near the years 1 and 9999, an offset leads outside of the calendar, and later conversions would raise.
        found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo and found.year < MAXYEAR else None  # leaves room for adding durations


def http_date(text: str) -> datetime | None:
    """Return an HTTP date (RFC 9110 section 5.6.7) in UTC; None if it is invalid. A date without a zone is UTC."""
    if len(text) > _MAX_DATE_LENGTH:
        return None
    try:
        date = parsedate_to_datetime(text)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, OverflowError, TypeError, LookupError):  # the standard library raises all of these
        return None


def amount(digits: str, maximum: float) -> float | None:
    """Return an unsigned integer of up to 18 ASCII digits, limited to `maximum`; None if it is invalid."""
    return min(float(digits), maximum) if _AMOUNT.fullmatch(digits) else None


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return a JSON object; None if the text is not one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def response_code(text: str) -> str:
    """Return a response code of at most CODE_LENGTH characters: A-Z, a-z, 0-9, `_`, `.`.

    A run of other characters becomes one `_`.
    """
    return _OTHER.sub("_", text[:CODE_LENGTH])


def identifier(text: str | None) -> str | None:
    """Return an id unchanged; None if it is missing, blank or longer than ID_LENGTH."""
    if not text or len(text) > ID_LENGTH or text.isspace():
        return None
    return text


_MAX_DATE_LENGTH = 100
_AMOUNT = re.compile(r"[0-9]{1,18}")
_INTEGER = re.compile(r"-?[0-9]{1,10}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-](?:0\d|1[0-4]):[0-5]\d)?", re.ASCII)
_OTHER = re.compile(r"[^A-Za-z0-9_.]+")
