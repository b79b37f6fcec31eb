"""Format responses as Exchange does: envelopes, response messages, faults, notifications, folders and items.

Texts are those of Exchange where its documentation has them ("ResponseCode", learn.microsoft.com; MS-OXWSCDATA).
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from listener.simulator.mailstore import Event, Folder, Item, Mailbox

MESSAGES_NS = "http://schemas.microsoft.com/exchange/services/2006/messages"
TYPES_NS = "http://schemas.microsoft.com/exchange/services/2006/types"
ERRORS_NS = "http://schemas.microsoft.com/exchange/services/2006/errors"
SOAP_NS = "http://schemas.xmlsoap.org/soap/envelope/"
_M, _T = f"{{{MESSAGES_NS}}}", f"{{{TYPES_NS}}}"
DECLARATION = '<?xml version="1.0" encoding="utf-8"?>'

TEXTS = {
    "ErrorAccessDenied": "Access is denied. Check credentials and try again.",
    "ErrorExceededConnectionCount": "You have exceeded the available concurrent connections for your account.  Try "
    "again once your other requests have completed.",
    "ErrorExceededSubscriptionCount": "You have exceeded the available subscriptions for your account.  Remove "
    "unnecessary subscriptions and try your request again.",
    "ErrorFolderNotFound": "The specified folder could not be found in the store.",
    "ErrorImpersonateUserDenied": "The account does not have permission to impersonate the requested user.",
    "ErrorInvalidIdMalformed": "Id is malformed.",
    "ErrorInvalidOperation": "The operation is not supported.",
    "ErrorInvalidRequest": "The request is invalid.",
    "ErrorInvalidServerVersion": "The specified server version is invalid.",
    "ErrorInvalidSubscriptionRequest": "The subscription request is invalid.",
    "ErrorInvalidSyncStateData": "Synchronization state data is corrupt or otherwise invalid.",
    "ErrorItemNotFound": "The specified object was not found in the store.",
    "ErrorMissedNotificationEvents": "One or more events were missed; the subscription is no longer valid.",
    "ErrorMissingEmailAddress": "When making a request as an account that does not have a mailbox, you must specify "
    "the mailbox primary SMTP address for any distinguished folder Ids.",
    "ErrorNewEventStreamConnectionOpened": "Another connection has been opened for this subscription.",
    "ErrorNonExistentMailbox": "The SMTP address has no mailbox associated with it.",
    "ErrorServerBusy": "The server cannot service this request right now. Try again later.",
    "ErrorSubscriptionAccessDenied": "Only the creator of a subscription can use it.",
    "ErrorSubscriptionDelegateAccessNotSupported": "Subscriptions are not supported for delegate user access.",
    "ErrorSubscriptionNotFound": "The subscription has expired, or no such subscription exists on this server.",
    "ErrorSyncFolderNotFound": "The specified sync folder was not found.",
}

ERROR_CONTENT = {
    "GetFolder": "<m:Folders/>",
    "GetItem": "<m:Items/>",
    "SyncFolderItems": "<m:SyncState/><m:IncludesLastItemInRange>true</m:IncludesLastItemInRange>",
    "SyncFolderHierarchy": "<m:SyncState/><m:IncludesLastFolderInRange>true</m:IncludesLastFolderInRange>",
}
"""Content of an error response message in addition to the error, by operation."""


class Prefixes(NamedTuple):
    """Namespace prefixes of the messages and of the types."""

    m: str = "m"
    t: str = "t"


EXCHANGE = Prefixes()


class Failure(Exception):  # noqa: N818
    """An operation ends with this response code.

    `fault`: send a SOAP fault with HTTP 500 instead of a response message. `values` go to MessageXml.
    """

    def __init__(
        self, code: str, text: str | None = None, *, fault: bool = False, values: dict[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.text = text or TEXTS.get(code, "An internal server error occurred. The operation failed.")
        self.fault = fault
        self.values = values or {}


def timestamp(seconds: float) -> str:
    """Return an xs:dateTime in whole seconds, like the time stamps of events."""
    return _second(int(seconds))


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- envelopes -----------------------------------------------------------------------------------------------

_VERSION = (
    'MajorVersion="15" MinorVersion="2" MajorBuildNumber="2562" MinorBuildNumber="17" Version="V2017_07_11"'
)


def envelope(content: str) -> bytes:
    """Return the envelope of a response."""
    return (
        f'{DECLARATION}<s:Envelope xmlns:s="{SOAP_NS}"><s:Header>'
        f'<h:ServerVersionInfo {_VERSION} xmlns:h="{TYPES_NS}" xmlns="{TYPES_NS}" '
        f'xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
        f'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"/></s:Header>'
        f'<s:Body xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema">'
        f"{content}</s:Body></s:Envelope>"
    ).encode()


def stream_envelope(content: str, *, prefix: str = "", declaration: bool = False) -> bytes:
    """Return one envelope of a stream.

    Exchange writes default namespaces. With `prefix` the envelope has the form that proxies and other servers
    write.
    """
    xml = DECLARATION if declaration else ""
    if prefix:
        return (
            f'{xml}<{prefix}:Envelope xmlns:{prefix}="{SOAP_NS}"><{prefix}:Header>'
            f'<h:ServerVersionInfo xmlns:h="{TYPES_NS}" {_VERSION}/></{prefix}:Header>'
            f"<{prefix}:Body>{content}</{prefix}:Body></{prefix}:Envelope>"
        ).encode()
    return (
        f'{xml}<Envelope xmlns="{SOAP_NS}"><soap11:Header xmlns:soap11="{SOAP_NS}"><ServerVersionInfo '
        f'xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'{_VERSION} xmlns="{TYPES_NS}" /></soap11:Header><soap11:Body xmlns:soap11="{SOAP_NS}">{content}'
        "</soap11:Body></Envelope>"
    ).encode()


def response(operation: str, messages: Iterable[str], names: Prefixes = EXCHANGE) -> str:
    """Return `m:{operation}Response` with its response messages."""
    m, t = names.m, names.t
    return (
        f'<{m}:{operation}Response xmlns:{m}="{MESSAGES_NS}" xmlns:{t}="{TYPES_NS}"><{m}:ResponseMessages>'
        f"{''.join(messages)}</{m}:ResponseMessages></{m}:{operation}Response>"
    )


def success(operation: str, content: str = "", names: Prefixes = EXCHANGE, *, message_text: str = "") -> str:
    """Return a response message without error. `message_text` becomes its MessageText, unescaped."""
    m = names.m
    text = f"<{m}:MessageText>{message_text}</{m}:MessageText>" if message_text else ""
    return (
        f'<{m}:{operation}ResponseMessage ResponseClass="Success">{text}'
        f"<{m}:ResponseCode>NoError</{m}:ResponseCode>{content}</{m}:{operation}ResponseMessage>"
    )


def error(operation: str, failure: Failure, content: str = "", names: Prefixes = EXCHANGE) -> str:
    """Return a response message for a failure."""
    m = names.m
    values = _values(failure, names.t)
    return (
        f'<{m}:{operation}ResponseMessage ResponseClass="Error"><{m}:MessageText>{escape(failure.text)}'
        f"</{m}:MessageText><{m}:ResponseCode>{failure.code}</{m}:ResponseCode>"
        f"<{m}:DescriptiveLinkKey>0</{m}:DescriptiveLinkKey>"
        + (f"<{m}:MessageXml>{values}</{m}:MessageXml>" if values else "")
        + f"{content}</{m}:{operation}ResponseMessage>"
    )


def error_subscription_ids(ids: Iterable[str], names: Prefixes = EXCHANGE) -> str:
    """Return the ErrorSubscriptionIds element, or "" without ids."""
    m, t = names.m, names.t
    listed = "".join(f"<{t}:SubscriptionId>{escape(id_)}</{t}:SubscriptionId>" for id_ in ids)
    return f"<{m}:ErrorSubscriptionIds>{listed}</{m}:ErrorSubscriptionIds>" if listed else ""


def fault(failure: Failure, *, detail: bool = True) -> bytes:
    """Return a SOAP fault, which Exchange sends with HTTP 500 and without a SOAP header.

    Without `detail` the code is only in faultcode.
    """
    return (
        f'{DECLARATION}<s:Envelope xmlns:s="{SOAP_NS}"><s:Body><s:Fault>'
        f'<faultcode xmlns:a="{TYPES_NS}">a:{failure.code}</faultcode>'
        f'<faultstring xml:lang="en-US">{escape(failure.text)}</faultstring>'
        + (_detail(failure) if detail else "")
        + "</s:Fault></s:Body></s:Envelope>"
    ).encode()


def _detail(failure: Failure) -> str:
    values = _values(failure, "t")
    return (
        f'<detail><e:ResponseCode xmlns:e="{ERRORS_NS}">{failure.code}</e:ResponseCode>'
        f'<e:Message xmlns:e="{ERRORS_NS}">{escape(failure.text)}</e:Message>'
        + (f'<t:MessageXml xmlns:t="{TYPES_NS}">{values}</t:MessageXml>' if values else "")
        + "</detail>"
    )


def _values(failure: Failure, t: str) -> str:
    """Return the content of MessageXml."""
    return "".join(
        f"<{t}:Value Name={quoteattr(name)}>{escape(value)}</{t}:Value>"
        for name, value in failure.values.items()
    )


# -- notifications -------------------------------------------------------------------------------------------


def event(change: Event, t: str = "t") -> str:
    """Return one event element of a notification."""
    tag = "ItemId" if change.item_id else "FolderId"
    old = ""
    if change.old_id:
        old = (
            f'<{t}:Old{tag} Id="{change.old_id}" ChangeKey="{change.old_change_key}" />'
            f'<{t}:OldParentFolderId Id="{change.old_parent_folder_id}" '
            f'ChangeKey="{change.old_parent_change_key}" />'
        )
    elif change.unread_count is not None:
        old = f"<{t}:UnreadCount>{change.unread_count}</{t}:UnreadCount>"
    return (
        f"<{t}:{change.kind}><{t}:TimeStamp>{timestamp(change.time)}</{t}:TimeStamp>"
        f'<{t}:{tag} Id="{change.item_id or change.folder_id}" ChangeKey="{change.change_key}" />'
        f'<{t}:ParentFolderId Id="{change.parent_folder_id}" ChangeKey="{change.parent_change_key}" />'
        f"{old}</{t}:{change.kind}>"
    )


def notification(
    subscription_id: str, events: Sequence[Event], *, more: bool, names: Prefixes = EXCHANGE, tag_in: str = ""
) -> str:
    """Return `m:Notification` with at most 50 events.

    `more` is MoreEvents, written only if true, like a server without watermarks. The schema puts the element
    into the types' namespace; servers write it in the messages' namespace, the default of `tag_in` (a
    prefix).
    """
    t, tag = names.t, f"{tag_in or names.m}:Notification"
    return (
        f"<{tag}><{t}:SubscriptionId>{subscription_id}</{t}:SubscriptionId>"
        + (f"<{t}:MoreEvents>true</{t}:MoreEvents>" if more else "")
        + "".join([event(change, t) for change in events])
        + f"</{tag}>"
    )


def status_notification(subscription_id: str, *, names: Prefixes = EXCHANGE, tag_in: str = "") -> str:
    """Return `m:Notification` with only a StatusEvent."""
    t, tag = names.t, f"{tag_in or names.m}:Notification"
    return f"<{tag}><{t}:SubscriptionId>{subscription_id}</{t}:SubscriptionId><{t}:StatusEvent/></{tag}>"


class Shape(NamedTuple):
    """The requested properties: FieldURIs (None means all) and MAPI property tags."""

    fields: frozenset[str] | None
    tags: tuple[tuple[str, str], ...]

    def wants(self, field: str) -> bool:
        return self.fields is None or field in self.fields


_FOLDER_DEFAULT = frozenset(
    ("folder:DisplayName", "folder:TotalCount", "folder:ChildFolderCount", "folder:UnreadCount")
)
_ITEM_DEFAULT = frozenset(("item:Subject", "message:IsRead", "item:DateTimeReceived"))


def read_shape(request: etree._Element, name: str) -> Shape:
    """Return the response shape in the request's child element `name`. Raises Failure if there is none."""
    element = request.find(f"{_M}{name}")
    base = request.findtext(f"{_M}{name}/{_T}BaseShape")
    if element is None or base is None:
        raise Failure("ErrorSchemaValidation", "The request failed schema validation.", fault=True)
    if base == "AllProperties":
        fields = None
    else:
        named = {path.get("FieldURI", "") for path in element.iter(f"{_T}FieldURI")}
        standard = _FOLDER_DEFAULT if name == "FolderShape" else _ITEM_DEFAULT
        fields = frozenset(named | (standard if base == "Default" else frozenset()))
    tags = tuple(
        (path.get("PropertyTag", "").lower(), path.get("PropertyType", ""))
        for path in element.iter(f"{_T}ExtendedFieldURI")
    )
    return Shape(fields, tags)


_FOLDER_ELEMENTS = {
    "IPF.Appointment": "CalendarFolder",
    "IPF.Contact": "ContactsFolder",
    "IPF.Task": "TasksFolder",
}


def folder_element(mailbox: Mailbox, folder: Folder, shape: Shape) -> str:
    """Return `t:Folder`, or the element of a more specific folder class."""
    tag = _FOLDER_ELEMENTS.get(folder.folder_class, "Folder")
    parent = folder.parent or folder
    key = mailbox.change_key
    properties = [f'<t:FolderId Id="{folder.id}" ChangeKey="{key(folder)}"/>']
    if shape.wants("folder:ParentFolderId"):
        properties.append(f'<t:ParentFolderId Id="{parent.id}" ChangeKey="{key(parent)}"/>')
    if shape.wants("folder:FolderClass") and folder.folder_class:
        properties.append(f"<t:FolderClass>{folder.folder_class}</t:FolderClass>")
    if shape.wants("folder:DisplayName"):
        properties.append(f"<t:DisplayName>{escape(folder.name)}</t:DisplayName>")
    if shape.wants("folder:TotalCount"):
        properties.append(f"<t:TotalCount>{len(folder.items)}</t:TotalCount>")
    if shape.wants("folder:ChildFolderCount"):
        properties.append(f"<t:ChildFolderCount>{len(mailbox.children(folder))}</t:ChildFolderCount>")
    values = {
        # PR_LAST_MODIFICATION_TIME: the last change of the folder itself.
        "0x3008": timestamp(folder.modified),
        # PR_LOCAL_COMMIT_TIME_MAX and PR_DELETED_COUNT_TOTAL (MS-OXPROPS) show whether the content changed.
        # The first does not change when an item is removed. Like all times here, it is in whole seconds.
        "0x670a": timestamp(folder.committed),
        "0x670b": str(folder.deleted_total),
    }
    properties += [
        f'<t:ExtendedProperty><t:ExtendedFieldURI PropertyTag="{wanted}" PropertyType="{type_}"/>'
        f"<t:Value>{values[wanted]}</t:Value></t:ExtendedProperty>"
        for wanted, type_ in shape.tags
        if wanted in values
    ]
    if shape.wants("folder:DistinguishedFolderId") and folder.distinguished:
        properties.append(f"<t:DistinguishedFolderId>{folder.distinguished}</t:DistinguishedFolderId>")
    if shape.wants("folder:UnreadCount") and tag in ("Folder", "TasksFolder"):
        properties.append(f"<t:UnreadCount>{folder.unread}</t:UnreadCount>")
    return f"<t:{tag}>{''.join(properties)}</t:{tag}>"


_ITEM_ELEMENTS = {"IPM.Note": "Message", "IPM.Appointment": "CalendarItem", "IPM.Contact": "Contact"}


def item_element(mailbox: Mailbox, item: Item, shape: Shape) -> str:
    """Return `t:Message`, or the element of another item class."""
    tag = _ITEM_ELEMENTS.get(item.item_class, "Item")
    key = mailbox.change_key
    properties = [f'<t:ItemId Id="{item.id}" ChangeKey="{key(item)}"/>']
    if shape.wants("item:ParentFolderId"):
        properties.append(f'<t:ParentFolderId Id="{item.folder.id}" ChangeKey="{key(item.folder)}"/>')
    if shape.wants("item:ItemClass"):
        properties.append(f"<t:ItemClass>{item.item_class}</t:ItemClass>")
    if shape.wants("item:Subject"):
        properties.append(f"<t:Subject>{escape(item.subject)}</t:Subject>")
    if shape.wants("item:DateTimeReceived"):
        properties.append(f"<t:DateTimeReceived>{timestamp(item.received)}</t:DateTimeReceived>")
    if shape.wants("item:DateTimeCreated"):
        properties.append(f"<t:DateTimeCreated>{timestamp(item.created)}</t:DateTimeCreated>")
    if shape.wants("item:LastModifiedTime"):
        properties.append(f"<t:LastModifiedTime>{timestamp(item.modified)}</t:LastModifiedTime>")
    if tag == "Message":
        if shape.wants("message:From"):
            address = f"<t:EmailAddress>{escape(item.sender)}</t:EmailAddress>"
            properties.append(f"<t:From><t:Mailbox>{address}</t:Mailbox></t:From>")
        if shape.wants("message:IsRead"):
            properties.append(f"<t:IsRead>{str(item.read).lower()}</t:IsRead>")
    return f"<t:{tag}>{''.join(properties)}</t:{tag}>"
