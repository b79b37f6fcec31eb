"""Requests and replies of streaming subscriptions (MS-OXWSNTIF 3.1.4).

Requests are bytes to post. The read functions raise ExchangeError with the failure that the server, or a proxy
instead of it, returned.
"""

from collections.abc import Iterable, Sequence

import msgspec
from lxml import etree

from listener.ews.codes import ExchangeError, Failure
from listener.ews.events import EventKind
from listener.ews.soap import Impersonation, build, child_text, envelope, only_message
from listener.ews.values import identifier


class FolderRef(msgspec.Struct, frozen=True):
    """A folder: a distinguished `name` such as `inbox`, or a `folder_id`.

    `mailbox` is the owner's address if the folder is in another mailbox (delegate access). It requires a name.
    """

    name: str | None = None
    mailbox: str | None = None
    folder_id: str | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.folder_id is None):
            raise ValueError("set either the distinguished name or the id of a folder")
        if self.mailbox is not None and self.name is None:
            raise ValueError("a folder id already identifies the mailbox")

    def to_element(self) -> etree._Element:
        """Return a `t:DistinguishedFolderId` or `t:FolderId`."""
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
    """Return a Subscribe request for a streaming subscription to these folders of one mailbox (None: all folders).

    Raises ValueError without an event, or with an empty list of folders, which the schema forbids.
    """
    kinds = tuple(EventKind(event) for event in events)
    if not kinds:
        raise ValueError("Subscribe requires an event")
    request = build("m:StreamingSubscriptionRequest")
    if folders is None:
        request.set("SubscribeToAllFolders", "true")
    elif folders:
        request.append(build("t:FolderIds", *(folder.to_element() for folder in folders)))
    else:
        raise ValueError("Subscribe requires a folder")
    request.append(build("t:EventTypes", *(build("t:EventType", kind) for kind in kinds)))
    return envelope(build("m:Subscribe", request), version=version, impersonate=impersonate)


def read_subscribe(content: bytes) -> str:
    """Return the SubscriptionId of a SubscribeResponse. Raises ExchangeError."""
    message = only_message(content)
    subscription_id = child_text(message, "SubscriptionId")
    if identifier(subscription_id) is None:
        text = f"a SubscriptionId of {len(subscription_id)} characters"
        raise ExchangeError(Failure(code="UnexpectedReply", text=text))
    return subscription_id


def unsubscribe(subscription_id: str, *, version: str, impersonate: Impersonation | None = None) -> bytes:
    """Return an Unsubscribe request. Exchange accepts it only from the account that subscribed."""
    return envelope(
        build("m:Unsubscribe", build("m:SubscriptionId", subscription_id)),
        version=version,
        impersonate=impersonate,
    )


def read_unsubscribe(content: bytes) -> None:
    """Return if the subscription has ended, else raise ExchangeError."""
    only_message(content)


def get_streaming_events(
    subscription_ids: Iterable[str],
    *,
    minutes: int,
    version: str,
    impersonate: Impersonation | None = None,
) -> bytes:
    """Return a GetStreamingEvents request: one connection for all these subscriptions.

    The server closes the connection after `minutes`, 1 to 30. Raises ValueError for another number, or without a
    subscription. listener.ews.stream.StreamParser reads the reply.
    """
    if not 1 <= minutes <= 30:
        raise ValueError(f"ConnectionTimeout must be 1 to 30 minutes, not {minutes}")
    ids = [build("t:SubscriptionId", subscription_id) for subscription_id in subscription_ids]
    if not ids:
        raise ValueError("GetStreamingEvents requires a subscription")
    request = build(
        "m:GetStreamingEvents", build("m:SubscriptionIds", *ids), build("m:ConnectionTimeout", str(minutes))
    )
    return envelope(request, version=version, impersonate=impersonate)
