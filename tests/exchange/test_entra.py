"""Access tokens of Entra ID, of AD FS, and of the managed identity of a machine."""

import gzip
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from cryptography.x509 import load_pem_x509_certificate

from listener.config import OAuthAuth
from listener.config.secrets import Secret
from listener.ews.codes import ExchangeError
from listener.exchange.auth.entra import CLOUDS, Entra, _valid_claims
from tests.exchange.test_refusals import organization, subscribe


async def test_ad_fs_issues_tokens_for_its_own_resources(tmp_path: Path) -> None:
    def change(document: dict[str, dict[str, str]]) -> None:
        login = document["auth"]["authority"].rpartition("/")[0]
        exchange = document["exchange"]["ews_url"].removesuffix("/EWS/Exchange.asmx")
        document["auth"] |= {"authority": f"{login}/adfs", "scope": f"{exchange}/.default"}

    async with organization(tmp_path, change, auth="oauth") as (running, client):
        assert await subscribe(running, client) is None
        assert running.exchange.authenticator.state()["tokens"] == 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The identity endpoint of an Azure virtual machine. Yields the paths that were requested."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            valid_request = self.headers["Metadata"] == "true" and "client_id=unknown" not in self.path
            answer = (
                {"access_token": "T1", "expires_in": "86400"}
                if valid_request
                else {"error": "invalid_request"}
            )
            body = json.dumps(answer).encode()
            self.send_response(200 if valid_request else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name in the base class)
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield paths
        server.shutdown()
        thread.join()


def entra(**auth: object) -> Entra:
    return Entra(OAuthAuth.model_validate({"kind": "oauth"} | auth), ssl.create_default_context())


async def test_a_managed_identity_gets_a_token(machine: list[str]) -> None:
    token = await entra(managed_identity=True).fetch(None)
    assert (token.text, token.lifetime) == ("T1", 86400)
    assert token.refresh == 43200  # msal's rule for tokens with a long lifetime
    await entra(managed_identity=True, client_id="abc", cloud="us-government").fetch(None)
    assert "resource=https%3A%2F%2Foutlook.office365.com" in machine[0]
    assert "client_id=abc" in machine[1]
    assert "resource=https%3A%2F%2Foutlook.office365.us" in machine[1]


async def test_an_unknown_managed_identity_is_refused(machine: list[str]) -> None:
    with pytest.raises(ExchangeError) as caught:
        await entra(managed_identity=True, client_id="unknown").fetch(None)
    assert caught.value.failure.code == "TokenRefused"
    text = "the managed identity of this machine issues no token for unknown: invalid_request"
    assert caught.value.failure.text == text


async def test_an_unreachable_authority_is_a_failure() -> None:
    with pytest.raises(ExchangeError) as caught:
        await entra(client_id="1", client_secret=Secret("x"), authority="https://127.0.0.1:1/t").fetch(None)
    assert caught.value.failure.code == "ConnectFailed"
    assert caught.value.failure.text.startswith("asking for a token: ")


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, "<html>Sign in to the network</html>", "TokenEndpointFailed"),
        (429, "{}", "TokenEndpointFailed"),
        (400, '{"error": "temporarily_unavailable", "error_description": "later"}', "TokenEndpointFailed"),
        (400, '{"error": "invalid_client", "error_description": "MSIS9622: no"}', "TokenRefused"),
        (200, "[]", "TokenEndpointFailed"),
        (200, "[" * 100_000, "TokenEndpointFailed"),
        (200, '{"access_token": 5, "expires_in": 3600}', "TokenEndpointFailed"),
        (200, '{"access_token": "a\\nb", "expires_in": 3600}', "TokenEndpointFailed"),
        (200, '{"access_token": "\\u00fc", "expires_in": 3600}', "TokenEndpointFailed"),
        (200, '{"access_token": "T", "expires_in": 1e999}', "TokenEndpointFailed"),
        (200, '{"access_token": "T", "expires_in": "soon"}', "TokenEndpointFailed"),
        (200, '{"access_token": "T", "expires_in": {}}', "TokenEndpointFailed"),
        (400, '{"error": ["x"]}', "TokenRefused"),
        (400, '{"error": {"x": "y"}, "error_description": [1]}', "TokenRefused"),
    ],
)
async def test_a_faulty_endpoint_is_not_a_refusal(status: int, body: str, code: str) -> None:
    """An HTML page of a proxy must not block the account for hours."""
    with pytest.raises(ExchangeError) as caught:
        await entra_answering(lambda: Page(body.encode()), status, **STRANGE).fetch(None)
    assert caught.value.failure.code == code


STRANGE = {"Content_Type": "application/json; charset=base64", "Date": "Mon, 01 Jan 9" + "9" * 30}


class Page(httpx.AsyncByteStream):
    """A body that repeats forever if it is `endless`, with `pause` seconds after each piece."""

    def __init__(self, body: bytes, *, endless: bool = False, pause: float = 0.0) -> None:
        self.body, self.endless, self.pause, self.sent = body, endless, pause, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent == 0 or self.endless:
            self.sent += 1
            yield self.body
            await trio.sleep(self.pause)

    async def aclose(self) -> None:
        self.endless = False


def entra_answering(page: Callable[[], Page], status: int = 200, **headers: str) -> Entra:
    """Return an Entra whose token endpoint answers with this page."""
    login = "https://login.example/t"
    endpoint = {"token_endpoint": f"{login}/token", "authorization_endpoint": "https://x/y", "issuer": login}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, stream=Page(json.dumps(endpoint).encode()))
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(status, stream=page(), headers=fields)

    auth = {"kind": "oauth", "client_id": "1", "client_secret": Secret("x"), "authority": login}
    transport = httpx.MockTransport(answer)
    return Entra(OAuthAuth.model_validate(auth), ssl.create_default_context(), transport=transport)


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_an_endless_response_is_not_read(status: int, encoding: str) -> None:
    """Only the beginning of an error page is read, which has no meaning here."""
    body = bytes(100_000)
    page = Page(gzip.compress(body) if encoding == "gzip" else body, endless=True)
    with pytest.raises(ExchangeError) as caught:
        await entra_answering(lambda: page, status, content_encoding=encoding).fetch(None)
    codes = {200: "EnvelopeTooLarge", 400: "TokenRefused", 500: "TokenRefused"}
    assert caught.value.failure.code == codes[status]
    assert page.sent < 10
    assert len(caught.value.failure.text) < 600


async def test_a_slow_response_ends_at_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.2  # msal works in a thread meanwhile
    started_at = trio.current_time()
    with pytest.raises(ExchangeError) as caught:
        await entra_answering(lambda: Page(b" ", endless=True, pause=5)).fetch(None)
    assert caught.value.failure.code == "ReadTimeout"
    assert trio.current_time() - started_at < 60


@pytest.mark.parametrize(
    ("fields", "lifetime"),
    [
        ({"expires_in": 3600}, 3600),
        ({"expires_in": "3599"}, 3599),
        ({"expires_in": 1e300}, 7 * 86400),
        ({"expires_in": 10**400}, 3600),
        ({"expires_in": -5}, 1),
    ],
)
async def test_the_lifetime_of_a_token_has_bounds(fields: dict[str, object], lifetime: float) -> None:
    answer = {"access_token": "T1", "token_type": "Bearer"} | fields
    try:
        token = await entra_answering(lambda: Page(json.dumps(answer).encode())).fetch(None)
    except ExchangeError as error:
        assert error.failure.code == "TokenEndpointFailed"  # noqa: PT017  (msal itself may reject the value)
    else:
        assert token.lifetime == lifetime


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "body",
    [
        *("", "[]", "null", '"x"', "5", "{", "[" * 5000, '{"a":' * 5000),
        '{"access_token": "T", "id_token": "garbage", "expires_in": 3600}',
        '{"access_token": "T", "expires_in": []}',
        '{"access_token": "T", "expires_in": 1e999}',
        '{"access_token": "T", "scope": 5}',
        '{"access_token": {"T": 1}, "expires_in": 5}',
        '{"error": [1]}',
        '{"error": {"a": 1}, "error_description": 5}',
    ],
)
async def test_any_response_is_a_token_or_a_failure(body: str, status: int) -> None:
    try:
        token = await entra_answering(lambda: Page(body.encode()), status).fetch(None)
    except ExchangeError as error:
        failure = error.failure
    else:
        assert token.text == "T"
        return
    assert failure.code in ("TokenEndpointFailed", "TokenRefused")
    assert len(failure.text) < 600


@pytest.mark.parametrize("text", ["x" * 100_000, "a b", "a\r\nX-Other: b", "ü", 5, ["x"]])
async def test_an_invalid_access_token_is_a_failure(text: object) -> None:
    answer = {"access_token": text, "token_type": "Bearer", "expires_in": 3600}
    with pytest.raises(ExchangeError) as caught:
        await entra_answering(lambda: Page(json.dumps(answer).encode())).fetch(None)
    assert caught.value.failure.code == "TokenEndpointFailed"


async def test_a_half_written_certificate_is_not_a_refusal(tmp_path: Path) -> None:
    pem = tmp_path / "application.pem"
    pem.write_text("-----BEGIN PRIVATE KEY-----\nMIIE")
    pem.chmod(0o600)
    with pytest.raises(ExchangeError) as caught:
        await entra(client_id="1", certificate=pem, authority="https://login.example/t").fetch(None)
    assert caught.value.failure.code == "SecretUnreadable"


def test_each_cloud_has_its_own_authority() -> None:
    assert {name: cloud.authority for name, cloud in CLOUDS.items()} == {
        "public": "https://login.microsoftonline.com",
        "us-government": "https://login.microsoftonline.us",
        "us-government-dod": "https://login.microsoftonline.us",
        "china": "https://login.partner.microsoftonline.cn",
    }


def test_a_certificate_may_be_replaced_with_its_password(tmp_path: Path) -> None:
    store, password = tmp_path / "application.pfx", tmp_path / "password"

    def replace(word: str) -> str:
        issued = trustme.CA().issue_cert("listener.example")
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        assert isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey)
        locked = BestAvailableEncryption(word.encode())
        store.write_bytes(serialize_key_and_certificates(None, key, certificate, None, locked))
        password.write_text(word)
        return issued.cert_chain_pems[0].bytes().decode()

    first = replace("Pw-first")
    secret = Secret("Pw-first", password.read_text)
    one = entra(client_id="1", tenant="t.example", certificate=str(store), certificate_password=secret)
    assert one._credential()["public_certificate"].strip() == first.strip()
    second = replace("Pw-second")
    assert one._credential()["public_certificate"].strip() == second.strip()


@pytest.mark.parametrize(
    ("claims", "valid"),
    [
        ('{"access_token": {"nbf": {"essential": true}}}', True),
        ("{}", True),
        ('{"access_token": []}', False),
        ("[]", False),
        ("no JSON", False),
        ("[" * 100_000, False),
        (None, False),
    ],
)
def test_claims_that_msal_cannot_extend_are_dropped(claims: str | None, valid: bool) -> None:
    assert _valid_claims(claims) == (claims if valid else None)
