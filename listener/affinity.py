"""Which mailboxes share one connection.

Mailboxes with the same EWS URL and the same GroupingInformation are served by the same back end, so their
subscriptions may hang on one GetStreamingEvents request. A group holds 200 at most; sorted by address, its first
mailbox is the anchor. Source: "Maintain affinity between a group of subscriptions and the Mailbox server in
Exchange", learn.microsoft.com.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    grouping_information: str
    mailboxes: tuple[str, ...]


def groups(
    placements: Iterable[Placement], size: int = LARGEST_GROUP, existing: Sequence[Group] = ()
) -> tuple[Group, ...]:
    """Sorts mailboxes into as few groups as `size` allows; the same input in any order gives the same groups.

    Those `existing` come first and keep their mailboxes; they are filled up before new ones are made.
    """
    found = list(existing)
    for (url, information), members in groupby(sorted(set(placements)), key=lambda place: place[:2]):
        label = information or urlsplit(url).hostname or url
        mailboxes = [place.mailbox for place in members]
        for at, group in enumerate(found):
            if (group.ews_url, group.grouping_information) == (url, information):
                room = max(0, size - len(group.mailboxes))
                together = sorted({*group.mailboxes, *mailboxes[:room]})
                found[at] = replace(group, mailboxes=tuple(together))
                mailboxes = mailboxes[room:]
        number = sum(group.name.rpartition("/")[0] == label for group in found)
        for count, start in enumerate(range(0, len(mailboxes), size), number + 1):
            found.append(Group(f"{label}/{count}", url, information, tuple(mailboxes[start : start + size])))
    return tuple(found)
