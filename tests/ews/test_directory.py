"""ExpandDL: requests and replies."""

from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from listener.ews.codes import ExchangeError
from listener.ews.directory import Expansion, GroupMember, expand_dl, read_expand_dl
from listener.ews.soap import Impersonation
from tests.ews.samples import SOAP, TYPES, fault, refused, reply
from tests.ews.variants import variants
from tests.simulator.client import Client
from tests.xsd import validate, xsd_available

VERSION = "Exchange2013_SP1"
T = f"{{{TYPES}}}"
TYPE = st.sampled_from(
    ["Mailbox", "PublicDL", "PrivateDL", "Contact", "PublicFolder", "GroupMailbox", "OneOff", "Unknown"]
)
NAME = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20).map(str.strip)


def body(content: bytes) -> etree._Element:
    found = etree.fromstring(content).find(f"{{{SOAP}}}Body")
    assert found is not None
    return found[0]


def member_xml(member: GroupMember, routing: str = "SMTP") -> str:
    return (
        f"<t:Mailbox><t:Name>{escape(member.name)}</t:Name><t:EmailAddress>{escape(member.address)}</t:EmailAddress>"
        f"<t:RoutingType>{routing}</t:RoutingType><t:MailboxType>{member.type}</t:MailboxType></t:Mailbox>"
    )


NOTHING = "<m:ExpandDLResponseMessage><m:ResponseCode>NoError</m:ResponseCode></m:ExpandDLResponseMessage>"


def expanded(*members: str, last: str = ' IncludesLastItemInRange="true"') -> bytes:
    count = len(members)
    return reply(
        "ExpandDL",
        '<m:ExpandDLResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
        f'<m:DLExpansion TotalItemsInView="{count}"{last}>{"".join(members)}</m:DLExpansion>'
        "</m:ExpandDLResponseMessage>",
    )


def test_request() -> None:
    anna = Impersonation("PrimarySmtpAddress", "anna@example.org")
    content = expand_dl("sales@example.org", version=VERSION, impersonate=anna)
    assert body(content).findtext(f"*/{T}EmailAddress") == "sales@example.org"
    assert b"anna@example.org" in content
    with pytest.raises(ValueError, match="requires a group"):
        expand_dl("", version=VERSION)


@xsd_available
def test_requests_and_samples_match_the_schema() -> None:
    validate(body(expand_dl("sales@example.org", version=VERSION)))
    validate(body(expanded(member_xml(GroupMember(address="a@b.c", name="A")))))
    validate(body(refused("ExpandDL", "ErrorNameResolutionNoResults")))


@given(
    variants(
        st.lists(
            st.builds(GroupMember, address=st.emails().map(str.lower), type=TYPE, name=NAME), max_size=5
        ).map(lambda members: (expanded(*map(member_xml, members)), Expansion(tuple(members))))
    )
)
@settings(deadline=None)
def test_members_in_any_variant(case: tuple[bytes, object]) -> None:
    content, meaning = case
    assert read_expand_dl(content) == meaning


def test_unusual_members() -> None:
    content = expanded(
        "<t:Mailbox><t:EmailAddress>Ben@Example.Org</t:EmailAddress></t:Mailbox>",
        member_xml(GroupMember(address="/o=Contoso/cn=Recipients/cn=cara"), routing="EX"),
        last=' IncludesLastItemInRange="false"',
    )
    expansion = read_expand_dl(content)
    assert expansion.members == (GroupMember(address="ben@example.org"), GroupMember(address=""))
    assert not expansion.complete
    assert read_expand_dl(expanded(last="")) == Expansion(())


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (refused("ExpandDL", "ErrorNameResolutionNoResults"), "ErrorNameResolutionNoResults"),
        (fault("ErrorImpersonateUserDenied"), "ErrorImpersonateUserDenied"),
        (
            reply("ExpandDL", NOTHING),
            "UnexpectedReply",
        ),
    ],
)  # fmt: skip
def test_failed_expansions(content: bytes, code: str) -> None:
    with pytest.raises(ExchangeError) as caught:
        read_expand_dl(content)
    assert caught.value.failure.code == code


def test_against_the_simulator() -> None:
    client = Client()
    request = etree.tostring(body(expand_dl("everyone@contoso.example", version=VERSION))).decode()
    answer = client.post(request).body
    assert isinstance(answer, bytes)
    members = read_expand_dl(answer).members
    assert [member.type for member in members] == ["PublicDL"] * 3 + ["Contact", "PublicFolder"]
    assert members[0].address == "team-ex01@contoso.example"
