"""Sorts mailboxes into affinity groups.

The same back end serves mailboxes with the same EWS URL and the same GroupingInformation, so one GetStreamingEvents
request can carry their subscriptions. A group has at most 200 mailboxes. Its first mailbox by address is the anchor.
Source: "Maintain affinity between a group of subscriptions and the Mailbox server in Exchange", learn.microsoft.com.

A stream is opened in the name of the anchor if the anchor is impersonated, and in the account's own name otherwise.
So mailboxes of different access types do not share a group.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from listener.access import AccessKind
from listener.ews.urls import host_of
from listener.placement import AffinityKey, Placement

MAX_GROUP_SIZE = 200


@dataclass(frozen=True, slots=True)
class Group:
    """Mailboxes that share one connection, sorted by address: the first is the anchor.

    `name` is GroupingInformation (or the hostname if there is none) and a number. Mailboxes that were split off form
    a `closed` group, which no other mailbox joins.
    """

    name: str
    ews_url: str
    grouping_information: str
    mailboxes: tuple[str, ...]
    closed: bool = False
    access: AccessKind = "impersonation"

    @property
    def affinity_key(self) -> AffinityKey:
        """What all mailboxes of the group have in common."""
        return self.ews_url, self.grouping_information, self.access


def groups(
    placements: Iterable[Placement], size: int = MAX_GROUP_SIZE, existing: Sequence[Group] = ()
) -> tuple[Group, ...]:
    """Sort mailboxes into as few groups as `size` allows. The order of the placements does not matter.

    Existing groups come first and are filled before new ones are made. A mailbox stays in its existing group if its
    placement belongs there, and leaves it otherwise.
    """
    wanted = {placement.mailbox: placement for placement in sorted(set(placements), reverse=True)}
    homes = {mailbox: group.affinity_key for group in existing for mailbox in group.mailboxes}
    moved = [m for m, placement in wanted.items() if m in homes and homes[m] != placement.affinity_key]
    found = list(without(existing, moved) if moved else existing)
    new = sorted(
        (placement for mailbox, placement in wanted.items() if homes.get(mailbox) != placement.affinity_key),
        key=lambda placement: (placement.affinity_key, placement.mailbox),
    )
    for key, members in groupby(new, key=lambda placement: placement.affinity_key):
        mailboxes = [placement.mailbox for placement in members]
        for index, group in enumerate(found):
            if group.affinity_key == key and not group.closed:
                room = max(0, size - len(group.mailboxes))
                together = sorted({*group.mailboxes, *mailboxes[:room]})
                found[index] = replace(group, mailboxes=tuple(together))
                mailboxes = mailboxes[room:]
        for start in range(0, len(mailboxes), size):
            found.append(_new_group(key, mailboxes[start : start + size], found))
    return tuple(found)


def without(existing: Sequence[Group], mailboxes: Iterable[str]) -> tuple[Group, ...]:
    """Return the groups without these mailboxes. Empty groups are left out."""
    gone = set(mailboxes)
    left = (
        replace(group, mailboxes=tuple(m for m in group.mailboxes if m not in gone)) for group in existing
    )
    return tuple(group for group in left if group.mailboxes)


def duplicates(existing: Iterable[Group]) -> list[str]:
    """Return the mailboxes that are in more than one group. There must be none: each would be subscribed twice."""
    counts = Counter(mailbox for group in existing for mailbox in group.mailboxes)
    return sorted(mailbox for mailbox, count in counts.items() if count > 1)


def deduplicated(existing: Sequence[Group], homes: Mapping[str, Group]) -> tuple[Group, ...]:
    """Return the groups with each mailbox in only one: the group in `homes`, or else the first that has it."""
    seen: set[str] = set()
    names = {mailbox: group.name for mailbox, group in homes.items()}
    pairs = {(group.name, mailbox) for group in existing for mailbox in group.mailboxes}
    found = []
    for group in existing:
        staying = tuple(
            mailbox
            for mailbox in dict.fromkeys(group.mailboxes)
            if mailbox not in seen
            and (names.get(mailbox, group.name) == group.name or (names[mailbox], mailbox) not in pairs)
        )
        seen.update(staying)
        if staying:
            found.append(replace(group, mailboxes=staying))
    return tuple(found)


def split_off(existing: Sequence[Group], group: Group, mailboxes: Iterable[str]) -> tuple[Group, ...]:
    """Return the groups after these mailboxes left `group` for a closed group, which is the last one."""
    leaving = tuple(sorted(mailboxes))
    left = without(existing, leaving)
    return (*left, _new_group(group.affinity_key, leaving, existing, closed=True))


def _new_group(
    key: AffinityKey, mailboxes: Sequence[str], existing: Sequence[Group], *, closed: bool = False
) -> Group:
    url, information, access = key
    label = information or host_of(url) or url
    numbers = [int(number) for of, _, number in (g.name.rpartition("/") for g in existing) if of == label]
    name = f"{label}/{max(numbers, default=0) + 1}"
    return Group(name, url, information, tuple(mailboxes), closed, access)
