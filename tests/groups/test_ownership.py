"""Which mailbox a subscription id belongs to, held against a plain model."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from listener.groups.ownership import Ownership, server_of

A, B = "https://a.example", "https://b.example"
SERVERS = st.sampled_from([A, B])
IDS = st.sampled_from("123")
MAILBOXES = st.sampled_from(["ann", "bob", "cat"])


class Claims(RuleBasedStateMachine):
    """Claims, releases and doubts in any order: one mailbox an id, and one id a mailbox."""

    def __init__(self) -> None:
        super().__init__()
        self.ownership = Ownership()
        self.owners: dict[tuple[str, str], str] = {}
        self.doubted: set[tuple[str, str]] = set()

    @rule(server=SERVERS, id_=IDS, mailbox=MAILBOXES, proven=st.booleans())
    def claim(self, server: str, id_: str, mailbox: str, proven: bool) -> None:
        former = [key for key, owner in self.owners.items() if owner == mailbox]
        for key in former:
            del self.owners[key]
            self.doubted.discard(key)
        loser = self.owners.get((server, id_))
        assert self.ownership.claim(server, id_, mailbox, proven=proven) == loser
        self.owners[server, id_] = mailbox
        (self.doubted.discard if proven else self.doubted.add)((server, id_))

    @rule(server=SERVERS, id_=IDS, mailbox=MAILBOXES)
    def release(self, server: str, id_: str, mailbox: str) -> None:
        self.ownership.release(server, id_, mailbox)
        if self.owners.get((server, id_)) == mailbox:
            del self.owners[server, id_]
            self.doubted.discard((server, id_))

    @rule(server=SERVERS, ids=st.sets(IDS))
    def doubt(self, server: str, ids: set[str]) -> None:
        self.ownership.doubt(server, ids)
        self.doubted |= {(server, id_) for id_ in ids if (server, id_) in self.owners}

    @rule(server=SERVERS, id_=IDS)
    def confirm(self, server: str, id_: str) -> None:
        self.ownership.confirm(server, id_)
        self.doubted.discard((server, id_))

    @invariant()
    def agrees(self) -> None:
        for server in (A, B):
            for id_ in "123":
                assert self.ownership.owner(server, id_) == self.owners.get((server, id_))
                assert self.ownership.is_proven(server, id_) == ((server, id_) not in self.doubted)


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)


def test_a_server_is_scheme_host_and_port() -> None:
    assert server_of("https://Mail.example/EWS/Exchange.asmx") == server_of("https://mail.example/ews")
    assert server_of("https://mail.example/EWS") != server_of("https://mail.example:444/EWS")


def test_folders_show_the_owner_of_events() -> None:
    ownership = Ownership()
    ownership.add_folders("ann", ["inbox-a", "sent-a", None])
    ownership.add_folders("bob", ["inbox-b"])
    assert ownership.owns_folders("ann", ["inbox-a"]) is True
    assert ownership.owns_folders("ann", ["inbox-b"]) is False
    assert ownership.owns_folders("ann", ["inbox-a", "inbox-b"]) is False
    assert ownership.owns_folders("ann", ["new", None]) is None


def test_a_folder_id_that_two_mailboxes_have_proves_nothing() -> None:
    ownership = Ownership()
    ownership.add_folders("ann", ["inbox"])
    ownership.add_folders("bob", ["inbox"])
    assert ownership.owns_folders("ann", ["inbox"]) is None
    ownership.add_folders("ann", ["inbox"])
    assert ownership.owns_folders("ann", ["inbox"]) is None
