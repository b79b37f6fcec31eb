"""The EWS operations on folders and items.

Sources: MS-OXWSFOLD, MS-OXWSCORE, MS-OXWSSRCH, MS-OXWSCVTID, MS-OXWSSYNC, MS-OXWSDLIST.
"""

import operator
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeVar
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from listener.simulator import sync
from listener.simulator.directory import Member, member_type
from listener.simulator.mailstore import Folder, Item, Mailbox
from listener.simulator.requests import M, RequestContext, T, decode_id, find_folder, find_item
from listener.simulator.responses import (
    ERROR_CONTENT,
    Failure,
    error,
    folder_element,
    item_element,
    read_shape,
    response,
    success,
)

MAX_CHANGES = 512


def get_folder(context: RequestContext) -> str:
    shape = read_shape(context.call.element, "FolderShape")

    def one(element: etree._Element) -> str:
        mailbox, folder = find_folder(element, context, properties_only=True)
        return f"<m:Folders>{folder_element(mailbox, folder, shape)}</m:Folders>"

    return response("GetFolder", _each("GetFolder", context.call.element.iterfind(f"{M}FolderIds/*"), one))


def find_folders(context: RequestContext) -> str:
    """FindFolder, Shallow or Deep. Restrictions are refused."""
    request = context.call.element
    shape = read_shape(request, "FolderShape")
    refuse_restriction(request)

    def one(element: etree._Element) -> str:
        mailbox, folder = find_folder(element, context)
        deep = request.get("Traversal") == "Deep"
        found = mailbox.below(folder) if deep else mailbox.children(folder)
        part, paging = page(found, request.find(f"{M}IndexedPageFolderView"))
        folders = "".join(folder_element(mailbox, folder, shape) for folder in part)
        return f"<m:RootFolder {paging}><t:Folders>{folders}</t:Folders></m:RootFolder>"

    return response("FindFolder", _each("FindFolder", request.iterfind(f"{M}ParentFolderIds/*"), one))


def find_items(context: RequestContext) -> str:
    """FindItem. Without SortOrder the newest items come first."""
    request = context.call.element
    shape = read_shape(request, "ItemShape")

    def one(element: etree._Element) -> str:
        mailbox, folder = find_folder(element, context)
        found = ordered(restricted(mailbox.latest(folder, len(folder.items)), request), request)
        part, paging = page(found, request.find(f"{M}IndexedPageItemView"))
        items = "".join(item_element(mailbox, item, shape) for item in part)
        return f"<m:RootFolder {paging}><t:Items>{items}</t:Items></m:RootFolder>"

    return response("FindItem", _each("FindItem", request.iterfind(f"{M}ParentFolderIds/*"), one))


def get_item(context: RequestContext) -> str:
    shape = read_shape(context.call.element, "ItemShape")

    def one(element: etree._Element) -> str:
        mailbox, item = find_item(element, context)
        return f"<m:Items>{item_element(mailbox, item, shape)}</m:Items>"

    elements = context.call.element.iterfind(f"{M}ItemIds/*")
    return response("GetItem", _each("GetItem", elements, one))


def convert_id(context: RequestContext) -> str:
    """ConvertId from EwsId to EntryId, HexEntryId and EwsId."""
    target = context.call.element.get("DestinationFormat", "")

    def one(element: etree._Element) -> str:
        if element.get("Format") != "EwsId" or target not in ("EwsId", "EntryId", "HexEntryId"):
            raise Failure("ErrorUnsupportedTypeForConversion", "This type of id conversion is not supported.")
        raw = decode_id(element.get("Id", ""))
        if len(raw) not in (89, 113):
            raise Failure("ErrorInvalidIdMalformed")
        entry = raw[43:]
        converted = {"EwsId": element.get("Id", ""), "HexEntryId": entry.hex().upper()}.get(target)
        return (
            f'<m:AlternateId xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="t:AlternateIdType" '
            f'Format="{target}" Id="{converted or b64encode(entry).decode()}" '
            f"Mailbox={quoteattr(element.get('Mailbox', ''))}/>"
        )

    return response("ConvertId", _each("ConvertId", context.call.element.iterfind(f"{M}SourceIds/*"), one))


def expand_dl(context: RequestContext) -> str:
    """ExpandDL of a distribution group, one level deep."""
    address = context.call.element.findtext(f"{M}Mailbox/{T}EmailAddress", "").strip().lower()
    found = context.directory.groups.get(address)
    if found is None:
        raise Failure("ErrorNameResolutionNoResults", "No results were found.")

    def format_one(member: Member) -> str:
        directory = context.directory
        mailbox = directory.find(member.address)
        kind = member_type(member, directory.groups, directory.mailboxes)
        name = mailbox.name if mailbox else member.address.partition("@")[0]
        return (
            f"<t:Mailbox><t:Name>{escape(name)}</t:Name><t:EmailAddress>{escape(member.address)}</t:EmailAddress>"
            f"<t:RoutingType>SMTP</t:RoutingType><t:MailboxType>{kind}</t:MailboxType></t:Mailbox>"
        )

    elements = "".join(map(format_one, found))
    paging = f'TotalItemsInView="{len(found)}" IncludesLastItemInRange="true"'
    content = f"<m:DLExpansion {paging}>{elements}</m:DLExpansion>"
    return response("ExpandDL", [success("ExpandDL", content)])


# -- synchronization -----------------------------------------------------------------------------------------


def sync_folder_items(context: RequestContext) -> str:
    request = context.call.element
    shape = read_shape(request, "ItemShape")
    text = request.findtext(f"{M}MaxChangesReturned", "")
    limit = int(text) if text.isdecimal() else 0
    if not 1 <= limit <= MAX_CHANGES:
        raise Failure("ErrorSchemaValidation", "The 'MaxChangesReturned' element is invalid.", fault=True)
    named = request.find(f"{M}SyncFolderId/*")
    if named is None:
        raise Failure("ErrorSchemaValidation", "The 'SyncFolderId' element is missing.", fault=True)
    mailbox, folder = _sync_folder(named, context)
    state = _state(request, sync.ItemsState)
    ignored = {element.get("Id") or "" for element in request.iterfind(f"{M}Ignore/*")}
    changes, after, last = sync.item_changes(mailbox, folder, state, limit, ignored)

    def format_one(change: sync.ItemChange) -> str:
        if change.item is None:
            return f'<t:ItemId Id="{change.item_id}"/>'
        if change.kind == "ReadFlagChange":
            key, read = mailbox.change_key(change.item), str(change.item.read).lower()
            return f'<t:ItemId Id="{change.item_id}" ChangeKey="{key}"/><t:IsRead>{read}</t:IsRead>'
        return item_element(mailbox, change.item, shape)

    elements = [f"<t:{change.kind}>{format_one(change)}</t:{change.kind}>" for change in changes]
    return _sync_response("SyncFolderItems", after, "IncludesLastItemInRange", last, elements)


def sync_folder_hierarchy(context: RequestContext) -> str:
    """SyncFolderHierarchy, all changes in one response. Without SyncFolderId it covers the whole mailbox."""
    request = context.call.element
    shape = read_shape(request, "FolderShape")
    named = request.find(f"{M}SyncFolderId/*")
    root: Folder | None = None
    if named is not None:
        mailbox, root = _sync_folder(named, context)
    elif context.actor is not None:
        mailbox = context.actor
    else:
        raise Failure("ErrorMissingEmailAddress")
    changes, after = sync.folder_changes(mailbox, root, _state(request, sync.FoldersState))

    def format_one(change: sync.FolderChange) -> str:
        if change.folder is None:
            return f'<t:FolderId Id="{change.folder_id}"/>'
        return folder_element(mailbox, change.folder, shape)

    elements = [f"<t:{change.kind}>{format_one(change)}</t:{change.kind}>" for change in changes]
    return _sync_response("SyncFolderHierarchy", after, "IncludesLastFolderInRange", True, elements)


def _sync_folder(element: etree._Element, context: RequestContext) -> tuple[Mailbox, Folder]:
    try:
        return find_folder(element, context)
    except Failure as failure:
        if failure.code in ("ErrorItemNotFound", "ErrorFolderNotFound"):
            # "ResponseCode" (learn.microsoft.com)
            raise Failure("ErrorSyncFolderNotFound") from None
        raise


def _state(request: etree._Element, kind: type[sync.State]) -> sync.State | None:
    text = request.findtext(f"{M}SyncState", "").strip()
    return sync.decode(text, kind) if text else None


def _sync_response(
    operation: str, state: sync.ItemsState | sync.FoldersState, last_tag: str, last: bool, changes: list[str]
) -> str:
    content = (
        f"<m:SyncState>{sync.encode(state)}</m:SyncState><m:{last_tag}>{str(last).lower()}</m:{last_tag}>"
        f"<m:Changes>{''.join(changes)}</m:Changes>"
    )
    return response(operation, [success(operation, content)])


SYNC_OPERATIONS: Mapping[str, Callable[[RequestContext], str]] = {
    "SyncFolderItems": sync_folder_items,
    "SyncFolderHierarchy": sync_folder_hierarchy,
}
OPERATIONS: Mapping[str, Callable[[RequestContext], str]] = {
    "GetFolder": get_folder,
    "FindFolder": find_folders,
    "FindItem": find_items,
    "GetItem": get_item,
    "ConvertId": convert_id,
    "ExpandDL": expand_dl,
    **SYNC_OPERATIONS,
}


def _each(
    operation: str,
    elements: Iterator[etree._Element],
    one: Callable[[etree._Element], str],
) -> Iterator[str]:
    """Yield one response message per element. A failure affects only its own element, except a SOAP fault
    (raised)."""
    for element in elements:
        try:
            content = one(element)
        except Failure as failure:
            if failure.fault:
                raise
            yield error(operation, failure, ERROR_CONTENT.get(operation, ""))
        else:
            yield success(operation, content)


_Object = TypeVar("_Object", Item, Folder)
_TIMES: dict[str, Callable[[Item], float]] = {
    "item:LastModifiedTime": lambda item: item.modified,
    "item:DateTimeReceived": lambda item: item.received,
    "item:DateTimeCreated": lambda item: item.created,
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    f"{T}IsGreaterThan": operator.gt,
    f"{T}IsGreaterThanOrEqualTo": operator.ge,
    f"{T}IsLessThan": operator.lt,
    f"{T}IsLessThanOrEqualTo": operator.le,
}


def refuse_restriction(request: etree._Element) -> None:
    """Raise Failure if the request has a Restriction."""
    if request.find(f"{M}Restriction") is not None:
        raise _unsupported()


def restricted(items: Iterable[Item], request: etree._Element) -> list[Item]:
    """Return the items that match the request's Restriction: comparisons of an item's times, and `And` of
    them.

    Raises Failure for other expressions.
    """
    expressions = request.findall(f"{M}Restriction/*")
    predicates = [predicate for expression in expressions for predicate in _predicates(expression)]
    return [item for item in items if all(predicate(item) for predicate in predicates)]


def _predicates(expression: etree._Element) -> list[Callable[[Item], bool]]:
    if expression.tag == f"{T}And":
        return [predicate for part in expression for predicate in _predicates(part)]
    compare = _COMPARISONS.get(str(expression.tag))
    constant = expression.find(f"{T}FieldURIOrConstant/{T}Constant")
    if compare is None or constant is None:
        raise _unsupported()
    time = _time_of(expression, "ErrorUnsupportedPathForQuery")
    bound = _seconds(constant.get("Value", ""))
    return [lambda item: compare(time(item), bound)]


def ordered(items: list[Item], request: etree._Element) -> list[Item]:
    """Return the items in the request's SortOrder. Raises Failure for an unsupported property."""
    for order in reversed(request.findall(f"{M}SortOrder/{T}FieldOrder")):
        time = _time_of(order, "ErrorUnsupportedPathForSortGroup")
        items = sorted(items, key=time, reverse=order.get("Order") == "Descending")
    return items


def _time_of(element: etree._Element, refusal: str) -> Callable[[Item], float]:
    path = element.find(f"{T}FieldURI")
    time = _TIMES.get("" if path is None else path.get("FieldURI", ""))
    if time is None:
        raise Failure(refusal, "The property cannot be used here.")
    return time


def _seconds(value: str) -> float:
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise Failure("ErrorInvalidValueForProperty", "The value is no xs:dateTime.") from None
    return time.replace(tzinfo=time.tzinfo or UTC).timestamp()


def _unsupported() -> Failure:
    return Failure("ErrorUnsupportedQueryFilter", "The search filter is not supported.")


def page(objects: list[_Object], view: etree._Element | None) -> tuple[list[_Object], str]:
    """Return the requested page, and its paging attributes (FindResponsePagingAttributes)."""
    offset, size = _number(view, "Offset", 0), _number(view, "MaxEntriesReturned", 1000)
    if view is not None and view.get("BasePoint") == "End":
        offset = max(0, len(objects) - offset - size)
    page = objects[offset : offset + min(size, 1000)]
    last = offset + len(page) >= len(objects)
    return page, (
        f'IndexedPagingOffset="{offset + len(page)}" TotalItemsInView="{len(objects)}" '
        f'IncludesLastItemInRange="{str(last).lower()}"'
    )


def _number(view: etree._Element | None, attribute: str, default: int) -> int:
    value = None if view is None else view.get(attribute)
    if value is None:
        return default
    if not value.isdecimal():
        raise Failure("ErrorSchemaValidation", f"The '{attribute}' attribute is invalid.", fault=True)
    return int(value)
