"""Autodiscover: GetUserSettings over SOAP, and POX."""

import pytest
from lxml import etree

from listener.ews.autodiscover import (
    POX_PATH,
    Redirect,
    UserSettings,
    candidate_urls,
    get_user_settings,
    pox_request,
    read_pox,
    read_user_settings,
)
from listener.ews.codes import ExchangeError, Failure
from tests.ews.samples import envelope, fault

A = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
WSA = "http://www.w3.org/2005/08/addressing"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
URL = "https://mail.example.org/EWS/Exchange.asmx"
INSIDE = "https://cas1.corp.example.org/EWS/Exchange.asmx"


def failure_of(call: object, *args: object) -> Failure:
    with pytest.raises(ExchangeError) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.failure


# --- SOAP


def user(
    code: str = "NoError", *, target: str = "", message: str = "", errors: str = "", **settings: str
) -> str:
    values = "".join(
        f'<UserSetting i:type="StringSetting"><Name>{name}</Name><Value>{value}</Value></UserSetting>'
        for name, value in settings.items()
    )
    redirect = f"<RedirectTarget>{target}</RedirectTarget>" if target else '<RedirectTarget i:nil="true"/>'
    return (
        f"<UserResponse><ErrorCode>{code}</ErrorCode><ErrorMessage>{message}</ErrorMessage>{redirect}"
        f"<UserSettingErrors>{errors}</UserSettingErrors><UserSettings>{values}</UserSettings></UserResponse>"
    )


def setting_error(name: str, code: str = "SettingIsNotAvailable") -> str:
    return (
        f"<UserSettingError><ErrorCode>{code}</ErrorCode><ErrorMessage>No {name}.</ErrorMessage>"
        f"<SettingName>{name}</SettingName></UserSettingError>"
    )


def answer(*users: str, code: str = "NoError", message: str = "") -> bytes:
    return envelope(
        f'<GetUserSettingsResponseMessage xmlns="{A}" xmlns:i="{XSI}"><Response><ErrorCode>{code}</ErrorCode>'
        f"<ErrorMessage>{message}</ErrorMessage><UserResponses>{''.join(users)}</UserResponses></Response>"
        "</GetUserSettingsResponseMessage>"
    )


def test_request() -> None:
    to = "https://example.org/autodiscover/autodiscover.svc"
    root = etree.fromstring(get_user_settings(["a@x.org", "b@x.org"], version="Exchange2013_SP1", to_url=to))
    header, body = root
    assert [(h.tag, h.text) for h in header] == [
        (f"{{{A}}}RequestedServerVersion", "Exchange2013_SP1"),
        (f"{{{WSA}}}Action", f"{A}/Autodiscover/GetUserSettings"),
        (f"{{{WSA}}}To", to),
    ]
    (message,) = body
    assert message.tag == f"{{{A}}}GetUserSettingsRequestMessage"
    a = {"a": A}
    assert [m.text for m in message.findall("a:Request/a:Users/a:User/a:Mailbox", a)] == [
        "a@x.org",
        "b@x.org",
    ]
    assert [s.text for s in message.findall("a:Request/a:RequestedSettings/a:Setting", a)] == [
        "ExternalEwsUrl",
        "InternalEwsUrl",
        "GroupingInformation",
    ]


def test_request_without_mailboxes_is_rejected() -> None:
    with pytest.raises(ValueError, match="requires a mailbox"):
        get_user_settings([], version="Exchange2013_SP1", to_url=URL)


def test_each_mailbox_has_its_answer_in_order() -> None:
    content = answer(
        user(ExternalEwsUrl=URL, InternalEwsUrl=INSIDE, GroupingInformation="Default-First-Site"),
        user(ExternalEwsUrl=URL, errors=setting_error("GroupingInformation")),
        user("InvalidUser", message="No such user."),
        user("RedirectAddress", target="dora@tenant.example.net"),
        user("RedirectUrl", target="https://other.example.org/autodiscover/autodiscover.svc"),
        user("RedirectUrl", target="http://other.example.org/autodiscover/autodiscover.svc"),
        user(errors=setting_error("GroupingInformation") + setting_error("ExternalEwsUrl")),
        user(),
    )
    answers = read_user_settings(content, list("hgfedcba"))
    assert list(answers) == list("hgfedcba")
    assert list(answers.values()) == [
        UserSettings(
            external_ews_url=URL, internal_ews_url=INSIDE, grouping_information="Default-First-Site"
        ),
        UserSettings(external_ews_url=URL),
        Failure(code="InvalidUser", text="No such user."),
        Redirect(address="dora@tenant.example.net"),
        Redirect(url="https://other.example.org/autodiscover/autodiscover.svc"),
        Failure(
            code="InsecureRedirect",
            text="Autodiscover redirects to http://other.example.org/autodiscover/autodiscover.svc",
        ),
        Failure(code="SettingIsNotAvailable", text="No GroupingInformation."),
        Failure(code="SettingIsNotAvailable", text="Autodiscover returned no EWS URL"),
    ]


def test_internal_url_alone_is_sufficient() -> None:
    answers = read_user_settings(answer(user(InternalEwsUrl=INSIDE)), ["a"])
    assert answers == {"a": UserSettings(internal_ews_url=INSIDE)}


def test_error_of_the_whole_request() -> None:
    said = failure_of(read_user_settings, answer(code="ServerBusy", message="Later."), ["a"])
    assert said == Failure(code="ServerBusy", text="Later.")


def test_redirect_without_a_target_is_a_failure() -> None:
    assert read_user_settings(answer(user("RedirectUrl")), ["a"]) == {"a": Failure(code="RedirectUrl")}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (answer(user(ExternalEwsUrl=URL)), "UnexpectedReply"),  # one answer for two mailboxes
        (answer(), "UnexpectedReply"),
        (envelope("<x/>"), "UnexpectedReply"),
        (fault("ErrorInternalServerError"), "ErrorInternalServerError"),
        (b"<html><title>404</title></html>", "NotSoap"),
    ],
)
def test_unexpected_replies(content: bytes, code: str) -> None:
    assert failure_of(read_user_settings, content, ["a", "b"]).code == code


# --- POX

REQUEST = "http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"
OUTER = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"
INNER = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"


def pox(account: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="utf-8"?><Autodiscover xmlns="{OUTER}"><Response xmlns="{INNER}">'
        "<User><DisplayName>Anna</DisplayName></User><Account><AccountType>email</AccountType>"
        f"{account}</Account></Response></Autodiscover>"
    ).encode()


def protocol(kind: str, inside: str) -> str:
    return f"<Protocol><Type>{kind}</Type><Server>s</Server>{inside}</Protocol>"


def test_pox_request() -> None:
    root = etree.fromstring(pox_request("anna@example.org"))
    assert root.tag == f"{{{REQUEST}}}Autodiscover"
    assert [(part.tag, part.text) for part in root[0]] == [
        (f"{{{REQUEST}}}EMailAddress", "anna@example.org"),
        (f"{{{REQUEST}}}AcceptableResponseSchema", INNER),
    ]


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        (protocol("EXPR", f"<EwsUrl>{URL}</EwsUrl>"), UserSettings(external_ews_url=URL)),
        (protocol("EXHTTP", f"<EwsUrl>{URL}</EwsUrl>"), UserSettings(external_ews_url=URL)),
        (protocol("EXCH", f"<EwsUrl>{INSIDE}</EwsUrl>"), UserSettings(internal_ews_url=INSIDE)),
        (protocol("WEB", f"<EwsUrl>{URL}</EwsUrl>"), UserSettings(external_ews_url=URL)),
        (protocol("EXPR", f"<ASUrl>{URL}</ASUrl>"), UserSettings(external_ews_url=URL)),
        (
            protocol("EXCH", f"<ASUrl>x</ASUrl><EwsUrl>{INSIDE}</EwsUrl>")
            + protocol("EXPR", f"<ASUrl>y</ASUrl><EwsUrl>{URL}</EwsUrl>"),
            UserSettings(external_ews_url=URL, internal_ews_url=INSIDE),
        ),
        (
            protocol(
                "WEB",
                f"<External><Protocol><Type>EXPR</Type><ASUrl>{URL}</ASUrl></Protocol></External>"
                f"<Internal><Protocol><Type>EXCH</Type><ASUrl>{INSIDE}</ASUrl></Protocol></Internal>",
            ),
            UserSettings(external_ews_url=URL, internal_ews_url=INSIDE),
        ),
        (
            protocol("EXPR", f"<EwsUrl>{URL}</EwsUrl><GroupingInformation>Site-1</GroupingInformation>"),
            UserSettings(external_ews_url=URL, grouping_information="Site-1"),
        ),
        (
            "<Action>redirectAddr</Action><RedirectAddr>a@b.example</RedirectAddr>",
            Redirect(address="a@b.example"),
        ),
        (
            "<Action>redirectUrl</Action><RedirectUrl>https://b.example/x</RedirectUrl>",
            Redirect(url="https://b.example/x"),
        ),
    ],
)
def test_pox_answers(account: str, expected: UserSettings | Redirect) -> None:
    assert read_pox(pox(account)) == expected


@pytest.mark.parametrize(
    ("account", "code"),
    [
        ("<Action>settings</Action>", "SettingIsNotAvailable"),
        ("<Action>redirectUrl</Action><RedirectUrl>http://b.example/x</RedirectUrl>", "InsecureRedirect"),
        ('<Error Time="09:30" Id="1"><ErrorCode>603</ErrorCode><Message/></Error>', "Pox603"),
    ],
)
def test_pox_answers_without_a_url(account: str, code: str) -> None:
    assert failure_of(read_pox, pox(account)).code == code


def test_pox_error_without_an_account() -> None:
    content = (
        f'<Autodiscover xmlns="{OUTER}"><Response><Error Time="09:30:00" Id="1"><ErrorCode>500</ErrorCode>'
        "<Message>The email address can't be found.</Message><DebugData/></Error></Response></Autodiscover>"
    ).encode()
    assert failure_of(read_pox, content) == Failure(code="Pox500", text="The email address can't be found.")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"<html><title>404</title></html>", "NotSoap"),
        (b"<!DOCTYPE x><Autodiscover/>", "ForbiddenXml"),
        (b"<Autodiscover/>", "UnexpectedReply"),
        (b"<Autodiscover><Response/></Autodiscover>", "UnexpectedReply"),
        (b"<clientConfig><Response/></clientConfig>", "UnexpectedReply"),
    ],
)
def test_invalid_pox_answers(content: bytes, code: str) -> None:
    assert failure_of(read_pox, content).code == code


def test_candidate_urls() -> None:
    assert candidate_urls("Example.ORG.") == [
        "https://example.org/autodiscover/autodiscover.svc",
        "https://autodiscover.example.org/autodiscover/autodiscover.svc",
    ]
    assert candidate_urls("example.org", POX_PATH)[0] == "https://example.org/autodiscover/autodiscover.xml"
