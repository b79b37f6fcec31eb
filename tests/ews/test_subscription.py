"""Requests and replies of streaming subscriptions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.events import EventKind
from listener.ews.soap import Impersonation
from listener.ews.subscription import (
    FolderRef,
    get_streaming_events,
    read_subscribe,
    read_unsubscribe,
    subscribe,
    unsubscribe,
)
from tests.ews.samples import MESSAGES, SOAP, TYPES, envelope, fault, refused, reply, subscribed
from tests.xsd import validate, xsd_available

VERSION = "Exchange2013_SP1"
ANNA = Impersonation("PrimarySmtpAddress", "anna@example.org")
M, T = f"{{{MESSAGES}}}", f"{{{TYPES}}}"
_TEXT = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)


def body(content: bytes) -> etree._Element:
    found = etree.fromstring(content).find(f"{{{SOAP}}}Body")
    assert found is not None
    return found[0]


def test_subscribe_to_all_folders() -> None:
    request = body(
        subscribe(version=VERSION, impersonate=ANNA, events=[EventKind.CREATED, EventKind.NEW_MAIL])
    )
    (streaming,) = request
    assert (request.tag, streaming.tag) == (f"{M}Subscribe", f"{M}StreamingSubscriptionRequest")
    assert streaming.items() == [("SubscribeToAllFolders", "true")]
    assert [part.tag for part in streaming] == [f"{T}EventTypes"]
    assert [kind.text for kind in streaming[0]] == ["CreatedEvent", "NewMailEvent"]


def test_subscribe_to_some_folders() -> None:
    folders = [
        FolderRef("inbox"),
        FolderRef("calendar", mailbox="ben@example.org"),
        FolderRef(folder_id="AAMk="),
    ]
    (streaming,) = body(subscribe(version=VERSION, events=[EventKind.DELETED], folders=folders))
    assert streaming.items() == []
    assert [part.tag for part in streaming] == [f"{T}FolderIds", f"{T}EventTypes"]
    inbox, calendar, by_id = streaming[0]
    assert (inbox.tag, inbox.get("Id"), len(inbox)) == (f"{T}DistinguishedFolderId", "inbox", 0)
    assert calendar.findtext(f"{T}Mailbox/{T}EmailAddress") == "ben@example.org"
    assert (by_id.tag, by_id.get("Id")) == (f"{T}FolderId", "AAMk=")


def test_subscribe_without_events_or_folders_is_rejected() -> None:
    with pytest.raises(ValueError, match="requires an event"):
        subscribe(version=VERSION, events=[])
    with pytest.raises(ValueError, match="requires a folder"):
        subscribe(version=VERSION, events=[EventKind.CREATED], folders=[])
    with pytest.raises(ValueError, match="SurpriseEvent"):
        subscribe(version=VERSION, events=["SurpriseEvent"])  # type: ignore[list-item]


def test_folder_requires_a_name_or_an_id() -> None:
    with pytest.raises(ValueError, match="name or the id"):
        FolderRef()
    with pytest.raises(ValueError, match="name or the id"):
        FolderRef("inbox", folder_id="x")
    with pytest.raises(ValueError, match="already identifies"):
        FolderRef(folder_id="x", mailbox="anna@example.org")


def test_get_streaming_events() -> None:
    request = body(get_streaming_events(["a", "b"], minutes=30, version=VERSION, impersonate=ANNA))
    assert request.tag == f"{M}GetStreamingEvents"
    assert [part.tag for part in request] == [f"{M}SubscriptionIds", f"{M}ConnectionTimeout"]
    assert [(id_.tag, id_.text) for id_ in request[0]] == [(f"{T}SubscriptionId", x) for x in "ab"]
    assert request[1].text == "30"


@pytest.mark.parametrize("minutes", [-1, 0, 31, 1800])
def test_connection_timeout_is_1_to_30_minutes(minutes: int) -> None:
    with pytest.raises(ValueError, match="1 to 30 minutes"):
        get_streaming_events(["a"], minutes=minutes, version=VERSION)


def test_stream_without_subscriptions_is_rejected() -> None:
    with pytest.raises(ValueError, match="requires a subscription"):
        get_streaming_events([], minutes=30, version=VERSION)


def test_unsubscribe() -> None:
    request = body(unsubscribe("a", version=VERSION, impersonate=ANNA))
    assert (request.tag, request[0].tag, request[0].text) == (f"{M}Unsubscribe", f"{M}SubscriptionId", "a")


@xsd_available
@settings(deadline=None)
@given(
    st.lists(st.sampled_from(EventKind), min_size=1),
    st.none()
    | st.lists(
        st.sampled_from(["inbox", "calendar", "msgfolderroot"]).map(FolderRef)
        | _TEXT.map(lambda id_: FolderRef(folder_id=id_))
        | _TEXT.map(lambda owner: FolderRef("inbox", mailbox=owner)),
        min_size=1,
    ),
)
def test_subscribe_matches_the_schema(events: list[EventKind], folders: list[FolderRef] | None) -> None:
    validate(body(subscribe(version=VERSION, impersonate=ANNA, events=events, folders=folders)))


@xsd_available
@settings(deadline=None)
@given(st.lists(_TEXT, min_size=1, max_size=200), st.integers(1, 30))
def test_get_streaming_events_and_unsubscribe_match_the_schema(ids: list[str], minutes: int) -> None:
    validate(body(get_streaming_events(ids, minutes=minutes, version=VERSION)))
    validate(body(unsubscribe(ids[0], version=VERSION)))


# --- replies


def test_read_subscribe() -> None:
    assert read_subscribe(subscribed("JgBz")) == "JgBz"


def test_failed_subscribe() -> None:
    with pytest.raises(ExchangeError) as caught:
        read_subscribe(refused("Subscribe", "ErrorNonExistentMailbox", "No mailbox has this address."))
    assert caught.value.failure == Failure(
        code="ErrorNonExistentMailbox", text="No mailbox has this address."
    )
    assert caught.value.failure.verdict is Verdict.SUSPEND


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (fault("ErrorImpersonateUserDenied"), "ErrorImpersonateUserDenied"),
        (subscribed(""), "UnexpectedReply"),
        (reply("Subscribe", ""), "UnexpectedReply"),
        (envelope("<x/>"), "UnexpectedReply"),
        (b"<html></html>", "NotSoap"),
    ],
)
def test_invalid_subscribe_replies(content: bytes, code: str) -> None:
    with pytest.raises(ExchangeError) as caught:
        read_subscribe(content)
    assert caught.value.failure.code == code


def test_read_unsubscribe() -> None:
    done = '<m:UnsubscribeResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    read_unsubscribe(reply("Unsubscribe", f"{done}</m:UnsubscribeResponseMessage>"))
    with pytest.raises(ExchangeError) as caught:
        read_unsubscribe(refused("Unsubscribe", "ErrorSubscriptionNotFound"))
    assert caught.value.failure.verdict is Verdict.RESUBSCRIBE
