"""Authentication with each scheme, and the errors when it fails, with real processes."""

import json
import ssl
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import urlopen

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from cryptography.x509 import load_pem_x509_certificate

from tests.leaks import plant
from tests.system.processes import Listener, Simulator, json_lines, until

Start = Callable[..., Simulator]
Listen = Callable[..., Listener]


@pytest.mark.parametrize("kind", ["ntlm", "negotiate"])
def test_extended_protection_is_supported(simulator: Start, listen: Listen, kind: str) -> None:
    exchange = simulator("--auth", kind, "--extended-protection", "require")
    daemon = listen(exchange)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: json_lines(exchange.folder / "deliveries.jsonl"), "the event")
    assert daemon.stop() == 0
    assert not daemon.logged("auth.refused")


def test_short_lived_tokens_are_renewed_while_streaming(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--auth", "oauth", "--token-lifetime", "2")
    exchange.append_config('\n[catch_up]\ninterval = "1s"\n')
    exchange.append_config('\n[log]\nlevel = "debug"\n')
    daemon = listen(exchange)
    exchange.until_streaming(4)
    daemon.until_logged("auth.token_renewed", count=3)
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: json_lines(exchange.folder / "deliveries.jsonl"), "the event")
    assert daemon.stop() == 0
    assert not daemon.logged("auth.refused")
    assert not daemon.logged("stream.refused")


@pytest.mark.parametrize("credential", ["certificate", "PKCS#12", "federated token"])
def test_oauth_without_client_secret(simulator: Start, listen: Listen, credential: str) -> None:
    exchange = simulator("--auth", "oauth", "--token-lifetime", "2")
    oauth, folder = exchange.info["oauth"], exchange.folder
    secret = f'client_secret = "{oauth["client_secret"]}"'
    pem = (folder / "application.pem").read_bytes()
    key, certificate = load_pem_private_key(pem, None), load_pem_x509_certificate(pem)
    assert isinstance(key, RSAPrivateKey)
    match credential:
        case "certificate":
            exchange.replace_config(secret, 'certificate = "application.pem"')
        case "PKCS#12":
            password = "Pw-of-the-store"
            plant(password)
            encryption = BestAvailableEncryption(password.encode())
            store = serialize_key_and_certificates(b"listener", key, certificate, None, encryption)
            (folder / "application.pfx").write_bytes(store)
            exchange.replace_config(
                secret, f'certificate = "application.pfx"\ncertificate_password = "{password}"'
            )
        case "federated token":
            # The daemon does not inspect the token. The simulator accepts one that the application's key has signed.
            thumbprint = urlsafe_b64encode(certificate.fingerprint(SHA256())).decode().rstrip("=")
            claims = {"iss": oauth["client_id"], "sub": oauth["client_id"], "jti": "1"}
            claims |= {"aud": f"{oauth['authority']}/oauth2/v2.0/token", "exp": int(time.time()) + 600}
            token = jwt.encode(claims, key, algorithm="PS256", headers={"x5t#S256": thumbprint})
            plant(token)
            (folder / "token.txt").write_text(token + "\n")
            exchange.replace_config(secret, 'federated_token_file = "token.txt"')
    exchange.append_config('\n[catch_up]\ninterval = "1s"\n\n[log]\nlevel = "debug"\n')
    daemon = listen(exchange)
    exchange.until_streaming(4)
    daemon.until_logged("auth.token_renewed", count=2)
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: exchange.deliveries, "the event")
    assert daemon.stop() == 0
    assert not daemon.logged("auth.refused")


def test_managed_identity(simulator: Start, listen: Listen) -> None:
    """A stand-in for Azure's instance metadata service, which gets its tokens from the simulator's Entra ID."""
    exchange = simulator("--auth", "oauth")
    oauth = exchange.info["oauth"]
    context = ssl.create_default_context(cafile=exchange.info["ca_file"])
    resources: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = dict(parse_qsl(urlsplit(self.path).query))
            resources.append(query["resource"])
            form = {"grant_type": "client_credentials", "client_id": oauth["client_id"]}
            form |= {"client_secret": oauth["client_secret"], "scope": query["resource"] + "/.default"}
            url = f"{oauth['authority']}/oauth2/v2.0/token"
            with urlopen(url, urlencode(form).encode(), context=context) as reply:
                grant = json.load(reply)
            body = json.dumps({"access_token": grant["access_token"], "expires_in": "3600"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (name of the base class)
            pass

    text = exchange.config.read_text()
    section = text[text.index("[auth]") : text.index("[mailboxes]")]
    exchange.replace_config(section, '[auth]\nkind = "oauth"\nmanaged_identity = true\n\n')
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        daemon = listen(exchange, AZURE_POD_IDENTITY_AUTHORITY_HOST=host)
        exchange.until_streaming(4)
        exchange.create_events(exchange.mailboxes[0])
        until(lambda: exchange.deliveries, "the event")
        assert daemon.stop() == 0
        server.shutdown()
    assert resources == ["https://outlook.office365.com"]


def test_wrong_client_secret_is_logged_quickly(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--auth", "oauth")
    exchange.replace_config('client_secret = "', 'client_secret = "not-')
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    daemon = listen(exchange)
    (started,) = daemon.until_logged("listener.started")
    refused = daemon.until_logged("auth.refused", code="AADSTS7000215")[0]
    assert refused["text"].endswith("is wrong: configure the secret's value, not its ID")
    assert seconds_between(started, refused) < 5
    daemon.until_logged("mailbox.suspended", code="AADSTS7000215")
    assert daemon.stop() == 0
    assert max(line["attempts"] for line in daemon.logged("auth.refused")) <= 3


def seconds_between(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    return (datetime.fromisoformat(later["time"]) - datetime.fromisoformat(earlier["time"])).total_seconds()


def test_wrong_password_is_sent_once_per_attempt(simulator: Start, listen: Listen) -> None:
    exchange = simulator("--auth", "ntlm", "--extended-protection", "require", "--mailboxes", "12")
    exchange.replace_config(exchange.info["password"], "Pw-wrong")
    exchange.replace_config("[exchange]", "[exchange]\nautodiscover = false")
    daemon = listen(exchange)
    refused = daemon.until_logged("auth.refused", code="HandshakeRefused")
    assert "the password is wrong, or the account is locked" in refused[0]["text"]
    daemon.until_logged("auth.refused", attempts=2)
    assert daemon.stop() == 0
    assert max(line["attempts"] for line in daemon.logged("auth.refused")) == 2
    assert "Pw-wrong" not in daemon.log_file.read_text()
