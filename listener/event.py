"""The event that a handler receives, and its CloudEvents 1.0 form."""

from hashlib import blake2b
from urllib.parse import quote

import msgspec


class MailboxEvent(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One change that Exchange reported in one mailbox. Fields without a value are None.

    `type` is the CloudEvents type: `exchange.item.created`, `exchange.folder.modified`, … (docs/EVENTS.md lists
    all). `time` is the server's timestamp, RFC 3339 in UTC, with as many fractional digits as the server sent, at
    most nine. If the server sent no valid time, it is the time of arrival. Ids are Exchange's opaque, case-sensitive
    ids. `reason` is for events about the listener (`exchange.listener.suspended`, …). `recovered`: catch-up found the
    change, no stream reported it, and `time` is when it was found.
    """

    type: str
    mailbox: str
    time: str
    item_id: str | None = None
    folder_id: str | None = None
    change_key: str | None = None
    parent_folder_id: str | None = None
    old_item_id: str | None = None
    old_folder_id: str | None = None
    old_parent_folder_id: str | None = None
    unread_count: int | None = None
    reason: str | None = None
    recovered: bool = False

    @property
    def id(self) -> str:
        """32 hexadecimal digits, the same for every report of the same change, in every run and release.

        Created, deleted, moved, copied and new mail can happen only once to an id: their event id is a digest of
        type, mailbox and subject. A move that keeps the id (folders, and items on some servers) can happen again, so
        the digest also has the new parent and the change key, or the time if the server sent no change key. For all
        other types the digest has all fields, including the time.
        """
        name = self.type.rpartition(".")[2]
        digested: object = self
        if name in _ONCE and self.subject is not None:
            more: tuple[str | None, ...] = ()
            if name == "moved" and self.item_id in (None, self.old_item_id):
                more = self.parent_folder_id, self.change_key
                if not self.change_key:
                    more = *more, self.time
            digested = (self.type, self.mailbox, self.subject, *more)
        return blake2b(_ENCODE(digested), digest_size=16).hexdigest()

    @property
    def source(self) -> str:
        """The mailbox as a `mailto:` URI (RFC 6068), because CloudEvents requires a URI reference."""
        return "mailto:" + quote(self.mailbox, safe="@!$&'*+/=?^_`{|}~.-")

    @property
    def subject(self) -> str | None:
        """The id of the item or folder that changed."""
        return self.item_id or self.folder_id

    def to_json(self) -> str:
        """Return one line of JSON without the line end: CloudEvents 1.0, JSON format, structured mode."""
        return _ENCODE(self.to_cloudevent()).decode()

    def to_cloudevent(self) -> dict[str, object]:
        """Return the CloudEvents attributes and `data`, without fields that are None."""
        attributes: dict[str, object] = {
            "specversion": "1.0",
            "id": self.id,
            "type": self.type,
            "source": self.source,
            "time": self.time,
            "datacontenttype": "application/json",
        }
        if self.subject is not None:
            attributes["subject"] = self.subject
        attributes["data"] = {
            name: value
            for name in _DATA_FIELDS
            if (value := getattr(self, name)) is not None and value is not False
        }
        return attributes


_ONCE = frozenset({"created", "deleted", "moved", "copied", "new_mail"})
_ENCODE = msgspec.json.Encoder().encode
_DATA_FIELDS = tuple(name for name in MailboxEvent.__struct_fields__ if name not in ("type", "time"))
