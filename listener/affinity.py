"""Which mailboxes share one connection.

Mailboxes with the same EWS URL and the same GroupingInformation are served by the same back end, so their
subscriptions may hang on one GetStreamingEvents request. A group holds 200 at most; sorted by address, its first
mailbox is the anchor. Source: "Maintain affinity between a group of subscriptions and the Mailbox server in
Exchange", learn.microsoft.com.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple
from urllib.parse import urlsplit

LARGEST_GROUP = 200


class Placement(NamedTuple):
    """Where Autodiscover, or the configuration, says that a mailbox lives."""

    ews_url: str
    grouping_information: str
    mailbox: str


@dataclass(frozen=True, slots=True)
class Group:
    """Mailboxes that share one connection, sorted by address: the first is the anchor.

    `name` is what logs call the group: GroupingInformation (or the server's name where there is none) and a
    number.
    """

    name: str
    ews_url: str
    mailboxes: tuple[str, ...]


def groups(placements: Iterable[Placement], size: int = LARGEST_GROUP) -> tuple[Group, ...]:
    """Sorts mailboxes into as few groups as `size` allows. The same input in any order gives the same groups."""
    found: list[Group] = []
    taken: dict[str, int] = {}
    for (url, information), members in groupby(sorted(set(placements)), key=lambda place: place[:2]):
        mailboxes = [place.mailbox for place in members]
        label = information or urlsplit(url).hostname or url
        for start in range(0, len(mailboxes), size):
            taken[label] = taken.get(label, 0) + 1
            found.append(Group(f"{label}/{taken[label]}", url, tuple(mailboxes[start : start + size])))
    return tuple(found)
