"""What is kept of groups from one process to the next, and what of it still holds under the present configuration.

The rules:

1. A subscription is used again if the same account made it, at the same place, for the same subscription spec
   (folders, event types, in whose name). Otherwise the mailbox is subscribed again.
2. A mailbox that was found by Autodiscover is taken to live where it did; whether it still does is asked later.
3. What is not used again is unsubscribed, if this account can do so.
4. An id that two mailboxes of one server claim belongs to neither: the server restarted between the two, and which of
   them was later is not known. Groups and kinds of access do not matter, because a server has one list of ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from listener.access import AccessKind
from listener.exchange.cookies import Cookie
from listener.groups.affinity import Group
from listener.groups.group import Kept
from listener.groups.ownership import server_of
from listener.placement import Place, Placement


class SubscriptionCheckpoint(msgspec.Struct, frozen=True, array_like=True):
    """A SubscriptionId, and a fingerprint of the subscription spec that it was made for."""

    subscription: str
    spec: str


class GroupCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A group as it was. `members` has all its mailboxes, None for one that had no subscription; `owner` is a
    fingerprint of the account, and of what its places were found by."""

    name: str
    ews_url: str
    grouping_information: str
    access: AccessKind
    closed: bool
    anchor: str
    owner: str
    members: dict[str, SubscriptionCheckpoint | None]
    cookies: tuple[Cookie, ...]

    @property
    def place(self) -> Place:
        """What its mailboxes had in common."""
        return self.ews_url, self.grouping_information, self.access


class LastSeen(msgspec.Struct, frozen=True, kw_only=True):
    """When streams were last heard, Unix seconds: by the names of groups; and for mailboxes that are behind their
    group, because they have no stream or a gap that is not filled, from when on something may be missing."""

    groups: dict[str, float] = {}
    missing_since: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Restored:
    """A group to begin with. One without mailboxes has only something to unsubscribe."""

    group: Group
    kept: Kept
    cookies: tuple[Cookie, ...]


def restored(
    saved: Iterable[GroupCheckpoint],
    places: Mapping[str, Placement | None],
    *,
    kind_of: Callable[[str], AccessKind],
    owner: Callable[[str], str],
    spec: Callable[[str], str],
    size: int,
) -> list[Restored]:
    """What holds of the saved groups.

    `places` has all mailboxes that are wanted, with None for those whose place the configuration does not tell;
    `kind_of` says how each is got at. `owner` gives the fingerprint for an EWS URL, `spec` that for a mailbox.
    """
    saved = sorted(saved, key=lambda group: group.name)
    claims = Counter(
        (server_of(group.ews_url), held.subscription)
        for group in saved
        for held in group.members.values()
        if held
    )
    taken: set[str] = set()
    found = []
    for group in saved:
        if group.owner != owner(group.ews_url):
            continue
        staying: list[str] = []
        subscriptions: dict[str, str] = {}
        abandoned: list[tuple[str, str]] = []
        for mailbox, held in sorted(group.members.items()):
            stays = (
                mailbox not in taken
                and len(staying) < size
                and _lives_there(mailbox, group, places)
                and kind_of(mailbox) == group.access
            )
            if stays:
                staying.append(mailbox)
            if held is None or claims[server_of(group.ews_url), held.subscription] > 1:
                continue
            if stays and held.spec == spec(mailbox):
                subscriptions[mailbox] = held.subscription
            else:
                abandoned.append((mailbox, held.subscription))
        if group.closed and not subscriptions:
            staying = []  # nothing binds these to a group of their own
        taken.update(staying)
        if staying or abandoned:
            again = Group(
                name=group.name,
                ews_url=group.ews_url,
                grouping_information=group.grouping_information,
                mailboxes=tuple(staying),
                closed=group.closed,
                access=group.access,
            )
            found.append(Restored(again, Kept(group.anchor, subscriptions, tuple(abandoned)), group.cookies))
    return found


def _lives_there(mailbox: str, group: GroupCheckpoint, places: Mapping[str, Placement | None]) -> bool:
    if mailbox not in places:
        return False
    place = places[mailbox]
    return place is None or place[:2] == group.place[:2]


def last_seen(saved: Iterable[GroupCheckpoint], heard: LastSeen, now: float) -> dict[str, float]:
    """For each mailbox that ever had a stream: from when on something may be missing, Unix seconds."""
    found = dict(heard.missing_since)
    for group in saved:
        moment = heard.groups.get(group.name)
        if moment is not None:
            for mailbox, held in group.members.items():
                if held is not None:
                    found.setdefault(mailbox, moment)
    # A clock that was set back meanwhile makes these moments meaningless.
    return {mailbox: moment if moment <= now else now - DAY for mailbox, moment in found.items()}


DAY = 86400.0
