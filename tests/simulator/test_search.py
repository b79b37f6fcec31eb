"""FindItem with Restriction and SortOrder."""

import pytest
from lxml import etree

from tests.simulator.client import NAMES, NOON, Client, T, code, root
from tests.simulator.test_operations import find_item, named
from tests.xsd import validate, xsd_available

MODIFIED = "item:LastModifiedTime"


def comparison(operator: str, value: str, field: str = MODIFIED) -> str:
    return (
        f'<t:{operator}><t:FieldURI FieldURI="{field}"/><t:FieldURIOrConstant><t:Constant Value="{value}"/>'
        f"</t:FieldURIOrConstant></t:{operator}>"
    )


def where(expression: str) -> str:
    return f"<m:Restriction>{expression}</m:Restriction>"


def by(*orders: tuple[str, str]) -> str:
    fields = "".join(
        f'<t:FieldOrder Order="{order}"><t:FieldURI FieldURI="{field}"/></t:FieldOrder>'
        for field, order in orders
    )
    return f"<m:SortOrder>{fields}</m:SortOrder>"


def client_with_mail() -> Client:
    """Return a client whose first mailbox has four emails.

    Their subjects are `0` to `3`, one second apart from NOON + 0.5. Then `1` was changed.
    """
    client = Client()
    alice = client.mailboxes[0]
    for number in range(4):
        alice.deliver(str(number), "bob@fabrikam.example", NOON + number + 0.5)
    alice.edit(alice.latest(alice.distinguished("inbox"), 3)[-1], "1", NOON + 60.25)
    return client


def find_subjects(client: Client, more: str) -> str:
    """Return the subjects of the found items, or the response code."""
    alice = client.mailboxes[0]
    reply = client.post(find_item(named("inbox"), more), impersonate=alice.address)
    if code(reply) != "NoError":
        return code(reply)
    items = alice.distinguished("inbox").items
    return " ".join(items[element.get("Id") or ""].subject for element in root(reply).iter(f"{{{T}}}ItemId"))


@pytest.mark.parametrize(
    ("expression", "subjects"),
    [
        # NOON is 22:13:20. The store keeps fractions of a second, but responses have whole seconds.
        (comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22Z"), "3 2 1"),
        (comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22.5Z"), "3 2 1"),
        (comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22.5000001+00:00"), "3 2 1"),
        (comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22.6"), "3 1"),
        (comparison("IsGreaterThanOrEqualTo", "2023-11-14T23:14:00+01:00"), "1"),
        (comparison("IsGreaterThan", "2023-11-14T22:13:22.5Z"), "3 1"),
        (comparison("IsLessThan", "2023-11-14T22:13:22.5Z"), "0"),
        (comparison("IsLessThanOrEqualTo", "2023-11-14T22:13:22.5Z"), "2 0"),
        (comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22Z", "item:DateTimeReceived"), "3 2"),
        (comparison("IsGreaterThanOrEqualTo", "2024-01-01T00:00:00Z"), ""),
        (
            "<t:And>"
            + comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:21Z")
            + comparison("IsLessThan", "2023-11-14T22:14:00Z")
            + "</t:And>",
            "3 2",
        ),
    ],
)  # fmt: skip
def test_restriction_by_time(expression: str, subjects: str) -> None:
    assert find_subjects(client_with_mail(), where(expression)) == subjects


def test_sort_order() -> None:
    client = client_with_mail()
    assert find_subjects(client, "") == "3 2 1 0"
    assert find_subjects(client, by((MODIFIED, "Ascending"))) == "0 2 3 1"
    assert find_subjects(client, by((MODIFIED, "Descending"))) == "1 3 2 0"
    assert (
        find_subjects(client, by(("item:DateTimeReceived", "Ascending"), (MODIFIED, "Descending")))
        == "0 1 2 3"
    )
    alice = client.mailboxes[0]
    for item in alice.distinguished("inbox").items.values():
        alice.edit(item, item.subject, NOON + 100)
    assert (
        find_subjects(client, by((MODIFIED, "Descending"), ("item:DateTimeReceived", "Ascending")))
        == "0 1 2 3"
    )


def test_restriction_sort_order_and_paging_combined() -> None:
    view = '<m:IndexedPageItemView MaxEntriesReturned="1" Offset="1" BasePoint="Beginning"/>'
    since = where(comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22Z"))
    client = client_with_mail()
    assert find_subjects(client, view + since + by((MODIFIED, "Ascending"))) == "3"


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        (where(comparison("IsGreaterThanOrEqualTo", "yesterday")), "ErrorInvalidValueForProperty"),
        (
            where(comparison("IsGreaterThanOrEqualTo", "2024-01-01T00:00:00Z", "item:Size")),
            "ErrorUnsupportedPathForQuery",
        ),
        (where(f"<t:Not>{comparison('IsLessThan', '2024-01-01T00:00:00Z')}</t:Not>"), "ErrorUnsupportedQueryFilter"),
        (by(("item:Size", "Ascending")), "ErrorUnsupportedPathForSortGroup"),
    ],
)  # fmt: skip
def test_unsupported_queries_are_refused(more: str, refusal: str) -> None:
    assert find_subjects(client_with_mail(), more) == refusal


@xsd_available
def test_requests_and_replies_are_valid() -> None:
    since = where(comparison("IsGreaterThanOrEqualTo", "2023-11-14T22:13:22Z"))
    body = find_item(named("inbox"), since + by((MODIFIED, "Descending")))
    validate(etree.fromstring(f'<x xmlns:m="{NAMES["m"]}" xmlns:t="{T}">{body}</x>')[0])
    client = client_with_mail()
    reply = root(client.post(body, impersonate=client.mailboxes[0].address)).find("s:Body/*", NAMES)
    assert reply is not None
    validate(reply)
