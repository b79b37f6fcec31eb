"""Request envelopes, bodies, faults and response messages."""

import pytest
from lxml import etree

from listener.ews.codes import ExchangeError, Failure, Verdict
from listener.ews.soap import (
    Impersonation,
    ImpersonationKind,
    build,
    envelope,
    message_failure,
    only_message,
    parse,
    response_messages,
)
from tests.ews.samples import DECLARATION, SOAP, TYPES, back_off, fault, refused, reply, subscribed
from tests.ews.samples import envelope as sample
from tests.xsd import validate, xsd_available

KINDS: list[ImpersonationKind] = ["PrincipalName", "SID", "PrimarySmtpAddress", "SmtpAddress"]


def failure(content: bytes) -> Failure:
    with pytest.raises(ExchangeError) as caught:
        parse(content)
    return caught.value.failure


# --- requests


def request(kind: ImpersonationKind | None = None) -> etree._Element:
    impersonate = None if kind is None else Impersonation(kind, "anna@example.org")
    body = build("m:Unsubscribe", build("m:SubscriptionId", "ä<&"))
    return etree.fromstring(envelope(body, version="Exchange2013_SP1", impersonate=impersonate))


def test_envelope_without_impersonation() -> None:
    root = request()
    assert root.tag == f"{{{SOAP}}}Envelope"
    assert [part.tag for part in root] == [f"{{{SOAP}}}Header", f"{{{SOAP}}}Body"]
    (version,) = root[0]
    assert version.tag == f"{{{TYPES}}}RequestServerVersion"
    assert version.get("Version") == "Exchange2013_SP1"
    assert root[1][0][0].text == "ä<&"


@pytest.mark.parametrize("kind", KINDS)
def test_impersonation(kind: ImpersonationKind) -> None:
    impersonation = request(kind)[0][1]
    assert impersonation.tag == f"{{{TYPES}}}ExchangeImpersonation"
    assert impersonation[0].tag == f"{{{TYPES}}}ConnectingSID"
    assert [(sid.tag, sid.text) for sid in impersonation[0]] == [(f"{{{TYPES}}}{kind}", "anna@example.org")]


@xsd_available
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_headers_are_valid(kind: ImpersonationKind | None) -> None:
    for header in request(kind)[0]:
        validate(header)


def test_only_used_prefixes_are_declared() -> None:
    assert set(request().nsmap) == {"soap", "m", "t"}


def test_forbidden_characters_in_requests_are_rejected() -> None:
    with pytest.raises(ValueError, match="XML"):
        build("m:SubscriptionId", "\x00")


# --- replies


@pytest.mark.parametrize("prefix", ["", "s", "soap11", "SOAP-ENV"])
def test_body_with_any_prefix(prefix: str) -> None:
    assert parse(DECLARATION + sample("<x>1</x>", prefix=prefix)).text == "1"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"<html><head><title>Sign in</title></head></html>", "NotSoap"),
        (b"<a/>", "NotSoap"),
        (f'<s:Envelope xmlns:s="{SOAP}"/>'.encode(), "NotSoap"),
        (sample(""), "UnexpectedReply"),
        (sample("<x>&nbsp;</x>"), "MalformedXml"),
        (b"<!DOCTYPE x>" + sample("<x/>"), "ForbiddenXml"),
    ],
)
def test_invalid_soap(content: bytes, code: str) -> None:
    assert failure(content).code == code


def test_xhtml_is_reported_with_its_title() -> None:
    page = b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>Off</title></head></html>'
    assert failure(page) == Failure(code="NotSoap", text="an HTML page: Off")


# --- faults


def test_fault_with_code_and_wait() -> None:
    said = failure(fault(text="Busy.", values=back_off(297749)))
    assert said == Failure(code="ErrorServerBusy", text="Busy.", wait=297.749)
    assert said.verdict is Verdict.WAIT


@pytest.mark.parametrize("namespace", [TYPES, "urn:other"])
def test_code_in_any_namespace(namespace: str) -> None:
    said = failure(fault("ErrorImpersonateUserDenied", faultcode="s:Client", namespace=namespace))
    assert said.code == "ErrorImpersonateUserDenied"


@pytest.mark.parametrize(
    ("faultcode", "code"),
    [("a:ErrorInvalidServerVersion", "ErrorInvalidServerVersion"), ("Server", "Server"), ("", "SoapFault")],
)
def test_code_only_in_the_faultcode(faultcode: str, code: str) -> None:
    assert failure(fault(None, faultcode=faultcode)).code == code


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "9" * 40])
def test_invalid_wait_is_ignored(value: str) -> None:
    assert failure(fault(values=back_off(value))).wait is None


def test_wait_of_zero() -> None:
    assert failure(fault("ErrorExceededConnectionCount", values=back_off(0))).wait == 0.0


def test_other_values_are_not_a_wait() -> None:
    values = back_off(5).replace("BackOffMilliseconds", "BudgetMilliseconds")
    assert failure(fault(values=values)).wait is None


def test_schema_violation_is_part_of_the_text() -> None:
    violation = (
        f'<t:MessageXml xmlns:t="{TYPES}"><t:Violation>The element is invalid.</t:Violation></t:MessageXml>'
    )
    said = failure(fault("ErrorSchemaValidation", text="The request failed.", values=violation))
    assert said.text == "The request failed. (The element is invalid.)"


# --- response messages


def test_successful_message() -> None:
    (message,) = response_messages(parse(subscribed()))
    assert message_failure(message) is None


def test_error_message() -> None:
    xml = back_off(4000).replace("t:MessageXml", "m:MessageXml")
    with pytest.raises(ExchangeError) as caught:
        only_message(refused("Subscribe", "ErrorExceededSubscriptionCount", "Too\n many.", xml))
    assert caught.value.failure == Failure(code="ErrorExceededSubscriptionCount", text="Too many.", wait=4.0)


@pytest.mark.parametrize(
    ("attributes", "code", "expected"),
    [
        ('ResponseClass="Success"', "NoError", None),
        ('ResponseClass="Warning"', "ErrorBatchProcessingStopped", None),
        ('ResponseClass="Error"', "ErrorAccessDenied", "ErrorAccessDenied"),
        ('ResponseClass="Error"', "", "UnexpectedReply"),
        ('ResponseClass="Success"', "", None),
        ("", "ErrorAccessDenied", "ErrorAccessDenied"),
        ("", "NoError", None),
    ],
)
def test_messages_that_are_failures(attributes: str, code: str, expected: str | None) -> None:
    inside = f"<m:ResponseCode>{code}</m:ResponseCode>" if code else ""
    content = reply(
        "Unsubscribe", f"<m:UnsubscribeResponseMessage {attributes}>{inside}</m:UnsubscribeResponseMessage>"
    )
    said = message_failure(response_messages(parse(content))[0])
    assert (said and said.code) == expected


def test_reply_without_messages() -> None:
    with pytest.raises(ExchangeError) as caught:
        response_messages(parse(reply("Subscribe", "")))
    assert caught.value.failure.code == "UnexpectedReply"
