"""Failures of HTTP replies without a result, from the body, the status and the headers."""

import re
from collections.abc import Mapping
from datetime import datetime

from msgspec.structs import replace

from listener.ews.codes import LONGEST_WAIT, UNKNOWN_TO_FRONT_END, ExchangeError, Failure
from listener.ews.soap import message_failure, parse, response_messages
from listener.ews.values import URL_LENGTH, amount, http_date
from listener.ews.xml import excerpt, html_title, is_html

# Codes of parse() with less information than the status: not SOAP, or a fault with only a generic SOAP code.
_UNREADABLE = frozenset({"EnvelopeTooLarge", "NotSoap", "MalformedXml", "ForbiddenXml", "UnexpectedReply"})
_GENERIC = frozenset({"Client", "Server", "SoapFault"})
# Possessive quantifiers: an untrusted header must not cause quadratic time.
_SCHEME = re.compile(r"(?:^|,)\s*+([A-Za-z][A-Za-z0-9-]{0,63}+)(?=\s*+(?:$|,)|\s++[^\s=])")
_MAX_SCHEMES = 10
_HEADER_LENGTH = 8192


# Statuses of Microsoft 365 for accounts that cannot sign in.
SIGN_IN = {
    456: "the account is blocked",
    457: "the account must sign in interactively, or with multi-factor authentication",
}

# Seconds. With a larger clock difference, Kerberos and OAuth assertions fail.
MAX_CLOCK_SKEW = 300.0


def describe_clock_skew(ahead: float) -> str:
    """Return a text for the seconds by which our clock is ahead of the server's."""
    return f"our clock is {abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the server's"


def http_failure(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Failure:
    """Return the failure for a reply with this status. Header names may be in any case.

    `now` must be aware, because Retry-After may be a date. Such a date is compared with the Date header, if there is
    one, because our clock may differ or jump.

    A code in the body (a fault, or a response message) takes precedence over the status, and its BackOffMilliseconds
    over Retry-After. Otherwise the code is `Http` with the status, `EwsDisabled` for a 403 with X-EWS-Policy-Reason,
    or the X-CasErrorCode of a 404 if it means that the mailbox is unknown. The text includes x-ms-diagnostics.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    date = http_date(fields.get("date", ""))
    wait = _retry_after(fields.get("retry-after", ""), date or now)
    body_failure = _failure_in(body)
    diagnostics = excerpt(fields.get("x-ms-diagnostics", ""))
    if body_failure is not None and body_failure.code not in _UNREADABLE | _GENERIC:
        text = "; ".join(filter(None, [body_failure.text, diagnostics]))
        return replace(
            body_failure,
            status=status,
            text=text,
            wait=wait if body_failure.wait is None else body_failure.wait,
        )
    code, parts, location = f"Http{status}", [], None
    if cas := excerpt(fields.get("x-caserrorcode", "")):
        # The front end reports why it could not route the request to a mailbox server.
        known = next((each for each in UNKNOWN_TO_FRONT_END if each.lower() == cas.lower()), None)
        code = known if status == 404 and known is not None else code
        parts.append(f"X-CasErrorCode {cas}")
    if status in SIGN_IN:
        parts.append(SIGN_IN[status])
    if status == 403 and (reason := fields.get("x-ews-policy-reason")):
        code = "EwsDisabled"
        parts.append(f"EWS is switched off for this tenant or application: {excerpt(reason)}")
    if status in (301, 302, 303, 307, 308, 451):
        location = fields.get("x-ms-location") or fields.get("location")
        parts.append(f"redirected to {excerpt(location)}" if location else "redirect without a target")
        if location and len(location) > URL_LENGTH:
            location = None  # too long to follow
    if status == 401 and (schemes := _SCHEME.findall(fields.get("www-authenticate", "")[:_HEADER_LENGTH])):
        parts.append(f"the server offers {', '.join(list(dict.fromkeys(schemes))[:_MAX_SCHEMES])}")
    if (
        status == 401
        and (date := http_date(fields.get("date", "")))
        and abs(ahead := (now - date).total_seconds()) > MAX_CLOCK_SKEW
    ):
        parts.append(describe_clock_skew(ahead))
    parts.append(diagnostics)
    if body_failure is not None and body_failure.code in _GENERIC:
        parts.append(body_failure.text)
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
    """Return the seconds of a Retry-After header (RFC 9110 section 10.2.3), at most LONGEST_WAIT; None if invalid."""
    seconds = amount(value.strip(), LONGEST_WAIT)
    if seconds is not None:
        return seconds
    date = http_date(value)
    return None if date is None else min(max(0.0, (date - now).total_seconds()), LONGEST_WAIT)
