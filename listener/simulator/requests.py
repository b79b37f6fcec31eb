"""EWS requests: parse them, resolve their ids and check access."""

from base64 import b64decode
from typing import NamedTuple

from lxml import etree

from listener.simulator.directory import Directory
from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.responses import MESSAGES_NS, SOAP_NS, TYPES_NS, Failure

SOAP, M, T = f"{{{SOAP_NS}}}", f"{{{MESSAGES_NS}}}", f"{{{TYPES_NS}}}"

# ruff: noqa: SIM905
# EWS versions with streaming; older ones get a fault, see "RequestServerVersion" (learn.microsoft.com).
STREAMING_VERSIONS = frozenset(
    "Exchange2010_SP1 Exchange2010_SP2 Exchange2012 Exchange2013 Exchange2013_SP1 Exchange2015 Exchange2016 "
    "V2015_10_05 V2016_01_06 V2016_04_13 V2016_07_13 V2016_10_10 V2017_01_07 V2017_04_14 V2017_07_11".split()
)
VERSIONS = STREAMING_VERSIONS | {"Exchange2007", "Exchange2007_SP1", "Exchange2009", "Exchange2010"}


class MalformedRequest(Exception):  # noqa: N818
    """The body is not a valid SOAP request. The text is the reason."""


class Call(NamedTuple):
    """One SOAP request. `operation` is the local name of the body's element.

    `impersonated` is the value in ConnectingSID, None without ExchangeImpersonation.
    """

    operation: str
    element: etree._Element
    version: str | None
    impersonated: str | None


def parse_xml(body: bytes) -> etree._Element:
    """Return the root element. Raises MalformedRequest if the XML is invalid or has a document type
    definition."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(body, parser)
    except etree.XMLSyntaxError as error:
        raise MalformedRequest(str(error)) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise MalformedRequest("DTD is prohibited in this XML document.")
    return root


def parse_call(body: bytes) -> Call:
    """Parse a request to Exchange.asmx. Raises MalformedRequest."""
    root = parse_xml(body)
    operation = next(root.iterfind(f"{SOAP}Body/*"), None)
    if root.tag != f"{SOAP}Envelope" or operation is None:
        raise MalformedRequest("The request has no SOAP body.")
    version = root.find(f"{SOAP}Header/{T}RequestServerVersion")
    sid = next(root.iterfind(f"{SOAP}Header/{T}ExchangeImpersonation/{T}ConnectingSID/*"), None)
    return Call(
        operation=etree.QName(operation).localname,
        element=operation,
        version=None if version is None else version.get("Version"),
        impersonated=None if sid is None else (sid.text or ""),
    )


class RequestContext(NamedTuple):
    """One request in progress.

    `actor` is the mailbox that it acts as: the impersonated one, or the account's own. It is None if an
    account without a mailbox does not impersonate.
    """

    call: Call
    account: str
    actor: Mailbox | None
    backend: str
    directory: Directory
    now: float

    @property
    def principal(self) -> str:
        """The address whose rights apply: that of the impersonated mailbox, else the account."""
        return self.actor.address if self.actor and self.call.impersonated is not None else self.account


class AccessDenied(Failure):
    """The requester has no rights to the folder."""


def target_mailbox(call: Call, actor: Mailbox | None, directory: Directory) -> Mailbox | None:
    """Return the mailbox that a request is about: that of the first folder or item in it, else `actor`."""
    element = next(call.element.iter(f"{T}DistinguishedFolderId", f"{T}FolderId", f"{T}ItemId"), None)
    if element is None:
        return actor
    try:
        is_distinguished = element.tag == f"{T}DistinguishedFolderId"
        named = (
            element.findtext(f"{T}Mailbox/{T}EmailAddress")
            if is_distinguished
            else _guid(element.get("Id", ""))
        )
    except Failure:
        named = None
    return directory.find(named or "") or actor


def find_folder(
    element: etree._Element, context: RequestContext, *, properties_only: bool = False
) -> tuple[Mailbox, Folder]:
    """Return the folder of a `t:FolderId` or `t:DistinguishedFolderId`.

    `properties_only`: the request reads the folder's properties, not its items. Raises Failure if there is no
    such folder or no right to it.
    """
    if element.tag == f"{T}DistinguishedFolderId":
        named = element.findtext(f"{T}Mailbox/{T}EmailAddress")
        mailbox = context.directory.find(named) if named else context.actor
        if mailbox is None:
            raise Failure("ErrorNonExistentMailbox" if named else "ErrorMissingEmailAddress")
        # "Handling delegation-related errors in EWS in Exchange": without a right to it, the folder is not found.
        name = element.get("Id", "")
        visible = context.directory.rights.may_see(context.principal, mailbox.address, name)
        code = "ErrorAccessDenied" if visible else "ErrorFolderNotFound"
        _check_access(mailbox, name, context, code, properties_only=properties_only)
        try:
            return mailbox, mailbox.distinguished(name)
        except KeyError:
            raise Failure("ErrorFolderNotFound") from None
    mailbox = _mailbox_of_id(element.get("Id", ""), context)
    folder = mailbox.folders.get(element.get("Id", ""))
    _check_access(mailbox, folder.distinguished if folder else None, context, properties_only=properties_only)
    if folder is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, folder


def find_item(element: etree._Element, context: RequestContext) -> tuple[Mailbox, Item]:
    """Return the item of a `t:ItemId`. Raises Failure if there is no such item or no right to it."""
    mailbox = _mailbox_of_id(element.get("Id", ""), context)
    item = mailbox.item(element.get("Id", ""))
    _check_access(mailbox, item.folder.distinguished if item else None, context)
    if item is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, item


def _mailbox_of_id(id_: str, context: RequestContext) -> Mailbox:
    mailbox = context.directory.find(_guid(id_))
    if mailbox is None:
        raise Failure("ErrorInvalidIdMalformed")
    return mailbox


def _guid(id_: str) -> str:
    return decode_id(id_)[4:40].decode("ascii", "replace")


def decode_id(id_: str) -> bytes:
    """Decode an id. Raises Failure if it is not base64."""
    try:
        return b64decode(id_, validate=True)
    except ValueError:
        raise Failure("ErrorInvalidIdMalformed") from None


def _check_access(
    mailbox: Mailbox,
    folder: str | None,
    context: RequestContext,
    code: str = "ErrorAccessDenied",
    *,
    properties_only: bool = False,
) -> None:
    rights = context.directory.rights
    allowed = rights.may_see if properties_only else rights.may_read
    if mailbox is not context.actor and not allowed(context.principal, mailbox.address, folder):
        raise AccessDenied(code)
