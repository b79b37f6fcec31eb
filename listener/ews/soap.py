"""SOAP 1.1 for EWS: build request envelopes, and read bodies, faults and response messages.

Elements of replies are matched by their local names, because servers differ in the prefixes and, for some elements,
in the EWS namespace.
"""

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias
from xml.sax.saxutils import unescape

import msgspec
from lxml import etree

from listener.ews.codes import LONGEST_WAIT, ExchangeError, Failure
from listener.ews.values import amount, response_code
from listener.ews.xml import excerpt, local_name, read

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
MESSAGES = "http://schemas.microsoft.com/exchange/services/2006/messages"
TYPES = "http://schemas.microsoft.com/exchange/services/2006/types"
AUTODISCOVER = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
ADDRESSING = "http://www.w3.org/2005/08/addressing"
PREFIXES = {"soap": SOAP, "m": MESSAGES, "t": TYPES, "a": AUTODISCOVER, "wsa": ADDRESSING}
# Declaring only the needed namespace reduces the time to a third.
_OWN = {prefix: {prefix: uri} for prefix, uri in PREFIXES.items()}

ImpersonationKind: TypeAlias = Literal["PrincipalName", "SID", "PrimarySmtpAddress", "SmtpAddress"]


class Impersonation(msgspec.Struct, frozen=True):
    """The impersonated user of a request: a ConnectingSID (MS-OXWSCDATA 2.2.3.3). A PrincipalName is a UPN."""

    kind: ImpersonationKind
    value: str


def envelope(body: etree._Element, *, version: str, impersonate: Impersonation | None = None) -> bytes:
    """Return a request as UTF-8 bytes. `version` is the `t:RequestServerVersion`, such as `Exchange2013_SP1`.

    `body` becomes part of the envelope. This function and those that build the body raise ValueError for text that
    XML does not allow, such as control characters.
    """
    header = build("soap:Header", build("t:RequestServerVersion", Version=version))
    if impersonate is not None:
        sid = build(f"t:{impersonate.kind}", impersonate.value)
        header.append(build("t:ExchangeImpersonation", build("t:ConnectingSID", sid)))
    return serialize(build("soap:Envelope", header, build("soap:Body", body)))


def build(name: str, *content: etree._Element | str, **attributes: str) -> etree._Element:
    """Return an element with children or a text, and attributes. The prefix of `name` is one of PREFIXES."""
    prefix, _, local = name.partition(":")
    element = etree.Element(f"{{{PREFIXES[prefix]}}}{local}", attributes, nsmap=_OWN[prefix])
    for part in content:
        if isinstance(part, str):
            element.text = part
        else:
            element.append(part)
    return element


def serialize(root: etree._Element) -> bytes:
    """Return the document as UTF-8 bytes, with an XML declaration and only the prefixes that it uses."""
    etree.cleanup_namespaces(root, top_nsmap=PREFIXES)
    return etree.tostring(root, encoding="utf-8", xml_declaration=True)


def parse(content: bytes) -> etree._Element:
    """Return the first child of soap:Body.

    Raises ExchangeError: a fault with its own code, `UnexpectedReply` for an empty body, or a code of xml.read().
    """
    root = read(content)
    body = child(root, "Body") if local_name(root) == "Envelope" else None
    if body is None:
        raise ExchangeError(
            Failure(code="NotSoap", text=excerpt(f"an XML document with root element {local_name(root)}"))
        )
    if not len(body):
        raise ExchangeError(Failure(code="UnexpectedReply", text="an empty soap:Body"))
    reply = body[0]
    if local_name(reply) == "Fault":
        raise ExchangeError(fault(reply))
    return reply


def fault(element: etree._Element) -> Failure:
    """Return the failure of a soap:Fault.

    The code is `detail/ResponseCode` in any namespace, else the `faultcode` without its prefix, else `SoapFault`.
    `wait` is the BackOffMilliseconds of the detail, in seconds.
    """
    detail = child(element, "detail")
    code = message = violation = ""
    if detail is not None:
        code = descendant_text(detail, "ResponseCode")
        message = descendant_text(detail, "Message")
        violation = descendant_text(detail, "Violation")
    code = response_code(code or child_text(element, "faultcode").rpartition(":")[2]) or "SoapFault"
    reason = child_text(element, "faultstring") or message
    if violation and violation not in reason:
        reason = f"{reason} ({violation})" if reason else violation
    return Failure(code=code, text=excerpt(reason), wait=None if detail is None else back_off(detail))


def response_messages(reply: etree._Element) -> list[etree._Element]:
    """Return the `*ResponseMessage` elements of a reply. Raises ExchangeError `UnexpectedReply` without any."""
    messages = child(reply, "ResponseMessages")
    if messages is None or not len(messages):
        raise ExchangeError(
            Failure(code="UnexpectedReply", text=excerpt(f"{local_name(reply)} without ResponseMessages"))
        )
    return list(messages)


def message_failure(message: etree._Element, subscription_ids: Iterable[str] = ()) -> Failure | None:
    """Return the failure of a response message; None for success and for a Warning, which includes a result."""
    response_class = message.get("ResponseClass")
    code = response_code(child_text(message, "ResponseCode"))
    if response_class == "Warning" or code == "NoError" or (not code and response_class != "Error"):
        return None
    return Failure(
        code=code or "UnexpectedReply",
        text=excerpt(child_text(message, "MessageText")),
        wait=back_off(message),
        subscription_ids=tuple(subscription_ids),
    )


def only_message(content: bytes) -> etree._Element:
    """Return the first response message of a reply. Raises ExchangeError as parse() does, and for a failure."""
    message = response_messages(parse(content))[0]
    if failure := message_failure(message):
        raise ExchangeError(failure)
    return message


def back_off(element: etree._Element) -> float | None:
    """Return BackOffMilliseconds of any `MessageXml/t:Value[@Name]` below, in seconds, at most LONGEST_WAIT."""
    for value in element.iter("{*}Value"):
        if value.get("Name") == "BackOffMilliseconds":
            milliseconds = amount(text(value), LONGEST_WAIT * 1000)
            if milliseconds is not None:
                return milliseconds / 1000
    return None


def child(element: etree._Element, name: str) -> etree._Element | None:
    """Return the first child with this local name."""
    for part in element:
        if local_name(part) == name:
            return part
    return None


def child_text(element: etree._Element, name: str) -> str:
    """Return the stripped text of the first child with this local name; empty if there is none."""
    found = child(element, name)
    return "" if found is None else text(found)


def descendant_text(element: etree._Element, name: str) -> str:
    """Return the stripped text of the first descendant with this local name; empty if there is none."""
    return next((text(found) for found in element.iter(f"{{*}}{name}")), "")


def text(element: etree._Element) -> str:
    """Return the stripped text of the element."""
    return (element.text or "").strip()


def acting_as(request: bytes) -> Impersonation | None:
    """Return the impersonation of a request of this module, read from its bytes, which the server evaluates."""
    found = _ACTING_AS.search(request)
    if found is None:
        return None
    return Impersonation(found[1].decode(), unescape(found[2].decode()))  # type: ignore[arg-type]


def owner_of_folders(request: bytes) -> str | None:
    """Return the owner of the folders in a request of this module, if it names one (delegate access)."""
    found = _OWNER.search(request)
    return None if found is None else unescape(found[1].decode())


_ACTING_AS = re.compile(rb"<t:ConnectingSID><t:(\w+)>([^<]*)</t:")
_OWNER = re.compile(rb"<t:DistinguishedFolderId [^>]*><t:Mailbox><t:EmailAddress>([^<]*)</t:")
