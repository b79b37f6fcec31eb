"""The bytes of a request as values."""

from typing import NamedTuple

from lxml import etree

SOAP = "{http://schemas.xmlsoap.org/soap/envelope/}"
M = "{http://schemas.microsoft.com/exchange/services/2006/messages}"
T = "{http://schemas.microsoft.com/exchange/services/2006/types}"

# ruff: noqa: SIM905
# EWS versions that know streaming; older ones get a fault, see "RequestServerVersion" (learn.microsoft.com).
STREAMING_VERSIONS = frozenset(
    "Exchange2010_SP1 Exchange2010_SP2 Exchange2012 Exchange2013 Exchange2013_SP1 Exchange2015 Exchange2016 "
    "V2015_10_05 V2016_01_06 V2016_04_13 V2016_07_13 V2016_10_10 V2017_01_07 V2017_04_14 V2017_07_11".split()
)
VERSIONS = STREAMING_VERSIONS | {"Exchange2007", "Exchange2007_SP1", "Exchange2009", "Exchange2010"}


class Malformed(Exception):  # noqa: N818
    """The body is no SOAP request; the text says why."""


class Call(NamedTuple):
    """One SOAP request: `operation` is the local name of the body's element. `impersonated` is what stands in
    ConnectingSID, None without ExchangeImpersonation."""

    operation: str
    element: etree._Element
    version: str | None
    impersonated: str | None


def parse_xml(body: bytes) -> etree._Element:
    """The root element. Malformed: not well-formed, or it has a document type definition."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(body, parser)
    except etree.XMLSyntaxError as error:
        raise Malformed(str(error)) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise Malformed("DTD is prohibited in this XML document.")
    return root


def parse_call(body: bytes) -> Call:
    """A request to Exchange.asmx. Malformed: see there."""
    root = parse_xml(body)
    operation = next(root.iterfind(f"{SOAP}Body/*"), None)
    if root.tag != f"{SOAP}Envelope" or operation is None:
        raise Malformed("The request has no SOAP body.")
    version = root.find(f"{SOAP}Header/{T}RequestServerVersion")
    who = next(root.iterfind(f"{SOAP}Header/{T}ExchangeImpersonation/{T}ConnectingSID/*"), None)
    return Call(
        operation=etree.QName(operation).localname,
        element=operation,
        version=None if version is None else version.get("Version"),
        impersonated=None if who is None else (who.text or ""),
    )
