"""The simulated organization: mailboxes, accounts, back ends, access rights and distribution groups.

An account that impersonates has the rights of the impersonated user instead of its own. A delegate and an account
with a folder permission are the same here: both name the folder with its owner ("Delegate access and EWS in
Exchange", learn.microsoft.com).

Every mailbox grants *Default*, which is every account, the right AvailabilityOnly on its calendar
("Get-MailboxFolderPermission", learn.microsoft.com): the folder and free/busy times are visible, its items are not.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from random import Random
from typing import NamedTuple
from uuid import UUID

from listener.simulator.mailstore import Mailbox
from listener.simulator.settings import Settings

# ruff: noqa: SIM905  (tables of words read better as text)

_GIVEN = (
    "alice adam aisha anna ben bianca carlos chloe daniel diana elena emil emma erik fatima felix fiona florian "
    "gabriel grace hana hannah hugo ines ingrid isaac ivan jana jonas julia kai karin katja lars laura leo lina "
    "lucas maria marta max mia milan mina nadia naomi nils noah nora olga oliver omar oscar paul petra rafael rosa "
    "ruth samuel sara simon sofia stefan tara theo tomas valerie vera victor wanda xavier yara yusuf zoe"
).split()
_FAMILY = (
    "martin adler ahmed andersson baker bauer becker berg bianchi brown carter chen costa dubois eriksson evans "
    "fernandez fischer fontaine garcia gomez green haas hansen hoffmann huber ito jansen jensen kaya keller khan kim "
    "klein kowalski kumar lang larsen lehmann lopez lorenz maier moreau mueller nakamura nguyen nielsen novak okafor "
    "olsen patel peeters petrov price ricci roth russo santos schmidt schneider silva smith sokolov suzuki taylor "
    "tanaka thomas torres vargas vogel wagner walker weber wilson wolf wright yilmaz young zimmermann"
).split()
_TOPICS = (
    "Quarterly figures,Lunch on Thursday?,Contract renewal,Minutes of yesterday,Offer 4711,Travel request,"
    "Invoice attached,Server maintenance,Welcome aboard,Re: budget,Re: contract renewal,Fwd: delivery note,"
    "Holiday plan,New price list,Incident report,Training next week,Réunion d'équipe,Änderung des Termins"
).split(",")
_FOLDERS = "Projects Customers Suppliers Archive Travel Invoices Team Newsletters Private Reports".split()


def random_people(count: int, rng: Random) -> list[tuple[str, str]]:
    """Return `count` pairs (display name, local part of the address) with unique local parts."""
    pairs = [(given, family) for given in _GIVEN for family in _FAMILY]
    rng.shuffle(pairs)
    people = []
    for number in range(count):
        given, family = pairs[number % len(pairs)]
        round_number = number // len(pairs)
        suffix = str(round_number + 1) if round_number else ""
        people.append(
            (f"{given.title()} {family.title()}{suffix and ' ' + suffix}", f"{given}.{family}{suffix}")
        )
    return people


def random_subject(rng: Random) -> str:
    """Return a plausible subject of an email."""
    return rng.choice(_TOPICS)


def random_folder_name(rng: Random) -> str:
    """Return a plausible name of a user folder."""
    return f"{rng.choice(_FOLDERS)} {rng.randrange(1, 1000)}"


def random_person(rng: Random) -> str:
    """Return a given name and a family name."""
    return f"{rng.choice(_GIVEN).title()} {rng.choice(_FAMILY).title()}"


class Member(NamedTuple):
    """One member of a group. `kind` is its MailboxType; empty means that `member_type` looks it up."""

    address: str
    kind: str = ""


Groups = dict[str, tuple[Member, ...]]
"""Members by the group's lower-case address."""


def default_groups(domain: str, homes: Mapping[str, str], outsider: str) -> Groups:
    """Return one group of all mailboxes for each back end, and `everyone`.

    `everyone` contains these groups, a contact and a public folder. `outsider` is in no group.
    """
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


def member_type(member: Member, groups: Groups, mailboxes: Container[str]) -> str:
    """Return the MailboxType of a member. A member without its own kind is looked up in the organization."""
    if member.kind:
        return member.kind
    return "PublicDL" if member.address in groups else "Mailbox" if member.address in mailboxes else "Contact"


EVERYTHING = "*"
CALENDARS = frozenset({"calendar"})
"""Folders on which *Default* has the right AvailabilityOnly."""


class Rights:
    """Access rights. All names are lower-case addresses.

    `impersonators` may impersonate every mailbox that is not in `out_of_scope`. For the mailboxes in
    `without_ews`, EWS is disabled for the owner. The mailboxes in `without_free_busy` grant *Default* no
    right.
    """

    def __init__(self, impersonators: Iterable[str], out_of_scope: Iterable[str]) -> None:
        self.impersonators = set(impersonators)
        self.out_of_scope = set(out_of_scope)
        self.without_ews: set[str] = set()
        self.without_free_busy: set[str] = set()
        self._folders: dict[tuple[str, str], frozenset[str]] = {}

    def may_impersonate(self, account: str, mailbox: str) -> bool:
        """Return whether the mailbox is in the account's management scope."""
        return account in self.impersonators and mailbox not in self.out_of_scope

    def grant(self, account: str, mailbox: str, folders: Iterable[str]) -> None:
        """Let the account read these folders of the mailbox (distinguished ids, `*` for all), and no others."""
        self._folders[account, mailbox] = frozenset(folders)

    def may_read(self, account: str, mailbox: str, folder: str | None) -> bool:
        """Return whether the account has a permission on a folder (distinguished id) of another mailbox."""
        granted = self._folders.get((account, mailbox), frozenset())
        return EVERYTHING in granted or folder in granted

    def may_see(self, account: str, mailbox: str, folder: str | None) -> bool:
        """Return whether the account can see the folder and its properties."""
        free_busy = folder in CALENDARS and mailbox not in self.without_free_busy
        return free_busy or self.may_read(account, mailbox, folder)

    def state(self) -> dict[str, object]:
        """Return all rights for the control API."""
        return {
            "impersonators": sorted(self.impersonators),
            "out_of_scope": sorted(self.out_of_scope),
            "without_ews": sorted(self.without_ews),
            "without_free_busy": sorted(self.without_free_busy),
            "folders": [
                {"account": account, "mailbox": mailbox, "folders": sorted(folders)}
                for (account, mailbox), folders in sorted(self._folders.items())
                if folders
            ],
        }


class Directory:
    """The mailboxes and the back ends.

    `mailboxes` maps lower-case SMTP addresses to mailboxes, `homes` maps them to back ends. `alive` are the
    working back ends.

    The service account has no mailbox. Its management scope contains every mailbox except `outsider`, which
    exists to test refusals. Every other mailbox has an account of the same name and password that has no
    other rights until `rights` grants some.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        rng = Random(f"directory {settings.seed}")
        domain = settings.domain
        self.backends = tuple(f"ex{number:02}.{domain}" for number in range(1, settings.backends + 1))
        self.alive = self.backends
        self.outsider = f"ceo@{domain}"
        self.mailboxes: dict[str, Mailbox] = {}
        self.homes: dict[str, str] = {}
        extra = [(local.title(), local.lower()) for local in settings.extra_mailboxes]
        people = [*random_people(settings.mailboxes, rng), *extra, ("Chief Executive", "ceo")]
        for name, local in people:
            address = f"{local}@{domain}"
            guid = UUID(int=rng.getrandbits(128), version=4)
            self.mailboxes[address] = Mailbox(address, name, guid, now, tombstones=settings.limits.tombstones)
            self.homes[address] = rng.choice(self.backends)
        self._names: dict[str, str] = {}
        for address, mailbox in self.mailboxes.items():
            # The user principal name equals the address. The SID is derived from the GUID.
            self._names[self.sid(mailbox)] = address
            self._names[str(mailbox.guid)] = address
        self.accounts: Mapping[str, str] = dict.fromkeys([settings.user, *self.mailboxes], settings.password)
        self.rights = Rights([settings.user, settings.client_id], [self.outsider])
        self.groups = default_groups(domain, self.homes, self.outsider)

    def __iter__(self) -> Iterator[Mailbox]:
        """Iterate over all mailboxes except `outsider`."""
        return (mailbox for address, mailbox in self.mailboxes.items() if address != self.outsider)

    def find(self, name: str) -> Mailbox | None:
        """Return the mailbox with this SMTP address, UPN, SID or Exchange GUID."""
        lowered = name.strip().lower()
        return self.mailboxes.get(self._names.get(lowered, lowered))

    def may_impersonate(self, account: str, mailbox: Mailbox) -> bool:
        return self.rights.may_impersonate(account, mailbox.address)

    def backend(self, name: str) -> str | None:
        """Return the back end with this name, with or without its domain."""
        lowered = name.strip().lower()
        return next((each for each in self.backends if lowered in (each, each.partition(".")[0])), None)

    def home(self, mailbox: Mailbox) -> str:
        """Return the back end whose database holds the mailbox."""
        return self.homes[mailbox.address]

    @staticmethod
    def sid(mailbox: Mailbox) -> str:
        """Return the owner's security identifier in lower case."""
        return f"s-1-5-21-{mailbox.guid.time_low}-{mailbox.guid.time_mid}-1004-{mailbox.guid.node % 100000}"


def grouping(backend: str) -> str:
    """Return the GroupingInformation of the mailboxes on a back end."""
    return backend.partition(".")[0].upper() + "-SITE1"
