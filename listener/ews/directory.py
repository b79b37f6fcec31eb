"""ExpandDL (MS-OXWSDLIST): the members of a distribution group, one level deep.

A group within a group is a member like any other: whoever wants its members asks again. A dynamic distribution group
is expanded too; one that is hidden from the address lists is not found ("ExpandDL operation", learn.microsoft.com).
"""

import msgspec

from listener.ews import texts
from listener.ews.addresses import AddressError, parse_address
from listener.ews.batch import TEXT_LENGTH, flag, unexpected
from listener.ews.soap import Impersonation, build, child, child_text, envelope, only_message
from listener.ews.xml import local_name

GROUPS = frozenset(("PublicDL", "PrivateDL"))
"""The MailboxTypes that have members of their own."""
MAILBOXES = frozenset(("Mailbox", "GroupMailbox"))
"""The MailboxTypes that somebody can listen to."""


class GroupMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member: its SMTP `address` in lower case, and its MailboxType.

    A server that tells no type means a mailbox (MS-OXWSCDATA, EmailAddressType). An address that is not of routing
    type SMTP, such as EX, or that is not valid, is empty here.
    """

    address: str
    type: str = "Mailbox"
    name: str = ""


class Expansion(msgspec.Struct, frozen=True):
    """What is told of a group; not `complete` if the server left members out."""

    members: tuple[GroupMember, ...]
    complete: bool = True


def expand_dl(group: str, *, version: str, impersonate: Impersonation | None = None) -> bytes:
    """An ExpandDL for the group of this SMTP address. ValueError if there is none."""
    if not group:
        raise ValueError("an ExpandDL of no group")
    request = build("m:ExpandDL", build("m:Mailbox", build("t:EmailAddress", group)))
    return envelope(request, version=version, impersonate=impersonate)


def read_expand_dl(content: bytes) -> Expansion:
    """The members of the group. Raises ExchangeError: ErrorNameResolutionNoResults, there is no such group."""
    expansion = child(only_message(content), "DLExpansion")
    if expansion is None:
        raise unexpected("an ExpandDL without a DLExpansion")
    members = []
    for part in expansion:
        if local_name(part) == "Mailbox":
            smtp = child_text(part, "RoutingType").upper() in ("", "SMTP")
            address = _address(child_text(part, "EmailAddress")) if smtp else ""
            type_ = texts.code(child_text(part, "MailboxType")) or "Mailbox"
            members.append(
                GroupMember(address=address, type=type_, name=child_text(part, "Name")[:TEXT_LENGTH])
            )
    return Expansion(tuple(members), flag(expansion.get("IncludesLastItemInRange")) is not False)


def _address(text: str) -> str:
    try:
        return parse_address(text)
    except AddressError:
        return ""
