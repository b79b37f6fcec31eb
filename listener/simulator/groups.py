"""Distribution groups: who is a member of what."""

from collections.abc import Container, Mapping
from typing import NamedTuple


class Member(NamedTuple):
    """One member of a group; `kind` is its MailboxType, empty where that is to be looked up."""

    address: str
    kind: str = ""


Groups = dict[str, tuple[Member, ...]]
"""Members by the group's address, lower case."""


def default_groups(domain: str, homes: Mapping[str, str], outsider: str) -> Groups:
    """A group for each back end, of those who live there, and `everyone`, of these groups and of some who have no
    mailbox here. The outsider is in none."""
    teams: dict[str, list[Member]] = {backend: [] for backend in homes.values()}
    for address, backend in homes.items():
        if address != outsider:
            teams[backend].append(Member(address, "Mailbox"))
    groups = {
        f"team-{backend.partition('.')[0]}@{domain}": tuple(members) for backend, members in teams.items()
    }
    others = (Member("partner@fabrikam.example", "Contact"), Member(f"news@{domain}", "PublicFolder"))
    everyone = (*(Member(group, "PublicDL") for group in sorted(groups)), *others)
    return groups | {f"everyone@{domain}": everyone}


def kind_of(member: Member, groups: Groups, mailboxes: Container[str]) -> str:
    """The MailboxType of a member: who has no kind of its own is what the organisation knows of it now."""
    if member.kind:
        return member.kind
    return "PublicDL" if member.address in groups else "Mailbox" if member.address in mailboxes else "Contact"
