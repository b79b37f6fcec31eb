"""Folders and items as elements, with the properties that a shape asks for."""

from typing import NamedTuple
from xml.sax.saxutils import escape

from lxml import etree

from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.replies import Failure, timestamp
from listener.simulator.requests import M, T


class Shape(NamedTuple):
    """Which properties are wanted: FieldURIs (None means all that there are) and MAPI property tags."""

    fields: frozenset[str] | None
    tags: tuple[tuple[str, str], ...]

    def wants(self, field: str) -> bool:
        return self.fields is None or field in self.fields


_FOLDER_DEFAULT = frozenset(
    ("folder:DisplayName", "folder:TotalCount", "folder:ChildFolderCount", "folder:UnreadCount")
)
_ITEM_DEFAULT = frozenset(("item:Subject", "message:IsRead", "item:DateTimeReceived"))


def read_shape(request: etree._Element, name: str) -> Shape:
    """The shape in the request's child of that name. Failure: there is none."""
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
    return Shape(fields, tags)


_FOLDER_ELEMENTS = {
    "IPF.Appointment": "CalendarFolder",
    "IPF.Contact": "ContactsFolder",
    "IPF.Task": "TasksFolder",
}


def folder_element(mailbox: Mailbox, folder: Folder, shape: Shape) -> str:
    """`t:Folder` or the like."""
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
        # PR_LAST_MODIFICATION_TIME: when the folder itself changed.
        "0x3008": timestamp(folder.modified),
        # PR_LOCAL_COMMIT_TIME_MAX and PR_DELETED_COUNT_TOTAL (MS-OXPROPS): whether anything changed in the folder.
        # The first does not move when an item goes, and like all times here it is in whole seconds.
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
    """`t:Message` or the like."""
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
