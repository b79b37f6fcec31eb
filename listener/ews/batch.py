"""Requests for several items or folders, and their results: one answer for each, or a page of a search.

Sources: MS-OXWSCDATA (response messages, shapes), MS-OXWSSRCH (FindResponsePagingAttributes), "Paged search"
(learn.microsoft.com).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
from lxml import etree

from listener.ews.codes import ExchangeError, Failure
from listener.ews.soap import (
    back_off,
    build,
    child,
    child_text,
    message_failure,
    only_message,
    parse,
    response_messages,
    text,
)
from listener.ews.values import identifier, integer, response_code, utc
from listener.ews.xml import excerpt, local_name

_Key = TypeVar("_Key")
_T = TypeVar("_T")

MAX_PAGE = 1000
"""Maximum results of one FindItem or FindFolder ("EWS throttling in Exchange", EWSFindCountLimit)."""


class Page(msgspec.Struct, Generic[_T], frozen=True):
    """A page of search results, in the server's order.

    `next_offset` is the offset of the next page, None after the last. `total` is the number of all results, if the
    server returned it.
    """

    found: tuple[_T, ...]
    next_offset: int | None = None
    total: int | None = None

    @property
    def includes_last(self) -> bool:
        return self.next_offset is None


# --- requests


def shape(name: str, properties: Iterable[etree._Element]) -> etree._Element:
    """Return an ItemShape or FolderShape with the id and these properties."""
    element = build(name, build("t:BaseShape", "IdOnly"))
    if paths := list(properties):
        element.append(build("t:AdditionalProperties", *paths))
    return element


def field(uri: str) -> etree._Element:
    """Return the path of a property, such as `item:Subject`."""
    return build("t:FieldURI", FieldURI=uri)


def page_view(name: str, offset: int, size: int) -> etree._Element:
    """Return an IndexedPageItemView or IndexedPageFolderView. Raises ValueError for an invalid offset or size."""
    if offset < 0 or not 1 <= size <= MAX_PAGE:
        raise ValueError(f"page size {size} is not 1 to {MAX_PAGE}, or offset {offset} is negative")
    return build(name, MaxEntriesReturned=str(size), Offset=str(offset), BasePoint="Beginning")


# --- responses


def read_each(
    content: bytes, requested: Sequence[_Key], read: Callable[[etree._Element], _T | None]
) -> dict[_Key, _T | Failure]:
    """Return the answer for each requested key, in the order of the request.

    `read` converts a response message to a value, None if it has none. Raises ExchangeError if the request as a whole
    failed, or if the number of messages differs.
    """
    messages = response_messages(parse(content))
    if len(messages) != len(requested):
        # Only the order relates the messages to the keys.
        failures = filter(None, map(message_failure, messages))
        raise next(map(ExchangeError, failures), unexpected(f"{len(messages)} answers for {len(requested)}"))
    return {
        key: message_failure(message) or read(message) or _no_value(message)
        for key, message in zip(requested, messages, strict=True)
    }


def _no_value(message: etree._Element) -> Failure:
    """Return the failure for a message without a value. A stopped batch has such Warnings for its remaining keys."""
    code = response_code(child_text(message, "ResponseCode"))
    return Failure(
        code="UnexpectedReply" if code in ("", "NoError") else code,
        text=excerpt(child_text(message, "MessageText")) or f"{local_name(message)} without a value",
        wait=back_off(message),
    )


def read_page(
    content: bytes, container: str, read: Callable[[etree._Element], _T | None], offset: int
) -> Page[_T]:
    """Return the page in the RootFolder of a reply. `container` is Items or Folders.

    `offset` is that of the request. Without IncludesLastItemInRange and IndexedPagingOffset, the page is the last
    one. If more results follow but IndexedPagingOffset is missing, the next page begins after the results of this
    one.
    """
    root = child(only_message(content), "RootFolder")
    if root is None:
        raise unexpected("a search without a RootFolder")
    values = child(root, container)
    found = read_all(() if values is None else values, read)
    last = flag(root.get("IncludesLastItemInRange"))
    total = integer(root.get("TotalItemsInView", ""))
    following = integer(root.get("IndexedPagingOffset", ""))
    if last or (last is None and following is None):
        return Page(found, None, total)
    if found:
        return Page(found, following if following and following > offset else offset + len(found), total)
    if total is not None and total > offset:
        raise unexpected(f"an empty page at {offset} of {total}")
    return Page(found, None, total)


def read_all(
    elements: Iterable[etree._Element], read: Callable[[etree._Element], _T | None]
) -> tuple[_T, ...]:
    """Return the value of each element. Raises ExchangeError if one has no id."""
    values = []
    for part in elements:
        value = read(part)
        if value is None:
            raise unexpected(f"{local_name(part)} without an id")
        values.append(value)
    return tuple(values)


Property: TypeAlias = tuple[str, Callable[[etree._Element], Any]]
"""The field of a struct, and the function that converts an element to its value."""


def read_properties(
    element: etree._Element, own_id: str, properties: Mapping[str, Property]
) -> dict[str, Any] | None:
    """Return the fields of an item or folder; None if it has no id. `own_id` is the element of the id.

    The keys of `properties` are local names of elements. Other elements are ignored.
    """
    own = child(element, own_id)
    if own is None or read_id(own) is None:
        return None
    change_key = identifier(own.get("ChangeKey"))
    fields: dict[str, Any] = {"element": local_name(element), "change_key": change_key}
    for part in element:
        known = properties.get(local_name(part))
        if known and known[0] not in fields:
            fields[known[0]] = known[1](part)
    return fields


def read_id(element: etree._Element) -> str | None:
    return identifier(element.get("Id"))


def read_text(element: etree._Element) -> str | None:
    """Return at most TEXT_LENGTH characters."""
    return None if element.text is None else element.text[:TEXT_LENGTH]


def read_integer(element: etree._Element) -> int | None:
    return integer(text(element))


def read_time(element: etree._Element) -> str | None:
    """Return RFC 3339 in UTC, with the fractional digits of the server."""
    return utc(text(element)) or None


def read_flag(element: etree._Element) -> bool | None:
    return flag(text(element))


def flag(text: str | None) -> bool | None:
    """Return an xs:boolean; None if it is invalid. Some servers write it with a capital letter."""
    return _FLAGS.get(text.strip().lower()) if text else None


_FLAGS = {"true": True, "1": True, "false": False, "0": False}


TEXT_LENGTH = 1000
"""Characters of a name, subject or class. Exchange allows 255."""


def unexpected(what: str) -> ExchangeError:
    return ExchangeError(Failure(code="UnexpectedReply", text=excerpt(what)))
