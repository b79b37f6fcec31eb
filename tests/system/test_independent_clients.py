"""Authentication of independent clients, each in its own process: curl, requests_ntlm, exchangelib, msal."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.client import envelope
from tests.system.processes import Simulator

GET_INBOX = (
    "<m:GetFolder><m:FolderShape><t:BaseShape>IdOnly</t:BaseShape></m:FolderShape>"
    '<m:FolderIds><t:DistinguishedFolderId Id="inbox"/></m:FolderIds></m:GetFolder>'
)


def run(program: str, simulator: Simulator, **values: object) -> Any:
    """Run a client program and return its output, parsed as JSON.

    Its global variables are `info` (what the simulator printed), `address`, `body` and the keyword arguments.
    """
    address = simulator.mailboxes[0]
    variables = {
        "info": simulator.info,
        "address": address,
        "body": envelope(GET_INBOX, impersonate=address).decode(),
        **values,
    }
    program = f"import json, sys\nglobals().update(json.loads(sys.argv[1]))\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(variables)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"REQUESTS_CA_BUNDLE": simulator.info["ca_file"] or "", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("auth", "user", "wrong"),
    [
        ("ntlm", "CONTOSO\\svc-listener", False),
        ("negotiate", "svc-listener@contoso.example", False),
        ("ntlm", "svc-listener@contoso.example", True),
    ],
)
def test_curl(simulator: Callable[..., Simulator], tmp_path: Path, auth: str, user: str, wrong: bool) -> None:
    """Send two requests over one connection. The second one needs no handshake."""
    curl = shutil.which("curl")
    if not curl or "NTLM" not in subprocess.run([curl, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("curl with NTLM support is not installed")
    exchange = simulator("--auth", auth)
    info = exchange.info
    body, answer = tmp_path / "body.xml", tmp_path / "answer.xml"
    body.write_bytes(envelope(GET_INBOX, impersonate=exchange.mailboxes[0]))
    password = "wrong" if wrong else info["password"]
    outputs = ["-o", str(answer), "-o", str(answer)]
    command = [
        *(curl, "-s", "--ntlm", "-u", f"{user}:{password}", "-H", "Content-Type: text/xml"),
        *("--data-binary", f"@{body}", "-w", "%{http_code} %{num_connects}\\n"),
        *(*outputs, info["ews_url"], info["ews_url"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    state = exchange.state()["authentication"]
    if wrong:
        assert done.stdout.split()[0] == "401"
        assert state["refused"] == {info["user"]: state["reasons"]["password"]}
    else:
        assert done.stdout.split() == ["200", "1", "200", "0"]
        assert "NoError" in answer.read_text()
        assert (state["proved"], state["refused"]) == ({"ntlm": 1}, {})


REQUESTS_NTLM = """
import requests, requests_ntlm
session = requests.Session()
session.auth = requests_ntlm.HttpNtlmAuth(info["user"], info["password"], send_cbt=bound)
answers = [session.post(info["ews_url"], body.encode(), headers={"Content-Type": "text/xml"}) for _ in range(2)]
print(json.dumps([(answer.status_code, "NoError" in answer.text) for answer in answers]))
"""


class TestRequestsNtlm:
    def test_bound_to_the_channel(self, simulator: Callable[..., Simulator]) -> None:
        exchange = simulator("--auth", "ntlm", "--extended-protection", "require")
        assert run(REQUESTS_NTLM, exchange, bound=True) == [[200, True], [200, True]]
        assert exchange.state()["authentication"]["proved"] == {"ntlm": 1}

    def test_not_bound_to_the_channel(self, simulator: Callable[..., Simulator]) -> None:
        exchange = simulator("--auth", "ntlm", "--extended-protection", "require")
        assert {status for status, _ in run(REQUESTS_NTLM, exchange, bound=False)} == {401}
        assert set(exchange.state()["authentication"]["reasons"]) == {"binding"}

    def test_not_bound_if_the_server_allows_it(self, simulator: Callable[..., Simulator]) -> None:
        exchange = simulator("--auth", "negotiate", "--extended-protection", "allow")
        assert run(REQUESTS_NTLM, exchange, bound=False)[0] == [200, True]


EXCHANGELIB = """
import exchangelib
from exchangelib import IMPERSONATION, NTLM, OAUTH2, Account, Configuration, Credentials, Identity, OAuth2Credentials

class SimulatorCredentials(OAuth2Credentials):
    token_url = property(lambda self: info["oauth"]["authority"] + "/oauth2/v2.0/token")

if info["oauth"]:
    kind, oauth = OAUTH2, info["oauth"]
    identity = Identity(primary_smtp_address=address)
    credentials = SimulatorCredentials(oauth["client_id"], oauth["client_secret"], oauth["tenant"], identity)
else:
    kind, credentials = NTLM, Credentials(info["user"], info["password"])
configuration = Configuration(service_endpoint=info["ews_url"], credentials=credentials, auth_type=kind)
account = Account(address, config=configuration, autodiscover=False, access_type=IMPERSONATION)
subscription = account.inbox.subscribe_to_streaming()
print(json.dumps([account.inbox.name, bool(subscription), account.inbox.unsubscribe(subscription)]))
account.protocol.close()
"""


@pytest.mark.parametrize("mechanism", ["ntlm", "oauth"])
def test_exchangelib(simulator: Callable[..., Simulator], mechanism: str) -> None:
    exchange = simulator("--auth", mechanism, "--tls")
    assert run(EXCHANGELIB, exchange) == ["Inbox", True, True]
    assert set(exchange.state()["authentication"]["proved"]) == {mechanism}
    assert exchange.state()["authentication"]["refused"] == {}


MSAL = """
import msal, requests
oauth = info["oauth"]
pem = open(oauth["certificate_file"]).read()
at = pem.index("-----BEGIN CERTIFICATE")
certificate = {"private_key": pem[:at], "public_certificate": pem[at:]}
statuses = []
for credential in (oauth["client_secret"], certificate):
    client = msal.ConfidentialClientApplication(
        oauth["client_id"], credential, authority=oauth["authority"], instance_discovery=False
    )
    token = client.acquire_token_for_client(["https://outlook.office365.com/.default"])["access_token"]
    headers = {"Content-Type": "text/xml", "Authorization": "Bearer " + token}
    for text in (body, not_impersonated):
        statuses.append(requests.post(info["ews_url"], text.encode(), headers=headers).status_code)
print(json.dumps(statuses))
"""


def test_msal(simulator: Callable[..., Simulator]) -> None:
    """Authenticate by secret and by certificate. Without impersonation an application has no access."""
    exchange = simulator("--auth", "oauth")
    assert run(MSAL, exchange, not_impersonated=envelope(GET_INBOX).decode()) == [200, 500, 200, 500]
    assert exchange.state()["authentication"]["tokens"] == 2
