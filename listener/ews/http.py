"""What an HTTP reply says that brought no result: its body first, then its status and headers."""

import re
from collections.abc import Mapping
from datetime import datetime

from msgspec.structs import replace

from listener.errors import ExchangeError
from listener.ews.codes import LONGEST_WAIT, UNKNOWN_TO_FRONT_END, Failure
from listener.ews.soap import message_failure, parse, response_messages
from listener.ews.texts import URL_LENGTH
from listener.ews.values import amount, http_date
from listener.ews.xml import excerpt, html_title, is_html

# Codes of parse() that tell less than the status does: no SOAP at all, or a fault with nothing but SOAP's own code.
_UNREADABLE = frozenset({"EnvelopeTooLarge", "NotSoap", "MalformedXml", "ForbiddenXml", "UnexpectedReply"})
_GENERIC = frozenset({"Client", "Server", "SoapFault"})
# Possessive: a header that a server chooses must not take quadratic time.
_SCHEME = re.compile(r"(?:^|,)\s*+([A-Za-z][A-Za-z0-9-]{0,63}+)(?=\s*+(?:$|,)|\s++[^\s=])")
_MOST_SCHEMES = 10
_HEADER_LENGTH = 8192


# Statuses of Microsoft 365 for accounts that cannot sign in, and what they mean.
SIGN_IN = {
    456: "the account is blocked",
    457: "the account must sign in interactively, or with multi-factor authentication",
}

# Seconds by which clocks may differ before Kerberos and assertions of OAuth fail.
SKEW = 300.0


def off_by(ahead: float) -> str:
    """By how many seconds our clock is ahead of the server's, for people."""
    return f"our clock is {abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the server's"


def http_failure(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Failure:
    """Why a reply of this status brought no result. `now` must be aware: Retry-After may be a date.

    A date is measured by the server's own clock, where the reply tells it (Date): ours may differ, or jump.

    A code in the body (a fault, or a response message) wins over the status, and its BackOffMilliseconds over
    Retry-After. `Http` and the status is the code otherwise, `EwsDisabled` if X-EWS-Policy-Reason came with a 403,
    the X-CasErrorCode of a 404 if it means that the mailbox is unknown. x-ms-diagnostics is part of the text.
    The names of headers may be in any case.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    date = http_date(fields.get("date", ""))
    wait = _retry_after(fields.get("retry-after", ""), date or now)
    said = _failure_in(body)
    diagnostics = excerpt(fields.get("x-ms-diagnostics", ""))
    if said is not None and said.code not in _UNREADABLE | _GENERIC:
        text = "; ".join(filter(None, [said.text, diagnostics]))
        return replace(said, status=status, text=text, wait=wait if said.wait is None else said.wait)
    code, parts, location = f"Http{status}", [], None
    if cas := excerpt(fields.get("x-caserrorcode", "")):
        # The front end names why it could not route the request to a mailbox server.
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
        parts.append(f"redirected to {excerpt(location)}" if location else "redirected to nowhere")
        if location and len(location) > URL_LENGTH:
            location = None  # no redirect to be followed
    if status == 401 and (schemes := _SCHEME.findall(fields.get("www-authenticate", "")[:_HEADER_LENGTH])):
        parts.append(f"the server offers {', '.join(list(dict.fromkeys(schemes))[:_MOST_SCHEMES])}")
    if (
        status == 401
        and (date := http_date(fields.get("date", "")))
        and abs(ahead := (now - date).total_seconds()) > SKEW
    ):
        parts.append(off_by(ahead))
    parts.append(diagnostics)
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
    seconds = amount(value.strip(), LONGEST_WAIT)
    if seconds is not None:
        return seconds
    date = http_date(value)
    return None if date is None else min(max(0.0, (date - now).total_seconds()), LONGEST_WAIT)
