from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from listener.simulator.http import HttpRequest
from listener.simulator.requests import Call, MalformedRequest, parse_call, parse_xml
from tests.simulator.client import envelope, stream_body


def test_parse_call() -> None:
    call = parse_call(envelope(stream_body(["a", "b"]), impersonate="alice@contoso.example"))
    assert call.operation == "GetStreamingEvents"
    assert call.version == "Exchange2013_SP1"
    assert call.impersonated == "alice@contoso.example"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<a/>",
        b"not xml",
        b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body/></s:Envelope>',
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    ],
)
def test_malformed_requests(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_call(body)


def test_document_type_definitions_are_refused() -> None:
    with pytest.raises(MalformedRequest, match="DTD"):
        parse_xml(b'<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><a/>')


@given(st.binary())
@example(envelope("<m:Subscribe/>")[:-5])
def test_any_bytes_are_parsed_or_malformed(body: bytes) -> None:
    with suppress(MalformedRequest):
        assert isinstance(parse_call(body), Call)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-BackEndOverrideCookie=abc==", "abc=="),
        ("a=b; X-BackEndOverrideCookie=abc; c=d", "abc"),
        ('X-BackEndOverrideCookie="abc"', "abc"),
        ("X-BackEndCookie=abc", None),
        ("", None),
    ],
)
def test_cookies(header: str, value: str | None) -> None:
    request = HttpRequest("POST", "/", {"cookie": header}, b"", "me")
    assert request.cookie("X-BackEndOverrideCookie") == value
