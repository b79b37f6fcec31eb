"""`ews-listener check --connect` against a simulator; must_deny mailboxes; the audit log."""

import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from tests.system import forked
from tests.system.processes import Listener, Simulator, json_lines

Start = Callable[..., Simulator]
Listen = Callable[..., Listener]
CEO = "ceo@contoso.example"


class CheckResult(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def check(simulator: Simulator, *options: str) -> CheckResult:
    command = [sys.executable, "-m", "listener", "check", "--config", str(simulator.config), "--connect"]
    done = forked.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    return CheckResult(done.returncode, done.stdout, done.stderr)


def unauthorized_requests(simulator: Simulator) -> int:
    """Return the number of requests with wrong credentials."""
    return sum(count.get("401", 0) for count in simulator.state()["requests"].values())


def finding_of(report: Any, mailbox: str) -> Any:
    (finding,) = (each for each in report["checked"] if each["mailbox"] == mailbox)
    return finding


def test_everything_passes(simulator: Start) -> None:
    exchange = simulator()
    checked = check(exchange, "--json")
    assert (checked.code, checked.err) == (0, "")
    report = checked.json
    assert report["ok"] is True
    (server,) = report["servers"]
    assert server == {
        "url": exchange.info["ews_url"],
        "account": exchange.info["user"],
        "ok": True,
        "stage": None,
    }
    grouped = [mailbox for group in report["groups"] for mailbox in group["mailboxes"]]
    assert sorted(grouped) == sorted(exchange.mailboxes)
    assert all(group["anchor"] == min(group["mailboxes"]) for group in report["groups"])
    assert [each["mailbox"] for each in report["checked"] if each["ok"]] == sorted(exchange.mailboxes)


def test_each_failure_has_a_cause_and_a_fix(simulator: Start) -> None:
    exchange = simulator()
    outside, without_ews, delegated, good = exchange.mailboxes
    exchange.set_rights(outside, in_scope=False)
    exchange.set_rights(without_ews, ews=False)
    exchange.append_config(
        f'\n[[mailboxes.overrides]]\naddresses = ["{delegated}"]\naccess = "delegate"\nfolders = ["calendar"]\n'
        '[[mailboxes.overrides]]\naddresses = ["nobody@contoso.example"]\n'
    )
    checked = check(exchange, "--json")
    assert checked.code == 4
    report = checked.json
    assert {each["mailbox"]: each.get("code") for each in report["checked"]} == {
        outside: "ErrorImpersonateUserDenied",
        without_ews: "Http403",
        delegated: "ErrorSubscriptionDelegateAccessNotSupported",
        "nobody@contoso.example": "InvalidUser",
        good: None,
    }
    user = exchange.info["user"]
    assert "outside its scope" in finding_of(report, outside)["cause"]
    assert "New-ManagementScope" in finding_of(report, outside)["fix"]
    assert f"-User {user} -CustomRecipientWriteScope" in finding_of(report, outside)["fix"]
    assert f"Set-CASMailbox {without_ews} -EwsEnabled $true" in finding_of(report, without_ews)["fix"]
    assert f"Add-MailboxFolderPermission {delegated}:" in finding_of(report, delegated)["fix"]
    text = check(exchange).out
    assert "1 of 5 mailboxes can be reached." in text
    assert f"FAIL  {outside}   ErrorImpersonateUserDenied\n      " in text
    assert "      Fix: grant permission: Add-MailboxFolderPermission" in text
    exchange.set_rights(delegated, folders=["calendar"])
    assert check(exchange, "--mailbox", delegated.upper(), "--mailbox", good).code == 0


def test_refused_account_is_tried_once_and_mailboxes_are_skipped(simulator: Start) -> None:
    exchange = simulator()
    exchange.replace_config('password = "', 'password = "x')
    checked = check(exchange, "--json")
    assert checked.code == 3
    report = checked.json
    assert [(server["ok"], server["stage"]) for server in report["servers"]] == [(False, "authenticate")]
    assert not any(each["ok"] or each["tried"] for each in report["checked"])
    assert exchange.info["password"] not in checked.out + checked.err
    # The same without Autodiscover.
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    report = check(exchange, "--json").json
    assert [(server["ok"], server["stage"]) for server in report["servers"]] == [(False, "authenticate")]
    assert len(report["groups"]) == 1
    assert "Get-ADUser" in report["servers"][0]["fix"]


def test_repeated_checks_do_not_lock_the_account(simulator: Start) -> None:
    exchange = simulator("--lock-after", "4")
    exchange.replace_config(exchange.info["password"], "wrong-Secret")
    results = [check(exchange, "--json") for _ in range(6)]
    assert {each.code for each in results} == {3}
    assert "held" not in results[0].json["servers"][0]
    server = results[-1].json["servers"][0]
    assert (server["stage"], server["code"]) == ("authenticate", "Http401")
    assert 0 < server["held"] <= 60
    assert 0 < unauthorized_requests(exchange) < 4
    text = check(exchange).out
    assert "      Lockout protection: these credentials are not used again for " in text
    # A changed password is tried at once. So is the same one after the operator deletes the stored refusals.
    exchange.replace_config("wrong-Secret", exchange.info["password"])
    assert check(exchange).code == 0
    exchange.replace_config(exchange.info["password"], "wrong-Secret")
    for _ in range(3):
        assert check(exchange).code == 3
    (refusals,) = exchange.folder.rglob("refusals.json")
    assert refusals.stat().st_mode & 0o777 == 0o600
    before = unauthorized_requests(exchange)
    check(exchange)
    assert unauthorized_requests(exchange) == before
    refusals.unlink()
    check(exchange)
    assert unauthorized_requests(exchange) == before + 1


def test_server_that_does_not_listen(simulator: Start) -> None:
    exchange = simulator()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    exchange.replace_config(f"127.0.0.1:{exchange.port}/EWS", f"127.0.0.1:{port}/EWS")
    checked = check(exchange, "--json")
    assert checked.code == 3
    (server,) = checked.json["servers"]
    assert (server["stage"], server["code"]) == ("connect", "ConnectFailed")


def test_untrusted_certificate(simulator: Start) -> None:
    exchange = simulator("--tls")
    exchange.replace_config('ca_file = "ca.pem"\n', "autodiscover = false\n")
    checked = check(exchange, "--json")
    assert checked.code == 3
    (server,) = checked.json["servers"]
    assert (server["stage"], server["code"]) == ("secure", "TlsFailed")
    assert "ca_file" in server["fix"]


def test_throttled_server_is_checked_completely_with_lower_concurrency(simulator: Start) -> None:
    exchange = simulator("--mailboxes", "150")
    exchange.replace_config("[auth]", "concurrency = 40\n\n[auth]")
    exchange.inject_fault(kind="throttled", seconds=60, concurrency=27, back_off_ms=300)
    checked = check(exchange)
    assert checked.code == 0, checked.out
    assert "150 of 150 mailboxes can be reached." in checked.out


def test_distribution_groups_are_expanded(simulator: Start) -> None:
    exchange = simulator()
    groups = '["everyone@contoso.example", "nobody@contoso.example"]'
    exchange.replace_config('file = "mailboxes.txt"', f"distribution_groups = {groups}")
    checked = check(exchange, "--json")
    assert checked.code == 4
    good, bad = checked.json["distribution_groups"]
    assert good == {"group": "everyone@contoso.example", "ok": True, "members": 4}
    assert (bad["ok"], bad["code"]) == (False, "ErrorNameResolutionNoResults")
    assert [each["ok"] for each in checked.json["checked"]] == [True] * 4


def test_one_failing_mailbox_does_not_fail_the_server(simulator: Start) -> None:
    exchange = simulator("--backends", "1")
    failing, *_ = sorted(exchange.mailboxes)
    exchange.inject_fault(kind="http", status=503, mailbox=failing, operation="GetFolder")
    checked = check(exchange, "--json")
    assert checked.code == 4
    assert [server["ok"] for server in checked.json["servers"]] == [True]
    assert [each["mailbox"] for each in checked.json["checked"] if not each["ok"]] == [failing]


def test_progress_bar_on_a_terminal(simulator: Start) -> None:
    exchange = simulator()
    reading, writing = pty.openpty()
    command = [sys.executable, "-m", "listener", "check", "--config", str(exchange.config), "--connect"]
    with forked.Popen(command, stdout=subprocess.PIPE, stderr=writing, text=True) as process:
        os.close(writing)
        output, screen = process.communicate(timeout=60)[0], bytearray()
        with suppress(OSError), open(reading, "rb", buffering=0) as terminal:
            while chunk := terminal.read(4096):
                screen += chunk
    assert process.returncode == 0
    assert "4 of 4 mailboxes can be reached." in output
    assert b"checking mailboxes" in screen
    assert b"4/4" in screen


def test_invalid_configuration_is_reported_before_any_request(simulator: Start) -> None:
    exchange = simulator()
    exchange.append_config(
        '\n[[mailboxes.overrides]]\naddresses = ["a@contoso.example"]\naccess = "delegate"\n'
    )
    checked = check(exchange)
    assert checked.code == 2
    assert checked.err == (
        "error: mailboxes.overrides[0].access: delegate access cannot subscribe to all folders; set folders\n"
    )
    assert exchange.state()["requests"] == {}


# --- must_deny mailboxes


def must_deny(simulator: Simulator, *mailboxes: str, more: str = "") -> None:
    simulator.append_config(f"\n[impersonation]\nmust_deny = {json.dumps(mailboxes)}\n{more}\n")


def test_check_verifies_must_deny(simulator: Start) -> None:
    exchange = simulator()
    must_deny(exchange, CEO)
    checked = check(exchange, "--json")
    assert checked.code == 0
    assert checked.json["must_deny"] == [{"mailbox": CEO, "finding": "refused"}]
    exchange.set_rights(CEO, in_scope=True)
    checked = check(exchange)
    assert checked.code == 4
    assert f"FAIL  {CEO}   the account can access this must_deny mailbox\n" in checked.out


def test_must_deny_is_checked_as_delegate_and_at_group_servers(simulator: Start) -> None:
    exchange = simulator("--backends", "1")
    delegated = exchange.mailboxes[0]
    exchange.set_rights(delegated, folders=["inbox"])
    url = exchange.info["ews_url"]
    exchange.replace_config(f'ews_url = "{url}"', "autodiscover = false")
    exchange.replace_config('file = "mailboxes.txt"', 'access = "delegate"')
    exchange.append_config(
        f'\n[subscription]\nfolders = ["inbox"]\n[[groups]]\news_url = "{url}"\nmailboxes = ["{delegated}"]\n'
    )
    must_deny(exchange, CEO)
    checked = check(exchange, "--json")
    assert checked.code == 0, checked.out
    assert checked.json["must_deny"] == [{"mailbox": CEO, "finding": "refused"}]
    exchange.set_rights(CEO, folders=["*"])
    checked = check(exchange)
    assert checked.code == 4
    assert f"FAIL  {CEO}   the account can access this must_deny mailbox\n" in checked.out
    assert "      Fix: remove the account's permissions on the mailbox\n" in checked.out
    assert (
        f'Subscribe on the folder "inbox" of the mailbox, as a delegate, at 127.0.0.1:{exchange.port}'
        in checked.out
    )
    # Everyone may read free/busy times, so they do not prove access.
    exchange.set_rights(CEO, folders=[])
    exchange.replace_config(
        '[subscription]\nfolders = ["inbox"]', '[subscription]\nfolders = ["inbox", "calendar"]'
    )
    exchange.set_rights(delegated, folders=["inbox", "calendar"])
    assert check(exchange, "--json").json["must_deny"] == [{"mailbox": CEO, "finding": "refused"}]
    exchange.set_rights(CEO, folders=["calendar"])
    exchange.create_events(CEO, kind="FreeBusyChangedEvent")
    (finding,) = check(exchange, "--json").json["must_deny"]
    assert finding == {
        "mailbox": CEO,
        "finding": "reached",
        "access": "delegate",
        "server": f"127.0.0.1:{exchange.port}",
        "operation": "FindItem",
        "folder": "calendar",
    }


def test_daemon_warns_or_refuses_to_start_on_a_scope_violation(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.set_rights(CEO, in_scope=True)
    must_deny(exchange, CEO, more='interval = "1s"')
    listener = listen(exchange)
    listener.until_logged("scope.violation", mailbox=CEO, level="error")
    exchange.until_streaming(4)
    exchange.set_rights(CEO, in_scope=False)
    listener.until_logged("scope.verified", mailboxes=1)
    assert listener.stop() == 0
    exchange.replace_config('interval = "1s"', 'if_not_denied = "refuse_to_start"')
    listener = listen(exchange)
    listener.until_logged("group.streaming")
    assert listener.logged("scope.verified")
    assert listener.stop() == 0
    exchange.set_rights(CEO, in_scope=True)
    refused = listen(exchange)
    assert refused.wait() == 2
    assert f"error: impersonation.must_deny: the account reaches {CEO}" in refused.log_file.read_text()
    assert exchange.state()["streams"] == []


# --- the audit log


def test_audit_log_records_first_use_of_each_identity(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    delegated = exchange.mailboxes[0]
    exchange.set_rights(delegated, folders=["inbox"])
    must_deny(exchange, CEO)
    exchange.append_config(
        f'\n[[mailboxes.overrides]]\naddresses = ["{delegated}"]\naccess = "delegate"\nfolders = ["inbox"]\n'
        '[log]\naudit_file = "audit.jsonl"\n'
    )
    listener = listen(exchange)
    exchange.until_streaming(4)
    listener.until_logged("scope.verified")
    assert listener.stop() == 0
    lines = json_lines(exchange.folder / "audit.jsonl")
    assert {line["event"] for line in lines} == {"audit.identity_used"}
    assert {line["account"] for line in lines} == {exchange.info["user"]}
    assert {line["server"] for line in lines} == {f"127.0.0.1:{exchange.port}"}
    assert all(line["time"].endswith("Z") for line in lines)
    used = [(line["access"], line["identity"]) for line in lines]
    assert len(used) == len(set(used))
    assert set(used) == {
        ("own", exchange.info["user"]),
        ("delegate", delegated),
        ("delegate", CEO),
        *(("impersonation", mailbox) for mailbox in (*exchange.mailboxes[1:], CEO)),
    }
    assert (exchange.folder / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert not listener.logged("audit.identity_used")


# --- diagnostics


def test_unknown_code_is_reported_as_unknown(simulator: Start) -> None:
    exchange = simulator("--backends", "1")
    failing, *_ = sorted(exchange.mailboxes)
    exchange.inject_fault(
        kind="response_code", code="ErrorMailboxIsPurple", mailbox=failing, operation="GetFolder"
    )
    checked = check(exchange, "--mailbox", failing)
    assert checked.code == 4
    head, *text = checked.out.partition("FAIL  ")[2].splitlines()
    assert head == f"{failing}   ErrorMailboxIsPurple"
    assert text[-2].startswith(
        "      The code ErrorMailboxIsPurple is not known to this version of ews-listener."
    )
    assert text[-1].startswith(
        "      Fix: look for ErrorMailboxIsPurple in the list of response codes of EWS"
    )
    assert "wait" not in checked.out.lower()


def test_wrong_url_is_diagnosed_from_the_response(simulator: Start) -> None:
    exchange = simulator()
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    good = exchange.info["ews_url"]
    exchange.replace_config(
        f'ews_url = "{good}"', f'ews_url = "{good.replace("/EWS/Exchange.asmx", "/owa")}"'
    )
    checked = check(exchange)
    assert checked.code == 3
    assert "      The URL is probably wrong: /owa is Outlook on the web, not the EWS endpoint." in checked.out
    assert f"      Fix: set ews_url to {good}\n" in checked.out
    exchange.replace_config("/owa", "/EWS/Exchange.asmx")
    exchange.replace_config(f'ews_url = "{good}"', f'ews_url = "{good.replace("http:", "https:")}"')
    checked = check(exchange, "--json")
    (server,) = checked.json["servers"]
    assert (checked.code, server["code"]) == (3, "TlsFailed")
    assert f"127.0.0.1:{exchange.port}" in server["text"]
    assert "the port does not speak TLS" in server["cause"]


def test_http_url_of_a_tls_port_is_diagnosed(simulator: Start) -> None:
    exchange = simulator("--tls", "--auth", "ntlm")
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    exchange.replace_config('ews_url = "https:', 'ews_url = "http:')
    (server,) = check(exchange, "--json").json["servers"]
    assert (server["code"], "https://" in server["fix"]) == ("ConnectionReset", True)
    assert "the URL says http://" in server["cause"]
