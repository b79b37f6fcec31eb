"""[mailboxes] and [impersonation]: who is listened to, how mailboxes are got at, and who must stay out of reach."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag

from listener.config.section import Section
from listener.config.values import (
    ConfigPath,
    Context,
    FolderNames,
    PositiveDuration,
    parse_address,
)

Folders: TypeAlias = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[FolderNames, Tag("names")],
    Discriminator(lambda value: "all" if isinstance(value, str) else "names"),
]
Access: TypeAlias = Literal["impersonation", "delegate", "own"]
ImpersonateBy: TypeAlias = Literal["PrimarySmtpAddress", "SmtpAddress", "PrincipalName", "SID"]
Address = Annotated[str, AfterValidator(parse_address)]


class AccessOverride(Section):
    """Mailboxes that are got at in another way than the rest. They need not stand in [mailboxes] as well."""

    addresses: tuple[str, ...] = Field(
        (),
        description="Addresses of these mailboxes.",  # after loading, those of `file` too
    )
    file: ConfigPath | None = Field(None, description="A file of addresses, as [mailboxes] file is.")
    access: Access = Field("impersonation", description="As [mailboxes] access.")
    impersonate_by: ImpersonateBy = Field("PrimarySmtpAddress", description="As [mailboxes] impersonate_by.")
    folders: Folders | None = Field(None, description="Their folders, if not those of [subscription].")


class Mailboxes(Section):
    """Which mailboxes to listen to, and how they are got at."""

    addresses: tuple[str, ...] = Field(
        (),
        description="SMTP addresses.",  # after loading, those of `file` too
    )
    file: ConfigPath | None = Field(
        None,
        description="A file with one address a line, or a table as Exchange exports it: see Files of mailboxes. "
        "Blank lines and what follows # are skipped.",
    )
    distribution_groups: tuple[Address, ...] = Field(
        (),
        description="Addresses of distribution groups whose members are listened to, and those of groups within "
        "them. Contacts and public folders are left out.",
    )
    expand_as: Address | None = Field(
        None,
        description="The mailbox in whose name groups are asked for their members; without it, the account's own. "
        "Needed with OAuth, whose tokens of an application work only in somebody's name.",
    )
    refresh: PositiveDuration = Field(
        3600, description="How often the file is read and the distribution groups are asked again."
    )
    max_drop: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(
        0.2,
        description="The share of the mailboxes that one refresh may drop, 0 to 1. If it would drop more, nothing is "
        "changed and the log warns: a group that was emptied by mistake must not silence everybody.",
    )
    access: Access = Field(
        "impersonation",
        description="How mailboxes are got at: in the owner's name (impersonation), as somebody who has a permission "
        "on folders of another's mailbox (delegate), or as the account's own mailbox (own).",
    )
    impersonate_by: ImpersonateBy = Field(
        "PrimarySmtpAddress",
        description="How ExchangeImpersonation names a mailbox's owner. With SID the addresses are security "
        "identifiers, which Autodiscover cannot look up.",
    )
    overrides: tuple[AccessOverride, ...] = Field(
        (), description="Mailboxes that are got at in another way: see below."
    )

    _in_file: tuple[str, ...] = PrivateAttr(())

    def model_post_init(self, context: Context | None, /) -> None:
        if context is not None:
            self._in_file = context.in_file

    @property
    def in_file(self) -> tuple[str, ...]:
        """Those of the addresses that stood in `file` when it was loaded."""
        return self._in_file


class Impersonation(Section):
    """How far the account may reach. docs/ACCESS.md says how to set its limits on the server."""

    must_deny: tuple[Address, ...] = Field(
        (),
        description="Mailboxes that the account must not get into, by impersonation or as a delegate. It is tried, "
        "at the start and again and again, and must be refused.",
    )
    if_not_denied: Literal["warn", "refuse_to_start"] = Field(
        "warn", description="What to do at the start if one of them can be reached."
    )
    interval: PositiveDuration = Field(86400, description="How often it is tried while the daemon runs.")
