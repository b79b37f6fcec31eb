"""What an HTTP reply says that brought no result: its body first, then its status and headers."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from msgspec.structs import replace

from listener.errors import ExchangeError
from listener.ews.codes import LONGEST_WAIT, Failure
from listener.ews.soap import message_failure, parse, response_messages
from listener.ews.texts import URL_LENGTH
from listener.ews.xml import excerpt, html_title, is_html

# Codes of parse() that tell less than the status does: no SOAP at all, or a fault with nothing but SOAP's own code.
_UNREADABLE = frozenset({"EnvelopeTooLarge", "NotSoap", "MalformedXml", "ForbiddenXml", "UnexpectedReply"})
_GENERIC = frozenset({"Client", "Server", "SoapFault"})
# Possessive: a header that a server chooses must not take quadratic time.
_SCHEME = re.compile(r"(?:^|,)\s*+([A-Za-z][A-Za-z0-9-]{0,63}+)(?=\s*+(?:$|,)|\s++[^\s=])")
_MOST_SCHEMES = 10
_HEADER_LENGTH = 8192


# Seconds by which clocks may differ before Kerberos and assertions of OAuth fail.
SKEW = 300.0


def off_by(ahead: float) -> str:
    """By how many seconds our clock is ahead of the server's, for people."""
    return f"our clock is {abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the server's"


def http_failure(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Failure:
    """Why a reply of this status brought no result. `now` must be aware: Retry-After may be a date.

    A date is measured by the server's own clock, where the reply tells it (Date): ours may differ, or jump.

    A code in the body (a fault, or a response message) wins over the status, and its BackOffMilliseconds over
    Retry-After. `Http` and the status is the code otherwise, `EwsDisabled` if X-EWS-Policy-Reason came with a 403.
    The names of headers may be in any case.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    date = _date(fields.get("date", ""))
    wait = _retry_after(fields.get("retry-after", ""), date or now)
    said = _failure_in(body)
    if said is not None and said.code not in _UNREADABLE | _GENERIC:
        return replace(said, status=status, wait=wait if said.wait is None else said.wait)
    code, parts, location = f"Http{status}", [], None
    if status == 403 and (reason := fields.get("x-ews-policy-reason")):
        code = "EwsDisabled"
        parts.append(f"EWS is switched off for this tenant or application: {excerpt(reason)}")
    if status in (301, 302, 303, 307, 308, 451):
        location = fields.get("x-ms-location") or fields.get("location")
        parts.append(f"redirected to {excerpt(location)}" if location else "redirected to nowhere")
        if location and len(location) > URL_LENGTH:
            location = None  # no redirect to be followed
    if status == 401 and (schemes := _SCHEME.findall(fields.get("www-authenticate", "")[:_HEADER_LENGTH])):
        parts.append(f"the server offers {', '.join(list(dict.fromkeys(schemes))[:_MOST_SCHEMES])}")
    if (
        status == 401
        and (date := _date(fields.get("date", "")))
        and abs(ahead := (now - date).total_seconds()) > SKEW
    ):
        parts.append(off_by(ahead))
    if diagnostics := fields.get("x-ms-diagnostics"):
        parts.append(excerpt(diagnostics))
    if said is not None and said.code in _GENERIC:
        parts.append(said.text)
    elif is_html(body):
        parts.append(f"an HTML page: {html_title(body) or 'without a title'}")
    else:
        parts.append(excerpt(body))
    return Failure(
        code=code, text="; ".join(filter(None, parts)), status=status, wait=wait, location=location
    )


def _failure_in(body: bytes) -> Failure | None:
    try:
        return next(filter(None, map(message_failure, response_messages(parse(body)))), None)
    except ExchangeError as error:
        return error.failure


def _retry_after(value: str, now: datetime) -> float | None:
    """RFC 9110 section 10.2.3: seconds, or a date; None if it is neither. LONGEST_WAIT at most."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return min(float(value), LONGEST_WAIT)
    date = _date(value)
    return None if date is None else min(max(0.0, (date - now).total_seconds()), LONGEST_WAIT)


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
