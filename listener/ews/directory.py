"""ExpandDL (MS-OXWSDLIST): the members of a distribution group, one level deep.

A nested group is returned as a member; expand it with another request. Dynamic distribution groups are expanded too.
Groups that are hidden from the address lists are not found ("ExpandDL operation", learn.microsoft.com).
"""

import msgspec

from listener.ews.addresses import AddressError, parse_address
from listener.ews.batch import TEXT_LENGTH, flag, unexpected
from listener.ews.soap import Impersonation, build, child, child_text, envelope, only_message
from listener.ews.values import response_code
from listener.ews.xml import local_name

GROUPS = frozenset(("PublicDL", "PrivateDL"))
"""The MailboxTypes of nested groups."""
MAILBOXES = frozenset(("Mailbox", "GroupMailbox"))
"""The MailboxTypes that can be subscribed to."""


class GroupMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member: its SMTP `address` in lower case, and its MailboxType.

    Without a MailboxType, the member is a mailbox (MS-OXWSCDATA, EmailAddressType). `address` is empty if the routing
    type is not SMTP, such as EX, or the address is not valid.
    """

    address: str
    type: str = "Mailbox"
    name: str = ""


class Expansion(msgspec.Struct, frozen=True):
    """The members of a group. `complete` is false if the server omitted members."""

    members: tuple[GroupMember, ...]
    complete: bool = True


def expand_dl(group: str, *, version: str, impersonate: Impersonation | None = None) -> bytes:
    """Return an ExpandDL request for the group with this SMTP address. Raises ValueError if it is empty."""
    if not group:
        raise ValueError("ExpandDL requires a group")
    request = build("m:ExpandDL", build("m:Mailbox", build("t:EmailAddress", group)))
    return envelope(request, version=version, impersonate=impersonate)


def read_expand_dl(content: bytes) -> Expansion:
    """Return the members. Raises ExchangeError: ErrorNameResolutionNoResults if the group does not exist."""
    expansion = child(only_message(content), "DLExpansion")
    if expansion is None:
        raise unexpected("an ExpandDL without a DLExpansion")
    members = []
    for part in expansion:
        if local_name(part) == "Mailbox":
            smtp = child_text(part, "RoutingType").upper() in ("", "SMTP")
            address = _address(child_text(part, "EmailAddress")) if smtp else ""
            type_ = response_code(child_text(part, "MailboxType")) or "Mailbox"
            members.append(
                GroupMember(address=address, type=type_, name=child_text(part, "Name")[:TEXT_LENGTH])
            )
    return Expansion(tuple(members), flag(expansion.get("IncludesLastItemInRange")) is not False)


def _address(text: str) -> str:
    try:
        return parse_address(text)
    except AddressError:
        return ""
