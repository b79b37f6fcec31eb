"""Clients that others wrote get in, each a process of its own: curl, requests_ntlm, exchangelib, msal."""

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


def run(program: str, simulator: Simulator, **given: object) -> Any:
    """What the client's program prints, from JSON; it finds `told` by the simulator and `given`."""
    address = simulator.mailboxes[0]
    values = {
        "told": simulator.info,
        "address": address,
        "body": envelope(GET_INBOX, impersonate=address).decode(),
        **given,
    }
    program = f"import json, sys\nglobals().update(json.loads(sys.argv[1]))\n{program}"
    client = subprocess.run(
        [sys.executable, "-c", program, json.dumps(values)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"REQUESTS_CA_BUNDLE": simulator.info["ca_file"] or "", "PATH": "/usr/bin:/bin"},
    )
    assert client.returncode == 0, client.stderr
    return json.loads(client.stdout)


@pytest.mark.parametrize(
    ("auth", "user", "wrong"),
    [
        ("ntlm", "CONTOSO\\svc-listener", False),
        ("negotiate", "svc-listener@contoso.example", False),
        ("ntlm", "svc-listener@contoso.example", True),
    ],
)
def test_curl(simulator: Callable[..., Simulator], tmp_path: Path, auth: str, user: str, wrong: bool) -> None:
    """Two requests over one connection; the second needs no handshake any more."""
    curl = shutil.which("curl")
    if not curl or "NTLM" not in subprocess.run([curl, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("there is no curl that speaks NTLM")
    there = simulator("--auth", auth)
    told = there.info
    body, answer = tmp_path / "body.xml", tmp_path / "answer.xml"
    body.write_bytes(envelope(GET_INBOX, impersonate=there.mailboxes[0]))
    password = "wrong" if wrong else told["password"]
    outputs = ["-o", str(answer), "-o", str(answer)]
    command = [
        *(curl, "-s", "--ntlm", "-u", f"{user}:{password}", "-H", "Content-Type: text/xml"),
        *("--data-binary", f"@{body}", "-w", "%{http_code} %{num_connects}\\n"),
        *(*outputs, told["ews_url"], told["ews_url"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    state = there.state()["authentication"]
    if wrong:
        assert done.stdout.split()[0] == "401"
        assert state["refused"] == {told["user"]: state["reasons"]["password"]}
    else:
        assert done.stdout.split() == ["200", "1", "200", "0"]
        assert "NoError" in answer.read_text()
        assert (state["proved"], state["refused"]) == ({"ntlm": 1}, {})


REQUESTS_NTLM = """
import requests, requests_ntlm
session = requests.Session()
session.auth = requests_ntlm.HttpNtlmAuth(told["user"], told["password"], send_cbt=bound)
answers = [session.post(told["ews_url"], body.encode(), headers={"Content-Type": "text/xml"}) for _ in range(2)]
print(json.dumps([(answer.status_code, "NoError" in answer.text) for answer in answers]))
"""


class TestRequestsNtlm:
    def test_bound_to_the_channel(self, simulator: Callable[..., Simulator]) -> None:
        there = simulator("--auth", "ntlm", "--extended-protection", "require")
        assert run(REQUESTS_NTLM, there, bound=True) == [[200, True], [200, True]]
        assert there.state()["authentication"]["proved"] == {"ntlm": 1}

    def test_not_bound(self, simulator: Callable[..., Simulator]) -> None:
        there = simulator("--auth", "ntlm", "--extended-protection", "require")
        assert {status for status, _ in run(REQUESTS_NTLM, there, bound=False)} == {401}
        assert set(there.state()["authentication"]["reasons"]) == {"binding"}

    def test_not_bound_where_that_is_allowed(self, simulator: Callable[..., Simulator]) -> None:
        there = simulator("--auth", "negotiate", "--extended-protection", "allow")
        assert run(REQUESTS_NTLM, there, bound=False)[0] == [200, True]


EXCHANGELIB = """
import exchangelib
from exchangelib import IMPERSONATION, NTLM, OAUTH2, Account, Configuration, Credentials, Identity, OAuth2Credentials

class Here(OAuth2Credentials):
    token_url = property(lambda self: told["oauth"]["authority"] + "/oauth2/v2.0/token")

if told["oauth"]:
    kind, oauth = OAUTH2, told["oauth"]
    identity = Identity(primary_smtp_address=address)
    credentials = Here(oauth["client_id"], oauth["client_secret"], oauth["tenant"], identity)
else:
    kind, credentials = NTLM, Credentials(told["user"], told["password"])
configuration = Configuration(service_endpoint=told["ews_url"], credentials=credentials, auth_type=kind)
account = Account(address, config=configuration, autodiscover=False, access_type=IMPERSONATION)
subscription = account.inbox.subscribe_to_streaming()
print(json.dumps([account.inbox.name, bool(subscription), account.inbox.unsubscribe(subscription)]))
account.protocol.close()
"""


@pytest.mark.parametrize("mechanism", ["ntlm", "oauth"])
def test_exchangelib(simulator: Callable[..., Simulator], mechanism: str) -> None:
    there = simulator("--auth", mechanism, "--tls")
    assert run(EXCHANGELIB, there) == ["Inbox", True, True]
    assert set(there.state()["authentication"]["proved"]) == {mechanism}
    assert there.state()["authentication"]["refused"] == {}


MSAL = """
import msal, requests
oauth = told["oauth"]
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
    for text in (body, alone):
        statuses.append(requests.post(told["ews_url"], text.encode(), headers=headers).status_code)
print(json.dumps(statuses))
"""


def test_msal(simulator: Callable[..., Simulator]) -> None:
    """By secret and by certificate; without impersonation an application may do nothing."""
    there = simulator("--auth", "oauth")
    assert run(MSAL, there, alone=envelope(GET_INBOX).decode()) == [200, 500, 200, 500]
    assert there.state()["authentication"]["tokens"] == 2
