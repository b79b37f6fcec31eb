"""SOAP 1.1 as Exchange speaks it: envelopes out, bodies and faults in.

Elements of replies are matched by their local names: servers differ in prefixes, and in which of the two EWS
namespaces some elements stand.
"""

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias
from xml.sax.saxutils import unescape

import msgspec
from lxml import etree

from listener.errors import ExchangeError
from listener.ews import texts
from listener.ews.codes import LONGEST_WAIT, Failure
from listener.ews.values import amount
from listener.ews.xml import excerpt, local_name, read

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
MESSAGES = "http://schemas.microsoft.com/exchange/services/2006/messages"
TYPES = "http://schemas.microsoft.com/exchange/services/2006/types"
AUTODISCOVER = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
ADDRESSING = "http://www.w3.org/2005/08/addressing"
PREFIXES = {"soap": SOAP, "m": MESSAGES, "t": TYPES, "a": AUTODISCOVER, "wsa": ADDRESSING}
# An element that declares no more than it needs takes a third of the time.
_OWN = {prefix: {prefix: uri} for prefix, uri in PREFIXES.items()}

ImpersonationKind: TypeAlias = Literal["PrincipalName", "SID", "PrimarySmtpAddress", "SmtpAddress"]


class Impersonation(msgspec.Struct, frozen=True):
    """In whose name a request is made: a ConnectingSID (MS-OXWSCDATA 2.2.3.3). A PrincipalName is a UPN."""

    kind: ImpersonationKind
    value: str


def envelope(body: etree._Element, *, version: str, impersonate: Impersonation | None = None) -> bytes:
    """A request as UTF-8 bytes. `version` is that of `t:RequestServerVersion`, such as `Exchange2013_SP1`.

    `body` becomes part of the envelope. ValueError from here or from where the body is built means a text that
    XML cannot hold, such as one with control characters.
    """
    header = build("soap:Header", build("t:RequestServerVersion", Version=version))
    if impersonate is not None:
        who = build(f"t:{impersonate.kind}", impersonate.value)
        header.append(build("t:ExchangeImpersonation", build("t:ConnectingSID", who)))
    return serialize(build("soap:Envelope", header, build("soap:Body", body)))


def build(name: str, *content: etree._Element | str, **attributes: str) -> etree._Element:
    """An element by its prefixed name, one of PREFIXES, with children or a text, and attributes."""
    prefix, _, local = name.partition(":")
    element = etree.Element(f"{{{PREFIXES[prefix]}}}{local}", attributes, nsmap=_OWN[prefix])
    for part in content:
        if isinstance(part, str):
            element.text = part
        else:
            element.append(part)
    return element


def serialize(root: etree._Element) -> bytes:
    """The document as bytes: UTF-8, with an XML declaration and only the prefixes that it uses."""
    etree.cleanup_namespaces(root, top_nsmap=PREFIXES)
    return etree.tostring(root, encoding="utf-8", xml_declaration=True)


def parse(content: bytes) -> etree._Element:
    """The first child of soap:Body.

    Raises ExchangeError: a fault under its own code, `NotSoap`, `MalformedXml` or `ForbiddenXml`.
    """
    root = read(content)
    body = child(root, "Body") if local_name(root) == "Envelope" else None
    if body is None:
        raise ExchangeError(
            Failure(code="NotSoap", text=excerpt(f"an XML document of root {local_name(root)}"))
        )
    if not len(body):
        raise ExchangeError(Failure(code="UnexpectedReply", text="an empty soap:Body"))
    reply = body[0]
    if local_name(reply) == "Fault":
        raise ExchangeError(fault(reply))
    return reply


def fault(element: etree._Element) -> Failure:
    """What a soap:Fault says.

    The code is that of `detail/ResponseCode` in whatever namespace, else the `faultcode` without its prefix,
    else `SoapFault`. `wait` is the BackOffMilliseconds of the detail, in seconds.
    """
    detail = child(element, "detail")
    code = message = violation = ""
    if detail is not None:
        code = descendant_text(detail, "ResponseCode")
        message = descendant_text(detail, "Message")
        violation = descendant_text(detail, "Violation")
    code = texts.code(code or child_text(element, "faultcode").rpartition(":")[2]) or "SoapFault"
    said = child_text(element, "faultstring") or message
    if violation and violation not in said:
        said = f"{said} ({violation})" if said else violation
    return Failure(code=code, text=excerpt(said), wait=None if detail is None else back_off(detail))


def response_messages(reply: etree._Element) -> list[etree._Element]:
    """The `*ResponseMessage` elements of a reply; ExchangeError `UnexpectedReply` if there are none."""
    messages = child(reply, "ResponseMessages")
    if messages is None or not len(messages):
        raise ExchangeError(
            Failure(code="UnexpectedReply", text=excerpt(f"{local_name(reply)} without ResponseMessages"))
        )
    return list(messages)


def message_failure(message: etree._Element, subscription_ids: Iterable[str] = ()) -> Failure | None:
    """Why this response message is a failure, or None if it is none: a Warning comes with its result."""
    response_class = message.get("ResponseClass")
    code = texts.code(child_text(message, "ResponseCode"))
    if response_class == "Warning" or code == "NoError" or (not code and response_class != "Error"):
        return None
    return Failure(
        code=code or "UnexpectedReply",
        text=excerpt(child_text(message, "MessageText")),
        wait=back_off(message),
        subscription_ids=tuple(subscription_ids),
    )


def only_message(content: bytes) -> etree._Element:
    """The one response message of a reply. Raises ExchangeError as parse() does, and if it is a failure."""
    message = response_messages(parse(content))[0]
    if failure := message_failure(message):
        raise ExchangeError(failure)
    return message


def back_off(element: etree._Element) -> float | None:
    """BackOffMilliseconds of `MessageXml/t:Value[@Name]` somewhere below, in seconds; LONGEST_WAIT at most."""
    for value in element.iter("{*}Value"):
        if value.get("Name") == "BackOffMilliseconds":
            milliseconds = amount(text(value), LONGEST_WAIT * 1000)
            if milliseconds is not None:
                return milliseconds / 1000
    return None


def child(element: etree._Element, name: str) -> etree._Element | None:
    """The first child of this local name."""
    for part in element:
        if local_name(part) == name:
            return part
    return None


def child_text(element: etree._Element, name: str) -> str:
    """The text of the first child of this local name, stripped; empty if there is none."""
    found = child(element, name)
    return "" if found is None else text(found)


def descendant_text(element: etree._Element, name: str) -> str:
    """The text of the first descendant of this local name, stripped; empty if there is none."""
    return next((text(found) for found in element.iter(f"{{*}}{name}")), "")


def text(element: etree._Element) -> str:
    """The element's text, stripped."""
    return (element.text or "").strip()


def acting_as(request: bytes) -> Impersonation | None:
    """In whose name a request of ours is made: read back from its bytes, which are what the server goes by."""
    found = _ACTING_AS.search(request)
    if found is None:
        return None
    return Impersonation(found[1].decode(), unescape(found[2].decode()))  # type: ignore[arg-type]


def owner_of_folders(request: bytes) -> str | None:
    """Whose folders a request of ours names, if they are not those of whom it is made for."""
    found = _OWNER.search(request)
    return None if found is None else unescape(found[1].decode())


_ACTING_AS = re.compile(rb"<t:ConnectingSID><t:(\w+)>([^<]*)</t:")
_OWNER = re.compile(rb"<t:DistinguishedFolderId [^>]*><t:Mailbox><t:EmailAddress>([^<]*)</t:")
