from random import Random
from uuid import UUID

import pytest
from lxml import etree

from listener.simulator import responses
from listener.simulator.mailstore import KINDS, Mailbox
from listener.simulator.responses import Failure, Prefixes
from listener.simulator.traffic import make
from tests.simulator.client import NAMES, envelopes
from tests.xsd import validate, xsd_available


def events_of(kind: str) -> list[etree._Element]:
    """Return a valid stream message with the events of one change of this kind."""
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=5), 0.0)
    events = make(mailbox, kind, Random(1), 1700000000.9)
    # Servers write m:Notification. The schema has it in the types' namespace, so only that form can be validated.
    content = responses.notification("c3Vi", events, more=True, tag_in="t")
    message = responses.success("GetStreamingEvents", f"<m:Notifications>{content}</m:Notifications>")
    data = responses.stream_envelope(responses.response("GetStreamingEvents", [message]))
    (root,) = envelopes(data)
    body = root.find("s:Body/*", NAMES)
    assert body is not None
    return [body]


@xsd_available
@pytest.mark.parametrize("kind", KINDS)
def test_events_are_valid(kind: str) -> None:
    (body,) = events_of(kind)
    validate(body)


@pytest.mark.parametrize("kind", ["MovedEvent", "CopiedEvent"])
def test_moves_and_copies_report_old_ids(kind: str) -> None:
    (body,) = events_of(kind)
    event = body.find(f".//t:{kind}", NAMES)
    assert event is not None
    assert [etree.QName(child).localname for child in event] == [
        "TimeStamp", "ItemId", "ParentFolderId", "OldItemId", "OldParentFolderId",
    ]  # fmt: skip
    assert event.findtext("t:TimeStamp", namespaces=NAMES) == "2023-11-14T22:13:20Z"


def test_notification_is_in_the_messages_namespace() -> None:
    mailbox = Mailbox("alice@contoso.example", "Alice", UUID(int=5), 0.0)
    events = mailbox.deliver("Hello", "bob@fabrikam.example", 1.0)
    assert responses.notification("c3Vi", events, more=False).startswith(
        "<m:Notification><t:SubscriptionId>c3Vi</t:SubscriptionId><t:CreatedEvent>"
    )


@xsd_available
@pytest.mark.parametrize("names", [Prefixes(), Prefixes("msg", "typ")])
def test_errors_are_valid(names: Prefixes) -> None:
    failure = Failure("ErrorServerBusy", values={"BackOffMilliseconds": "1500"})
    message = responses.error("Subscribe", failure, names=names)
    data = responses.envelope(responses.response("Subscribe", [message], names))
    body = etree.fromstring(data).find("s:Body/*", NAMES)
    assert body is not None
    validate(body)


@xsd_available
def test_the_server_version_is_valid() -> None:
    for data in (
        responses.envelope(""),
        responses.stream_envelope(""),
        responses.stream_envelope("", prefix="soap"),
    ):
        version = etree.fromstring(data).find("s:Header/t:ServerVersionInfo", NAMES)
        assert version is not None
        validate(version)


def test_soap_fault_has_the_code_in_faultcode_and_detail() -> None:
    data = responses.fault(Failure("ErrorServerBusy", "Too <busy>", values={"BackOffMilliseconds": "1500"}))
    fault = etree.fromstring(data).find("s:Body/s:Fault", NAMES)
    assert fault is not None
    assert fault.findtext("faultcode") == "a:ErrorServerBusy"
    assert fault.findtext("faultstring") == "Too <busy>"
    assert fault.findtext("detail/{*}ResponseCode") == "ErrorServerBusy"
    value = fault.find("detail/t:MessageXml/t:Value", NAMES)
    assert value is not None
    assert (value.get("Name"), value.text) == ("BackOffMilliseconds", "1500")
