"""Several things in one request, and what comes back: an answer for each, or a page of what was found.

Sources: MS-OXWSCDATA (response messages, shapes), MS-OXWSSRCH (FindResponsePagingAttributes), "Paged search"
(learn.microsoft.com).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
from lxml import etree

from listener.errors import ExchangeError
from listener.ews import texts
from listener.ews.codes import Failure
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
from listener.ews.values import integer, utc
from listener.ews.xml import excerpt, local_name

_Key = TypeVar("_Key")
_T = TypeVar("_T")

MAX_PAGE = 1000
"""The most that one FindItem or FindFolder returns ("EWS throttling in Exchange", EWSFindCountLimit)."""


class Page(msgspec.Struct, Generic[_T], frozen=True):
    """A part of what a search found, in the server's order.

    `next_offset` is where the next page begins; it is None after the last. `total` is how many the whole search
    found, if the server said so.
    """

    found: tuple[_T, ...]
    next_offset: int | None = None
    total: int | None = None

    @property
    def includes_last(self) -> bool:
        return self.next_offset is None


# --- out


def shape(name: str, properties: Iterable[etree._Element]) -> etree._Element:
    """An ItemShape or FolderShape: ids, and these properties beside them."""
    element = build(name, build("t:BaseShape", "IdOnly"))
    if paths := list(properties):
        element.append(build("t:AdditionalProperties", *paths))
    return element


def field(uri: str) -> etree._Element:
    """The path to a property, such as `item:Subject`."""
    return build("t:FieldURI", FieldURI=uri)


def page_view(name: str, offset: int, size: int) -> etree._Element:
    """An IndexedPageItemView or IndexedPageFolderView. ValueError: no such page."""
    if offset < 0 or not 1 <= size <= MAX_PAGE:
        raise ValueError(f"a page holds 1 to {MAX_PAGE} and begins at 0 or later, not {size} at {offset}")
    return build(name, MaxEntriesReturned=str(size), Offset=str(offset), BasePoint="Beginning")


# --- in


def read_each(
    content: bytes, requested: Sequence[_Key], read: Callable[[etree._Element], _T | None]
) -> dict[_Key, _T | Failure]:
    """What is said of each thing that the request named, in that order.

    `read` makes a value of a response message; None means that there is none in it. Raises ExchangeError if the
    request as a whole came to nothing, and so did one that is answered by another number of messages.
    """
    messages = response_messages(parse(content))
    if len(messages) != len(requested):
        # They are matched by nothing but their order.
        failures = filter(None, map(message_failure, messages))
        raise next(map(ExchangeError, failures), unexpected(f"{len(messages)} answers for {len(requested)}"))
    return {
        key: message_failure(message) or read(message) or _no_value(message)
        for key, message in zip(requested, messages, strict=True)
    }


def _no_value(message: etree._Element) -> Failure:
    """Where a batch is stopped, what was not looked at any more is a Warning without a value."""
    code = texts.code(child_text(message, "ResponseCode"))
    return Failure(
        code="UnexpectedReply" if code in ("", "NoError") else code,
        text=excerpt(child_text(message, "MessageText")) or f"{local_name(message)} without a value",
        wait=back_off(message),
    )


def read_page(
    content: bytes, container: str, read: Callable[[etree._Element], _T | None], offset: int
) -> Page[_T]:
    """The page in the one RootFolder of a reply, in its `container`: Items or Folders.

    `offset` is that of the request. A server that says neither that more follows nor where has told all; one
    that says that more follows, but not where, goes on after what it sent.
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
    """A value of each. ExchangeError: one of them has no id."""
    values = []
    for part in elements:
        value = read(part)
        if value is None:
            raise unexpected(f"{local_name(part)} without an id")
        values.append(value)
    return tuple(values)


Property: TypeAlias = tuple[str, Callable[[etree._Element], Any]]
"""The field of a struct, and what makes a value for it of an element."""


def read_properties(
    element: etree._Element, own_id: str, properties: Mapping[str, Property]
) -> dict[str, Any] | None:
    """The fields of an item or folder; None if it has no id, which stands in its child `own_id`.

    `properties` are by the local names of their elements; others are passed over.
    """
    own = child(element, own_id)
    if own is None or read_id(own) is None:
        return None
    change_key = texts.identifier(own.get("ChangeKey"))
    fields: dict[str, Any] = {"element": local_name(element), "change_key": change_key}
    for part in element:
        known = properties.get(local_name(part))
        if known and known[0] not in fields:
            fields[known[0]] = known[1](part)
    return fields


def read_id(element: etree._Element) -> str | None:
    return texts.identifier(element.get("Id"))


def read_text(element: etree._Element) -> str | None:
    """At most TEXT_LENGTH characters."""
    return None if element.text is None else element.text[:TEXT_LENGTH]


def read_integer(element: etree._Element) -> int | None:
    return integer(text(element))


def read_time(element: etree._Element) -> str | None:
    """RFC 3339 in UTC, with as many fractional digits as were sent."""
    return utc(text(element)) or None


def read_flag(element: etree._Element) -> bool | None:
    return flag(text(element))


def flag(said: str | None) -> bool | None:
    """An xs:boolean; None if it is none. Some servers write it with a capital letter."""
    return _FLAGS.get(said.strip().lower()) if said else None


_FLAGS = {"true": True, "1": True, "false": False, "0": False}


TEXT_LENGTH = 1000
"""Characters of a name, subject or class. Exchange allows 255."""


def unexpected(what: str) -> ExchangeError:
    return ExchangeError(Failure(code="UnexpectedReply", text=excerpt(what)))
