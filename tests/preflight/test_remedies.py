"""Remedies: every code has a cause and a fix, and the URL and the server's text select more exact ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.ews.codes import NO_TLS, ONLY_TLS, VERDICTS, Failure
from listener.preflight.remedies import DIAGNOSES, REMEDIES, remedy

URL = "https://mail.example.com/EWS/Exchange.asmx"


@pytest.mark.parametrize("code", sorted(VERDICTS))
def test_each_code_has_a_cause_and_a_fix(code: str) -> None:
    cause, fix = remedy(Failure(code=code), url=URL)
    assert cause.endswith(".")
    assert fix
    assert "HOST" not in cause + fix
    assert "`" not in cause + fix


def test_a_remedy_names_this_mailbox_and_this_account() -> None:
    cause, fix = remedy(
        Failure(code="ErrorFolderNotFound"), mailbox="anna@example.org", account="svc@example.org"
    )
    assert "permission" in cause
    assert fix == (
        "correct [subscription] folders, or grant permission: "
        "Add-MailboxFolderPermission anna@example.org:\\FOLDER -User svc@example.org -AccessRights Reviewer"
    )


def test_only_codes_with_a_verdict_have_a_remedy() -> None:
    assert set(REMEDIES) - set(VERDICTS) <= {"ErrorItemNotFound"}


# --- unknown codes


def test_an_unknown_code_is_reported_as_unknown_with_the_text_of_the_server() -> None:
    cause, fix = remedy(Failure(code="ErrorMailboxIsPurple", text="The mailbox is purple."), url=URL)
    assert cause == (
        "The code ErrorMailboxIsPurple is not known to this version of ews-listener. The server said: "
        '"The mailbox is purple.".'
    )
    assert "look for ErrorMailboxIsPurple" in fix
    cause, fix = remedy(Failure(code="Http418"), url=URL)
    assert cause == "HTTP status 418 is not known as a response of EWS. The server gave no text."
    assert "proxy" in fix


@given(st.from_regex(r"\A(Error|Http|AADSTS)?\w{1,40}\Z"), st.text(max_size=500))
def test_the_fix_of_an_unknown_code_is_never_to_wait(code: str, text: str) -> None:
    failure = Failure(code=code, text=text)
    cause, fix = remedy(failure)
    if (
        code not in VERDICTS
        and code not in REMEDIES
        and not any(p.search(f"{code}: {text}") for p, _ in DIAGNOSES)
    ):
        assert "is not known" in cause
        assert code.removeprefix("Http") in cause
        assert "wait" not in fix.lower()
        assert len(cause) < 500


# --- the URL


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("Http404", "an HTML page: Not Found"),
        ("Http405", ""),
        ("Http302", "redirected to https://mail.example.com/owa/auth/logon.aspx"),
        ("NotSoap", "an HTML page: Outlook"),
        ("Http401", "the server offers Basic"),
        ("SchemeNotOffered", ""),
        ("ConnectionReset", ""),
        ("Http500", ""),
    ],
)
@pytest.mark.parametrize(
    "url",
    ["https://mail.example.com/owa", "https://mail.example.com", "https://mail.example.com/ews/services.wsdl", f"{URL}/"],  # noqa: E501
)  # fmt: skip
def test_a_wrong_url_is_the_cause_for_each_response(code: str, text: str, url: str) -> None:
    cause, fix = remedy(Failure(code=code, text=text), url=url)
    assert cause.startswith("The URL is probably wrong: ")
    assert fix == f"set ews_url to {URL}"


def test_a_wrong_url_is_the_cause_of_an_unknown_code() -> None:
    for code in ("ErrorInvalidRequest", "Http418"):
        cause, _ = remedy(
            Failure(code=code), url="https://mail.example.com/EWS/Exchange.asmx", autodiscover=True
        )
        assert "not an Autodiscover endpoint" in cause


def test_the_fix_names_the_distribution_group() -> None:
    _, fix = remedy(Failure(code="ErrorNameResolutionNoResults"), mailbox="sales@b.c")
    assert "Set-DistributionGroup sales@b.c " in fix


def test_a_wrong_autodiscover_url_is_the_cause() -> None:
    cause, fix = remedy(Failure(code="Http404"), url=URL, autodiscover=True)
    assert "not an Autodiscover endpoint" in cause
    assert fix == "set autodiscover_url to https://mail.example.com/autodiscover/autodiscover.svc"


def test_an_error_of_exchange_for_a_mailbox_is_not_caused_by_the_url() -> None:
    cause, _ = remedy(Failure(code="ErrorImpersonateUserDenied"), url="https://mail.example.com/custom")
    assert "URL" not in cause


@pytest.mark.parametrize(
    ("url", "code", "text", "cause", "fix"),
    [
        ("http://h.example:8080/EWS/Exchange.asmx", "Http400", "an HTML page: 400 The plain HTTP request was sent to HTTPS port", "speaks TLS", "https://"),  # noqa: E501
        ("http://h.example/EWS/Exchange.asmx", "Http400", "Client sent an HTTP request to an HTTPS server.", "speaks TLS", "https://"),  # noqa: E501
        ("http://h.example/EWS/Exchange.asmx", "Http400", "You're speaking plain HTTP to an SSL-enabled server port.", "speaks TLS", "https://"),  # noqa: E501
        ("http://h.example/EWS/Exchange.asmx", "ConnectionReset", f"h.example:80 does not answer in HTTP: {ONLY_TLS}", "speaks TLS", "https://"),  # noqa: E501
        ("http://h.example/EWS/Exchange.asmx", "ConnectionReset", "Server disconnected without sending a response.", "expects TLS", "https://"),  # noqa: E501
        ("https://h.example:8000/EWS/Exchange.asmx", "TlsFailed", f"TLS with h.example:8000 fails: {NO_TLS} (WRONG_VERSION_NUMBER)", "does not speak TLS", "443"),  # noqa: E501
        (URL, "NotSoap", "an HTML page: Outlook Web App - Logon", "A login page answered", "https://mail.example.com/EWS/Exchange.asmx"),
        (URL, "Http302", "redirected to https://sts.example.com/adfs/ls/", "A login page answered", "without its login page"),  # noqa: E501
        (URL, "Http404", "", "mail.example.com has no EWS", "Get-WebServicesVirtualDirectory"),
    ],
)  # fmt: skip
def test_the_response_shows_what_is_wrong_with_the_url(
    url: str, code: str, text: str, cause: str, fix: str
) -> None:
    found = remedy(Failure(code=code, text=text), url=url)
    assert cause in found.cause
    assert fix in found.fix


# --- accounts


def test_the_password_is_the_first_cause_of_a_refused_handshake() -> None:
    cause, fix = remedy(Failure(code="HandshakeRefused"), url=URL)
    for text, order in (
        (cause, ("password", "username", "Extended Protection")),
        (fix, ("[auth] password", "DOMAIN\\name", "ExtendedProtectionTokenChecking")),
    ):
        offsets = [text.index(word) for word in order]
        assert offsets == sorted(offsets)


def test_the_address_of_an_unknown_mailbox_may_not_be_its_primary_address() -> None:
    for code in ("ErrorNonExistentMailbox", "ErrorInvalidSmtpAddress"):
        cause, fix = remedy(Failure(code=code), mailbox="a@b.c")
        assert "primary SMTP address" in cause
        assert "impersonate_by" in fix
        assert "Get-Mailbox a@b.c" in fix


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ErrorInvalidExchangeImpersonationHeaderData", "An application needs the ExchangeImpersonation header."),
        ("Http403", "ExchangeImpersonation SOAP header must be present for this type of OAuth token."),
        ("Http500", "Impersonation header must be present"),
        ("ErrorAccessDenied", "The impersonation header is required."),
        ("Http401", '2000003;reason="missing ExchangeImpersonation header"'),
    ],
)  # fmt: skip
def test_an_application_must_impersonate(code: str, text: str) -> None:
    cause, fix = remedy(Failure(code=code, text=text), url=URL)
    assert "an application, which has no mailbox of its own" in cause
    assert 'access = "impersonation"' in fix


def test_denied_impersonation_is_a_problem_of_the_scope() -> None:
    text = "The account does not have permission to impersonate the requested user."
    cause, _ = remedy(Failure(code="ErrorImpersonateUserDenied", text=text), url=URL)
    assert "outside its scope" in cause


# --- network, TLS, proxy and Kerberos


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("TlsFailed", "the server's certificate is not trusted: certificate has expired", "has expired"),
        ("TlsFailed", "the server's certificate is not trusted: Hostname mismatch, certificate is not valid for 'x'", "another hostname than mail.example.com"),  # noqa: E501
        ("TlsFailed", "the server's certificate is not trusted: unable to get local issuer certificate", "authority"),
        ("TlsFailed", "the server's certificate is not trusted: self-signed certificate", "authority"),
        ("TlsFailed", "TLS with h:1 fails: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol", "does not speak TLS"),  # noqa: E501
        ("TlsFailed", "TLS with h:1 fails: [SSL: UNSUPPORTED_PROTOCOL] unsupported protocol", "TLS version"),
        ("TlsFailed", "TLS with h:1 fails: [SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert", "TLS version"),
        ("TlsFailed", "TLS with h:1 fails: [SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure", "cipher"),  # noqa: E501
        ("TlsFailed", "TLS with h:1 fails: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] required", "client certificate"),
        ("ConnectFailed", "the proxy p:1 does not accept a connection: Connection refused", "proxy cannot be reached"),  # noqa: E501
        ("NameNotResolved", "the hostname of the proxy p cannot be resolved: x", "proxy cannot be reached"),
        ("ConnectFailed", "the proxy p:1 says: 403 Forbidden", "proxy refuses to connect to mail.example.com"),
        ("Http407", "the proxy p:1 says: 407 Proxy Authentication Required", "proxy"),
        ("KerberosFailed", "svc@EXAMPLE.COM: Cannot find KDC for realm \"EXAMPLE.COM\"", "KDC"),
        ("KerberosFailed", "svc: Cannot contact any KDC for realm 'EXAMPLE.COM'", "KDC"),
        ("KerberosFailed", "svc: Server HTTP/x@E not found in Kerberos database", "HTTP/mail.example.com"),
        ("KerberosFailed", "svc: No Kerberos credentials available", "no Kerberos ticket"),
        ("KerberosFailed", "svc: something else", "gets no Kerberos ticket for mail.example.com"),
        ("ClockSkew", "", "clock"),
        ("Http401", "the server refuses svc; our clock is 9 minutes ahead of the server's", "clock"),
        ("Http401", "the server refuses the access token of x, and a new one too: has the application the right", "no right to EWS"),  # noqa: E501
        ("NameNotResolved", "the hostname of mail.example.com cannot be resolved", "hostname"),
        ("ConnectFailed", "", "mail.example.com"),
        ("PasswordRefused", "the password or the keytab of svc is wrong", "password is wrong"),
    ],
)  # fmt: skip
def test_errors_before_exchange_answers(code: str, text: str, expected: str) -> None:
    cause, fix = remedy(Failure(code=code, text=text), url=URL)
    assert expected in cause
    assert fix
