"""Operations on folders and items, on the mailboxes' real state.

Sources: MS-OXWSFOLD, MS-OXWSCORE, MS-OXWSSRCH, MS-OXWSCVTID.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from listener.simulator.directory import Directory
from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.replies import Failure, error, response, success, timestamp
from listener.simulator.requests import Call, M, T

_Thing = TypeVar("_Thing", Item, Folder)


class Session(NamedTuple):
    """One request being served. `actor` is the mailbox that it acts as: the impersonated one, or the account's
    own; None when an account without a mailbox impersonates nobody."""

    call: Call
    account: str
    actor: Mailbox | None
    backend: str
    directory: Directory
    now: float


# -- finding what an id means --------------------------------------------------------------------------------


def find_folder(element: etree._Element, session: Session) -> tuple[Mailbox, Folder]:
    """The folder of a `t:FolderId` or `t:DistinguishedFolderId`. Failure: there is none, or no right to it."""
    if element.tag == f"{T}DistinguishedFolderId":
        named = element.findtext(f"{T}Mailbox/{T}EmailAddress")
        mailbox = session.directory.find(named) if named else session.actor
        if mailbox is None:
            raise Failure("ErrorNonExistentMailbox" if named else "ErrorMissingEmailAddress")
        _check_access(mailbox, session)
        try:
            return mailbox, mailbox.distinguished(element.get("Id", ""))
        except KeyError:
            raise Failure("ErrorFolderNotFound") from None
    mailbox = _mailbox_of_id(element.get("Id", ""), session)
    folder = mailbox.folders.get(element.get("Id", ""))
    if folder is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, folder


def _find_item(element: etree._Element, session: Session) -> tuple[Mailbox, Item]:
    mailbox = _mailbox_of_id(element.get("Id", ""), session)
    item = mailbox.item(element.get("Id", ""))
    if item is None:
        raise Failure("ErrorItemNotFound")
    return mailbox, item


def _mailbox_of_id(id_: str, session: Session) -> Mailbox:
    mailbox = session.directory.find(_decode(id_)[4:40].decode("ascii", "replace"))
    if mailbox is None:
        raise Failure("ErrorInvalidIdMalformed")
    _check_access(mailbox, session)
    return mailbox


def _decode(id_: str) -> bytes:
    try:
        return b64decode(id_, validate=True)
    except ValueError:
        raise Failure("ErrorInvalidIdMalformed") from None


def _check_access(mailbox: Mailbox, session: Session) -> None:
    if mailbox is not session.actor:
        raise Failure("ErrorAccessDenied")


# -- operations ----------------------------------------------------------------------------------------------


def get_folder(session: Session) -> str:
    shape = _shape(session.call.element, "FolderShape")

    def one(element: etree._Element) -> str:
        mailbox, folder = find_folder(element, session)
        return f"<m:Folders>{_folder(mailbox, folder, shape)}</m:Folders>"

    return response("GetFolder", _each("GetFolder", session.call.element.iterfind(f"{M}FolderIds/*"), one))


def find_folders(session: Session) -> str:
    """FindFolder, Shallow or Deep; restrictions are not understood and refused."""
    request = session.call.element
    shape = _shape(request, "FolderShape")
    if request.find(f"{M}Restriction") is not None:
        raise Failure("ErrorUnsupportedQueryFilter", "The search filter is not supported.")

    def one(element: etree._Element) -> str:
        mailbox, folder = find_folder(element, session)
        deep = request.get("Traversal") == "Deep"
        found = mailbox.below(folder) if deep else mailbox.children(folder)
        page, paging = _page(found, request.find(f"{M}IndexedPageFolderView"))
        folders = "".join(_folder(mailbox, folder, shape) for folder in page)
        return f"<m:RootFolder {paging}><t:Folders>{folders}</t:Folders></m:RootFolder>"

    return response("FindFolder", _each("FindFolder", request.iterfind(f"{M}ParentFolderIds/*"), one))


def find_items(session: Session) -> str:
    """FindItem without restriction, newest first."""
    request = session.call.element
    shape = _shape(request, "ItemShape")
    if request.find(f"{M}Restriction") is not None:
        raise Failure("ErrorUnsupportedQueryFilter", "The search filter is not supported.")

    def one(element: etree._Element) -> str:
        mailbox, folder = find_folder(element, session)
        found = mailbox.latest(folder, len(folder.items))
        page, paging = _page(found, request.find(f"{M}IndexedPageItemView"))
        items = "".join(_item(mailbox, item, shape) for item in page)
        return f"<m:RootFolder {paging}><t:Items>{items}</t:Items></m:RootFolder>"

    return response("FindItem", _each("FindItem", request.iterfind(f"{M}ParentFolderIds/*"), one))


def get_item(session: Session) -> str:
    shape = _shape(session.call.element, "ItemShape")

    def one(element: etree._Element) -> str:
        mailbox, item = _find_item(element, session)
        return f"<m:Items>{_item(mailbox, item, shape)}</m:Items>"

    elements = session.call.element.iterfind(f"{M}ItemIds/*")
    return response("GetItem", _each("GetItem", elements, one, on_error="<m:Items/>"))


def convert_id(session: Session) -> str:
    """ConvertId from EwsId to EntryId, HexEntryId and EwsId."""
    target = session.call.element.get("DestinationFormat", "")

    def one(element: etree._Element) -> str:
        if element.get("Format") != "EwsId" or target not in ("EwsId", "EntryId", "HexEntryId"):
            raise Failure("ErrorUnsupportedTypeForConversion", "This type of id conversion is not supported.")
        raw = _decode(element.get("Id", ""))
        if len(raw) not in (89, 113):
            raise Failure("ErrorInvalidIdMalformed")
        entry = raw[43:]
        converted = {"EwsId": element.get("Id", ""), "HexEntryId": entry.hex().upper()}.get(target)
        return (
            f'<m:AlternateId xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="t:AlternateIdType" '
            f'Format="{target}" Id="{converted or b64encode(entry).decode()}" '
            f"Mailbox={quoteattr(element.get('Mailbox', ''))}/>"
        )

    return response("ConvertId", _each("ConvertId", session.call.element.iterfind(f"{M}SourceIds/*"), one))


OPERATIONS: Mapping[str, Callable[[Session], str]] = {
    "GetFolder": get_folder,
    "FindFolder": find_folders,
    "FindItem": find_items,
    "GetItem": get_item,
    "ConvertId": convert_id,
}


def _each(
    operation: str,
    elements: Iterator[etree._Element],
    one: Callable[[etree._Element], str],
    on_error: str = "",
) -> Iterator[str]:
    """One response message for each element; a failure stays with its own. Failure: a fault ends it all."""
    for element in elements:
        try:
            content = one(element)
        except Failure as failure:
            if failure.fault:
                raise
            yield error(operation, failure, on_error)
        else:
            yield success(operation, content)


def _page(things: list[_Thing], view: etree._Element | None) -> tuple[list[_Thing], str]:
    """The part that is asked for, and the attributes that say where it stands (FindResponsePagingAttributes)."""
    offset, size = _number(view, "Offset", 0), _number(view, "MaxEntriesReturned", 1000)
    if view is not None and view.get("BasePoint") == "End":
        offset = max(0, len(things) - offset - size)
    page = things[offset : offset + min(size, 1000)]
    last = offset + len(page) >= len(things)
    return page, (
        f'IndexedPagingOffset="{offset + len(page)}" TotalItemsInView="{len(things)}" '
        f'IncludesLastItemInRange="{str(last).lower()}"'
    )


def _number(view: etree._Element | None, attribute: str, default: int) -> int:
    value = None if view is None else view.get(attribute)
    if value is None:
        return default
    if not value.isdecimal():
        raise Failure("ErrorSchemaValidation", f"The '{attribute}' attribute is invalid.", fault=True)
    return int(value)


# -- shapes --------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """Which properties are wanted: FieldURIs (None means all that there are) and MAPI property tags."""

    fields: frozenset[str] | None
    tags: tuple[tuple[str, str], ...]

    def wants(self, field: str) -> bool:
        return self.fields is None or field in self.fields


_FOLDER_DEFAULT = frozenset(
    ("folder:DisplayName", "folder:TotalCount", "folder:ChildFolderCount", "folder:UnreadCount")
)
_ITEM_DEFAULT = frozenset(("item:Subject", "message:IsRead", "item:DateTimeReceived"))


def _shape(request: etree._Element, name: str) -> _Shape:
    element = request.find(f"{M}{name}")
    base = request.findtext(f"{M}{name}/{T}BaseShape")
    if element is None or base is None:
        raise Failure("ErrorSchemaValidation", "The request failed schema validation.", fault=True)
    if base == "AllProperties":
        fields = None
    else:
        named = {path.get("FieldURI", "") for path in element.iter(f"{T}FieldURI")}
        standard = _FOLDER_DEFAULT if name == "FolderShape" else _ITEM_DEFAULT
        fields = frozenset(named | (standard if base == "Default" else frozenset()))
    tags = tuple(
        (path.get("PropertyTag", "").lower(), path.get("PropertyType", ""))
        for path in element.iter(f"{T}ExtendedFieldURI")
    )
    return _Shape(fields, tags)


_FOLDER_ELEMENTS = {
    "IPF.Appointment": "CalendarFolder",
    "IPF.Contact": "ContactsFolder",
    "IPF.Task": "TasksFolder",
}


def _folder(mailbox: Mailbox, folder: Folder, shape: _Shape) -> str:
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
        # PR_LOCAL_COMMIT_TIME_MAX and PR_DELETED_COUNT_TOTAL (MS-OXPROPS): whether anything changed in the folder.
        "0x670a": timestamp(folder.modified),
        "0x670b": str(len(folder.deleted)),
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


def _item(mailbox: Mailbox, item: Item, shape: _Shape) -> str:
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
        properties.append(f"<t:DateTimeReceived>{timestamp(item.created)}</t:DateTimeReceived>")
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
