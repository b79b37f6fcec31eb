"""The event that reaches a handler, and its CloudEvents 1.0 form."""

from hashlib import blake2b
from urllib.parse import quote

import msgspec


class MailboxEvent(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One change that Exchange reported in one mailbox.

    `type` is the CloudEvents type: `exchange.item.created`, `exchange.folder.modified`, … (docs/EVENTS.md lists
    all). `time` is the server's time stamp, RFC 3339 in UTC, with as many fractional digits as the server sent, at
    most nine; or when the event arrived, if the server sent no valid time.
    Ids are Exchange's own opaque, case-sensitive ids. `reason` is for the listener's own events
    (`exchange.listener.suspended`, …). `recovered`: no stream told of it, it was found by comparing with the mailbox,
    and `time` is when. A field that there is nothing to say in is None.
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

        A thing is created, deleted, moved or copied to its id only once: of these, type, mailbox and the thing's id
        make the event's id. A folder keeps its id when it is moved, and so do items on some servers: there, its new
        place and its change key do too, or the time if the server sent no change key, since it can come back.
        Everything else can happen to a thing again: there, all fields do, the time among them.
        """
        word = self.type.rpartition(".")[2]
        what: object = self
        if word in _ONCE and self.subject is not None:
            again: tuple[str | None, ...] = ()
            if word == "moved" and self.item_id in (None, self.old_item_id):
                again = self.parent_folder_id, self.change_key
                if not self.change_key:
                    again = *again, self.time
            what = (self.type, self.mailbox, self.subject, *again)
        return blake2b(_ENCODE(what), digest_size=16).hexdigest()

    @property
    def source(self) -> str:
        """The mailbox as a `mailto:` URI (RFC 6068), which CloudEvents wants for `source`."""
        return "mailto:" + quote(self.mailbox, safe="@!$&'*+/=?^_`{|}~.-")

    @property
    def subject(self) -> str | None:
        """The id of the item or folder that changed."""
        return self.item_id or self.folder_id

    def to_json(self) -> str:
        """One line of JSON, without the line end: CloudEvents 1.0, JSON format, structured mode."""
        return _ENCODE(self.to_cloudevent()).decode()

    def to_cloudevent(self) -> dict[str, object]:
        """The CloudEvents attributes and `data`; fields that are None are left out."""
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
