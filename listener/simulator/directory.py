"""The organisation: people and their mailboxes, which back end each one lives on, and who may act for whom."""

from collections.abc import Iterator, Mapping
from random import Random
from uuid import UUID

from listener.simulator.groups import default_groups
from listener.simulator.mailstore import Mailbox
from listener.simulator.names import people
from listener.simulator.rights import Rights
from listener.simulator.settings import Settings


class Directory:
    """`mailboxes` maps lower-case SMTP addresses to mailboxes, `homes` the same addresses to back ends. `alive` are
    the back ends that work.

    The service account has no mailbox. Its right to impersonate is limited by a management scope: all mailboxes
    but `outsider`, which exists so that a refusal can be seen. Everybody else has a mailbox, an account of the same
    name with the same password, and rights to nothing but that mailbox, until `rights` are given.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        rng = Random(f"directory {settings.seed}")
        domain = settings.domain
        self.backends = tuple(f"ex{number:02}.{domain}" for number in range(1, settings.backends + 1))
        self.alive = self.backends
        self.outsider = f"ceo@{domain}"
        self.mailboxes: dict[str, Mailbox] = {}
        self.homes: dict[str, str] = {}
        further = [(local.title(), local.lower()) for local in settings.people]
        persons = [*people(settings.mailboxes, rng), *further, ("Chief Executive", "ceo")]
        for name, local in persons:
            address = f"{local}@{domain}"
            guid = UUID(int=rng.getrandbits(128), version=4)
            self.mailboxes[address] = Mailbox(address, name, guid, now, tombstones=settings.limits.tombstones)
            self.homes[address] = rng.choice(self.backends)
        self._names: dict[str, str] = {}
        for address, mailbox in self.mailboxes.items():
            # The user principal name is the address here; the SID is derived, as good as any.
            self._names[self.sid(mailbox)] = address
            self._names[str(mailbox.guid)] = address
        self.accounts: Mapping[str, str] = dict.fromkeys([settings.user, *self.mailboxes], settings.password)
        self.rights = Rights([settings.user, settings.client_id], [self.outsider])
        self.groups = default_groups(domain, self.homes, self.outsider)

    def __iter__(self) -> Iterator[Mailbox]:
        """All mailboxes but the outsider's."""
        return (mailbox for address, mailbox in self.mailboxes.items() if address != self.outsider)

    def find(self, name: str) -> Mailbox | None:
        """The mailbox of an SMTP address, UPN, SID or Exchange GUID."""
        lowered = name.strip().lower()
        return self.mailboxes.get(self._names.get(lowered, lowered))

    def may_impersonate(self, account: str, mailbox: Mailbox) -> bool:
        return self.rights.may_impersonate(account, mailbox.address)

    def backend(self, name: str) -> str | None:
        """The back end of that name, with or without its domain."""
        lowered = name.strip().lower()
        return next((each for each in self.backends if lowered in (each, each.partition(".")[0])), None)

    def home(self, mailbox: Mailbox) -> str:
        """The back end whose database holds the mailbox."""
        return self.homes[mailbox.address]

    @staticmethod
    def sid(mailbox: Mailbox) -> str:
        """The owner's security identifier, lower case."""
        return f"s-1-5-21-{mailbox.guid.time_low}-{mailbox.guid.time_mid}-1004-{mailbox.guid.node % 100000}"


def grouping(backend: str) -> str:
    """GroupingInformation of the mailboxes on a back end."""
    return backend.partition(".")[0].upper() + "-SITE1"
