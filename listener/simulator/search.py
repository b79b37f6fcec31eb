"""Which of the things that were found are wanted: restriction, order and page (MS-OXWSSRCH)."""

import operator
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from lxml import etree

from listener.simulator.mailstore import Folder, Item
from listener.simulator.replies import Failure
from listener.simulator.requests import M, T

_Thing = TypeVar("_Thing", Item, Folder)
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
    """Failure: the request has one."""
    if request.find(f"{M}Restriction") is not None:
        raise _unsupported()


def restricted(items: Iterable[Item], request: etree._Element) -> list[Item]:
    """Those that meet the request's Restriction: comparisons of an item's times, and `And` of such ones. Failure: it
    says something else."""
    expressions = request.findall(f"{M}Restriction/*")
    tests = [test for expression in expressions for test in _tests(expression)]
    return [item for item in items if all(test(item) for test in tests)]


def _tests(expression: etree._Element) -> list[Callable[[Item], bool]]:
    if expression.tag == f"{T}And":
        return [test for part in expression for test in _tests(part)]
    compare = _COMPARISONS.get(str(expression.tag))
    constant = expression.find(f"{T}FieldURIOrConstant/{T}Constant")
    if compare is None or constant is None:
        raise _unsupported()
    time = _time_of(expression, "ErrorUnsupportedPathForQuery")
    bound = _seconds(constant.get("Value", ""))
    return [lambda item: compare(time(item), bound)]


def ordered(items: list[Item], request: etree._Element) -> list[Item]:
    """As the request's SortOrder wants them; without one as they are. Failure: not by that property."""
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


def page(things: list[_Thing], view: etree._Element | None) -> tuple[list[_Thing], str]:
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
