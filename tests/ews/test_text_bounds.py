"""The parsers limit the length of texts from servers."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.ews import values
from listener.ews.autodiscover import Redirect, UserSettings, read_pox, read_user_settings
from listener.ews.batch import TEXT_LENGTH
from listener.ews.codes import ExchangeError, Failure
from listener.ews.directory import read_expand_dl
from listener.ews.folders import read_find_folder
from listener.ews.http import http_failure
from listener.ews.stream import StreamParser
from listener.ews.subscription import read_subscribe
from listener.ews.xml import excerpt

LONG = "x" * 3_000_000
SOAP = "http://schemas.xmlsoap.org/soap/envelope/"


@given(st.text())
def test_response_code_has_a_limit_and_an_alphabet(said: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.]{0,100}", values.response_code(said))
    assert bool(values.response_code(said)) == bool(said)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ErrorServerBusy", "ErrorServerBusy"),
        ("Error\x1b[31mRed\n", "Error_31mRed_"),
        ("Fehler größer", "Fehler_gr_er"),
        (LONG, "x" * 100),
    ],
)
def test_codes(said: str, code: str) -> None:
    assert values.response_code(said) == code


@pytest.mark.parametrize("said", [None, "", " ", "\t\n", "x" * (values.ID_LENGTH + 1), LONG])
def test_invalid_identifiers(said: str | None) -> None:
    assert values.identifier(said) is None


def test_valid_identifier_is_unchanged() -> None:
    assert values.identifier(" AAMkAD/+= ") == " AAMkAD/+= "


def envelope(body: str) -> bytes:
    return f'<s:Envelope xmlns:s="{SOAP}"><s:Body>{body}</s:Body></s:Envelope>'.encode()


def message(content: str, response_class: str = "Error") -> bytes:
    part = f'<SubscribeResponseMessage ResponseClass="{response_class}">{content}</SubscribeResponseMessage>'
    return envelope(f"<SubscribeResponse><ResponseMessages>{part}</ResponseMessages></SubscribeResponse>")


def is_short(failure: Failure) -> bool:
    return len(failure.code) <= values.CODE_LENGTH and len(failure.text) <= 600 and failure.text.isprintable()


CODES = [
    f"<ResponseCode>{LONG}</ResponseCode><MessageText>{LONG}</MessageText>",
    f"<ResponseCode>&#10;Error &#9;{LONG}</ResponseCode>",
    "<ResponseCode>Error\u202eSnart\u009b1m</ResponseCode><MessageText>\u202e\u0085\u009b</MessageText>",
]
FAULTS = [
    f"<s:Fault><faultcode>{LONG}</faultcode><faultstring>{LONG}</faultstring></s:Fault>",
    f"<s:Fault><faultcode>a:{LONG}</faultcode></s:Fault>",
    f"<s:Fault><faultcode/><detail><ResponseCode>{LONG}</ResponseCode><Message>{LONG}</Message></detail></s:Fault>",
]


@pytest.mark.parametrize(
    "content", [*map(message, CODES), *map(envelope, FAULTS), envelope(f"<{'y' * 40_000}/>")]
)
def test_failures_of_requests_and_streams(content: bytes) -> None:
    with pytest.raises(ExchangeError) as caught:
        read_subscribe(content)
    assert is_short(caught.value.failure)
    [signal] = StreamParser().feed(content)
    assert isinstance(signal, Failure)
    assert is_short(signal)
    assert is_short(http_failure(500, {}, content, datetime.now(UTC)))


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ms-diagnostics": LONG},
        {"x-ews-policy-reason": LONG},
        {"location": "https://x.example/" + LONG},
        {"www-authenticate": ", ".join(f"Scheme{n}" for n in range(10_000))},
        {"www-authenticate": "y" * 100_000},
        {"www-authenticate": "Negotiate" + " " * 100_000 + "="},
    ],
)
@pytest.mark.parametrize("status", [302, 401, 403, 500])
def test_failures_with_long_headers(headers: dict[str, str], status: int) -> None:
    failure = http_failure(status, headers, b"x" * 300_000, datetime.now(UTC))
    assert is_short(failure)
    assert failure.location is None


def user(content: str) -> bytes:
    return envelope(
        "<M><Response><ErrorCode>NoError</ErrorCode><UserResponses><UserResponse>"
        f"{content}</UserResponse></UserResponses></Response></M>"
    )


def setting(name: str, value: str) -> str:
    return f"<UserSetting><Name>{name}</Name><Value>{value}</Value></UserSetting>"


@pytest.mark.parametrize(
    "content",
    [
        f"<ErrorCode>{LONG}</ErrorCode><ErrorMessage>{LONG}</ErrorMessage>",
        f"<ErrorCode>RedirectUrl</ErrorCode><RedirectTarget>https://{LONG}</RedirectTarget>",
        f"<ErrorCode>RedirectAddress</ErrorCode><RedirectTarget>{LONG}</RedirectTarget>",
        f"<UserSettings>{setting('ExternalEwsUrl', 'https://' + LONG)}</UserSettings>",
    ],
)
def test_autodiscover_answers(content: str) -> None:
    answer = read_user_settings(user(content), ["a@x.example"])["a@x.example"]
    assert isinstance(answer, Failure)
    assert is_short(answer)


def test_grouping_information_is_shortened() -> None:
    settings_xml = setting("ExternalEwsUrl", "https://x.example/EWS") + setting("GroupingInformation", LONG)
    answer = read_user_settings(user(f"<UserSettings>{settings_xml}</UserSettings>"), ["a"])["a"]
    assert isinstance(answer, UserSettings)
    assert answer.grouping_information == excerpt(LONG)


@pytest.mark.parametrize(
    "content",
    [
        f"<Error><ErrorCode>{LONG}</ErrorCode><Message>{LONG}</Message></Error>",
        f"<Account><RedirectAddr>{LONG}</RedirectAddr></Account>",
        f"<Account><RedirectUrl>https://{LONG}</RedirectUrl></Account>",
    ],
)
def test_pox_answers(content: str) -> None:
    document = f"<Autodiscover><Response>{content}</Response></Autodiscover>".encode()
    with pytest.raises(ExchangeError) as caught:
        assert not isinstance(read_pox(document), Redirect | UserSettings)
    assert is_short(caught.value.failure)


def test_subscription_id_has_a_limit() -> None:
    with pytest.raises(ExchangeError) as caught:
        read_subscribe(
            message(f"<ResponseCode>NoError</ResponseCode><SubscriptionId>{LONG}</SubscriptionId>", "Success")
        )
    assert caught.value.failure.code == "UnexpectedReply"


def test_names_of_group_members_have_a_limit() -> None:
    member = f"<Mailbox><Name>{LONG}</Name><EmailAddress>{LONG}@x.example</EmailAddress></Mailbox>"
    content = message(f"<ResponseCode>NoError</ResponseCode><DLExpansion>{member}</DLExpansion>", "Success")
    [found] = read_expand_dl(content).members
    assert (found.address, found.name) == ("", LONG[:TEXT_LENGTH])


def test_folder_names_have_a_limit() -> None:
    folder = f'<Folder><FolderId Id="F" ChangeKey="{"k" * 5000}"/><DisplayName>{LONG}</DisplayName></Folder>'
    root = f'<RootFolder IncludesLastItemInRange="true"><Folders>{folder}</Folders></RootFolder>'
    [found] = read_find_folder(message(f"<ResponseCode>NoError</ResponseCode>{root}", "Success")).found
    assert (found.change_key, len(found.display_name or "")) == (None, TEXT_LENGTH)
