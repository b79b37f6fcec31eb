"""The requests of streaming subscriptions and their replies (MS-OXWSNTIF 3.1.4).

All requests are bytes to be posted. The read functions raise ExchangeError with what the server, or whatever
answered in its stead, had to say.
"""

from collections.abc import Iterable, Sequence

import msgspec
from lxml import etree

from listener.errors import ExchangeError
from listener.ews import texts
from listener.ews.codes import Failure
from listener.ews.events import EventKind
from listener.ews.soap import Impersonation, build, child_text, envelope, only_message


class FolderRef(msgspec.Struct, frozen=True):
    """A folder: a distinguished `name` such as `inbox`, or a `folder_id`.

    `mailbox` goes with a name: the owner's address, if the folder is not in the mailbox that asks (delegate access).
    """

    name: str | None = None
    mailbox: str | None = None
    folder_id: str | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.folder_id is None):
            raise ValueError("a folder is given by its distinguished name or by its id")
        if self.mailbox is not None and self.name is None:
            raise ValueError("a folder id already tells the mailbox")

    def to_element(self) -> etree._Element:
        """`t:DistinguishedFolderId` or `t:FolderId`."""
        if self.folder_id is not None:
            return build("t:FolderId", Id=self.folder_id)
        element = build("t:DistinguishedFolderId", Id=self.name or "")
        if self.mailbox is not None:
            element.append(build("t:Mailbox", build("t:EmailAddress", self.mailbox)))
        return element


def subscribe(
    *,
    version: str,
    impersonate: Impersonation | None = None,
    events: Iterable[EventKind],
    folders: Sequence[FolderRef] | None = None,
) -> bytes:
    """A Subscribe for a streaming subscription to these folders of one mailbox, or to all of them (None).

    The schema wants at least one event, and one folder if it is not all: ValueError otherwise.
    """
    kinds = tuple(EventKind(event) for event in events)
    if not kinds:
        raise ValueError("a subscription to no events")
    request = build("m:StreamingSubscriptionRequest")
    if folders is None:
        request.set("SubscribeToAllFolders", "true")
    elif folders:
        request.append(build("t:FolderIds", *(folder.to_element() for folder in folders)))
    else:
        raise ValueError("a subscription to no folders")
    request.append(build("t:EventTypes", *(build("t:EventType", kind) for kind in kinds)))
    return envelope(build("m:Subscribe", request), version=version, impersonate=impersonate)


def read_subscribe(content: bytes) -> str:
    """The SubscriptionId of a SubscribeResponse."""
    message = only_message(content)
    subscription_id = child_text(message, "SubscriptionId")
    if texts.identifier(subscription_id) is None:
        text = f"a SubscriptionId of {len(subscription_id)} characters"
        raise ExchangeError(Failure(code="UnexpectedReply", text=text))
    return subscription_id


def unsubscribe(subscription_id: str, *, version: str, impersonate: Impersonation | None = None) -> bytes:
    """An Unsubscribe; it must come from the account that subscribed."""
    return envelope(
        build("m:Unsubscribe", build("m:SubscriptionId", subscription_id)),
        version=version,
        impersonate=impersonate,
    )


def read_unsubscribe(content: bytes) -> None:
    """Returns if the subscription has ended."""
    only_message(content)


def get_streaming_events(
    subscription_ids: Iterable[str],
    *,
    minutes: int,
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """A GetStreamingEvents: one connection for all these subscriptions.

    The server closes it after `minutes`, 1 to 30. ValueError for another number, or without a subscription. The
    reply is for listener.ews.stream.StreamParser.
    """
    if not 1 <= minutes <= 30:
        raise ValueError(f"ConnectionTimeout is 1 to 30 minutes, not {minutes}")
    ids = [build("t:SubscriptionId", subscription_id) for subscription_id in subscription_ids]
    if not ids:
        raise ValueError("a stream of no subscriptions")
    request = build(
        "m:GetStreamingEvents", build("m:SubscriptionIds", *ids), build("m:ConnectionTimeout", str(minutes))
    )
    return envelope(request, version=version, impersonate=impersonate)
