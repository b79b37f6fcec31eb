"""`ews-listener check --connect` against a started simulator; the proof of the scope; the audit."""

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


class Checked(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def check(simulator: Simulator, *options: str) -> Checked:
    command = [sys.executable, "-m", "listener", "check", "--config", str(simulator.config), "--connect"]
    done = forked.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    return Checked(done.returncode, done.stdout, done.stderr)


def refused(simulator: Simulator) -> int:
    """How many requests came with credentials that are not good."""
    return sum(count.get("401", 0) for count in simulator.state()["requests"].values())


def matter(report: Any, mailbox: str) -> Any:
    (found,) = (each for each in report["checked"] if each["mailbox"] == mailbox)
    return found


def test_all_is_well(simulator: Start) -> None:
    office = simulator()
    checked = check(office, "--json")
    assert (checked.code, checked.err) == (0, "")
    report = checked.json
    assert report["ok"] is True
    (server,) = report["servers"]
    assert server == {
        "url": office.told["ews_url"],
        "account": office.told["user"],
        "ok": True,
        "stage": None,
    }
    grouped = [mailbox for group in report["groups"] for mailbox in group["mailboxes"]]
    assert sorted(grouped) == sorted(office.mailboxes)
    assert all(group["anchor"] == min(group["mailboxes"]) for group in report["groups"])
    assert [each["mailbox"] for each in report["checked"] if each["ok"]] == sorted(office.mailboxes)


def test_each_refusal_comes_with_its_cause_and_what_mends_it(simulator: Start) -> None:
    office = simulator()
    outside, without_ews, theirs, good = office.mailboxes
    office.give(outside, in_scope=False)
    office.give(without_ews, ews=False)
    office.append(
        f'\n[[mailboxes.overrides]]\naddresses = ["{theirs}"]\naccess = "delegate"\nfolders = ["calendar"]\n'
        '[[mailboxes.overrides]]\naddresses = ["nobody@contoso.example"]\n'
    )
    checked = check(office, "--json")
    assert checked.code == 4
    report = checked.json
    assert {each["mailbox"]: each.get("code") for each in report["checked"]} == {
        outside: "ErrorImpersonateUserDenied",
        without_ews: "Http403",
        theirs: "ErrorSubscriptionDelegateAccessNotSupported",
        "nobody@contoso.example": "InvalidUser",
        good: None,
    }
    user = office.told["user"]
    assert "outside its scope" in matter(report, outside)["cause"]
    assert "New-ManagementScope" in matter(report, outside)["fix"]
    assert f"-User {user} -CustomRecipientWriteScope" in matter(report, outside)["fix"]
    assert f"Set-CASMailbox {without_ews} -EwsEnabled $true" in matter(report, without_ews)["fix"]
    assert f"Add-MailboxFolderPermission {theirs}:" in matter(report, theirs)["fix"]
    told = check(office).out
    assert "1 of 5 mailboxes can be reached." in told
    assert f"FAIL  {outside}   ErrorImpersonateUserDenied\n      " in told
    assert "      Fix: grant permission: Add-MailboxFolderPermission" in told
    office.give(theirs, folders=["calendar"])
    assert check(office, "--mailbox", theirs.upper(), "--mailbox", good).code == 0


def test_a_refused_account_is_tried_once_and_no_mailbox_is(simulator: Start) -> None:
    office = simulator()
    office.change('password = "', 'password = "x')
    checked = check(office, "--json")
    assert checked.code == 3
    report = checked.json
    assert [(server["ok"], server["stage"]) for server in report["servers"]] == [(False, "authenticate")]
    assert not any(each["ok"] or each["tried"] for each in report["checked"])
    assert office.told["password"] not in checked.out + checked.err
    # The same where Autodiscover is not asked.
    office.change("[auth]", "autodiscover = false\n\n[auth]")
    report = check(office, "--json").json
    assert [(server["ok"], server["stage"]) for server in report["servers"]] == [(False, "authenticate")]
    assert len(report["groups"]) == 1
    assert "Get-ADUser" in report["servers"][0]["fix"]


def test_repeated_checks_do_not_lock_the_account(simulator: Start) -> None:
    office = simulator("--lock-after", "4")
    office.change(office.told["password"], "wrong-Secret")
    found = [check(office, "--json") for _ in range(6)]
    assert {each.code for each in found} == {3}
    assert "held" not in found[0].json["servers"][0]
    server = found[-1].json["servers"][0]
    assert (server["stage"], server["code"]) == ("authenticate", "Http401")
    assert 0 < server["held"] <= 60
    assert 0 < refused(office) < 4
    people = check(office).out
    assert "      Lockout protection: these credentials are not used again for " in people
    # Another password is tried at once, and so is the same one where the operator says so.
    office.change("wrong-Secret", office.told["password"])
    assert check(office).code == 0
    office.change(office.told["password"], "wrong-Secret")
    for _ in range(3):
        assert check(office).code == 3
    (kept,) = office.folder.rglob("refusals.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    before = refused(office)
    check(office)
    assert refused(office) == before
    kept.unlink()
    check(office)
    assert refused(office) == before + 1


def test_a_server_that_is_not_there(simulator: Start) -> None:
    office = simulator()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    office.change("[auth]", "autodiscover = false\n\n[auth]")
    office.change(f"127.0.0.1:{office.port}/EWS", f"127.0.0.1:{port}/EWS")
    checked = check(office, "--json")
    assert checked.code == 3
    (server,) = checked.json["servers"]
    assert (server["stage"], server["code"]) == ("connect", "ConnectFailed")


def test_a_certificate_that_nobody_trusts(simulator: Start) -> None:
    office = simulator("--tls")
    office.change('ca_file = "ca.pem"\n', "autodiscover = false\n")
    checked = check(office, "--json")
    assert checked.code == 3
    (server,) = checked.json["servers"]
    assert (server["stage"], server["code"]) == ("secure", "TlsFailed")
    assert "ca_file" in server["fix"]


def test_a_busy_server_is_asked_less_and_in_the_end_everything(simulator: Start) -> None:
    office = simulator("--mailboxes", "150")
    office.change("[auth]", "concurrency = 40\n\n[auth]")
    office.break_(kind="throttled", seconds=60, concurrency=27, back_off_ms=300)
    checked = check(office)
    assert checked.code == 0, checked.out
    assert "150 of 150 mailboxes can be reached." in checked.out


def test_distribution_groups_are_expanded(simulator: Start) -> None:
    office = simulator()
    groups = '["everyone@contoso.example", "nobody@contoso.example"]'
    office.change('file = "mailboxes.txt"', f"distribution_groups = {groups}")
    checked = check(office, "--json")
    assert checked.code == 4
    good, bad = checked.json["distribution_groups"]
    assert good == {"group": "everyone@contoso.example", "ok": True, "members": 4}
    assert (bad["ok"], bad["code"]) == (False, "ErrorNameResolutionNoResults")
    assert [each["ok"] for each in checked.json["checked"]] == [True] * 4


def test_one_ill_mailbox_is_not_taken_for_an_ill_server(simulator: Start) -> None:
    office = simulator("--backends", "1")
    ill, *_ = sorted(office.mailboxes)
    office.break_(kind="http", status=503, mailbox=ill, operation="GetFolder")
    checked = check(office, "--json")
    assert checked.code == 4
    assert [server["ok"] for server in checked.json["servers"]] == [True]
    assert [each["mailbox"] for each in checked.json["checked"] if not each["ok"]] == [ill]


def test_on_a_terminal_there_is_a_progress_bar(simulator: Start) -> None:
    office = simulator()
    reading, writing = pty.openpty()
    command = [sys.executable, "-m", "listener", "check", "--config", str(office.config), "--connect"]
    with forked.Popen(command, stdout=subprocess.PIPE, stderr=writing, text=True) as process:
        os.close(writing)
        told, shown = process.communicate(timeout=60)[0], bytearray()
        with suppress(OSError), open(reading, "rb", buffering=0) as terminal:
            while chunk := terminal.read(4096):
                shown += chunk
    assert process.returncode == 0
    assert "4 of 4 mailboxes can be reached." in told
    assert b"checking mailboxes" in shown
    assert b"4/4" in shown


def test_a_bad_configuration_is_told_before_anything_is_asked(simulator: Start) -> None:
    office = simulator()
    office.append('\n[[mailboxes.overrides]]\naddresses = ["a@contoso.example"]\naccess = "delegate"\n')
    checked = check(office)
    assert checked.code == 2
    assert checked.err == (
        "error: mailboxes.overrides[0].access: delegate access cannot subscribe to all folders; set folders\n"
    )
    assert office.state()["requests"] == {}


# --- the scope


def must_deny(simulator: Simulator, *mailboxes: str, more: str = "") -> None:
    simulator.append(f"\n[impersonation]\nmust_deny = {json.dumps(mailboxes)}\n{more}\n")


def test_the_check_proves_the_scope(simulator: Start) -> None:
    office = simulator()
    must_deny(office, CEO)
    checked = check(office, "--json")
    assert checked.code == 0
    assert checked.json["must_deny"] == [{"mailbox": CEO, "finding": "refused"}]
    office.give(CEO, in_scope=True)
    checked = check(office)
    assert checked.code == 4
    assert f"FAIL  {CEO}   the account can access this must_deny mailbox\n" in checked.out


def test_the_check_tries_as_a_delegate_where_one_is_used_and_at_the_groups_servers(simulator: Start) -> None:
    office = simulator("--backends", "1")
    theirs = office.mailboxes[0]
    office.give(theirs, folders=["inbox"])
    url = office.told["ews_url"]
    office.change(f'ews_url = "{url}"', "autodiscover = false")
    office.change('file = "mailboxes.txt"', 'access = "delegate"')
    office.append(
        f'\n[subscription]\nfolders = ["inbox"]\n[[groups]]\news_url = "{url}"\nmailboxes = ["{theirs}"]\n'
    )
    must_deny(office, CEO)
    checked = check(office, "--json")
    assert checked.code == 0, checked.out
    assert checked.json["must_deny"] == [{"mailbox": CEO, "finding": "refused"}]
    office.give(CEO, folders=["*"])
    checked = check(office)
    assert checked.code == 4
    assert f"FAIL  {CEO}   the account can access this must_deny mailbox\n" in checked.out
    assert "      Fix: remove the account's permissions on the mailbox\n" in checked.out
    assert (
        f'Subscribe on the folder "inbox" of the mailbox, as a delegate, at 127.0.0.1:{office.port}'
        in checked.out
    )
    # Free/busy is for everybody, and no proof.
    office.give(CEO, folders=[])
    office.change('[subscription]\nfolders = ["inbox"]', '[subscription]\nfolders = ["inbox", "calendar"]')
    office.give(theirs, folders=["inbox", "calendar"])
    assert check(office, "--json").json["must_deny"] == [{"mailbox": CEO, "finding": "refused"}]
    office.give(CEO, folders=["calendar"])
    office.make(CEO, kind="FreeBusyChangedEvent")
    (finding,) = check(office, "--json").json["must_deny"]
    assert finding == {
        "mailbox": CEO,
        "finding": "reached",
        "access": "delegate",
        "server": f"127.0.0.1:{office.port}",
        "operation": "FindItem",
        "folder": "calendar",
    }


def test_the_daemon_warns_or_does_not_start_if_it_reaches_what_it_must_not(
    simulator: Start, listen: Listen
) -> None:
    office = simulator()
    office.give(CEO, in_scope=True)
    must_deny(office, CEO, more='interval = "1s"')
    listener = listen(office)
    listener.until_logged("scope.violation", mailbox=CEO, level="error")
    office.streaming(4)
    office.give(CEO, in_scope=False)
    listener.until_logged("scope.verified", mailboxes=1)
    assert listener.end() == 0
    office.change('interval = "1s"', 'if_not_denied = "refuse_to_start"')
    listener = listen(office)
    listener.until_logged("group.streaming")
    assert listener.logged("scope.verified")
    assert listener.end() == 0
    office.give(CEO, in_scope=True)
    refused = listen(office)
    assert refused.wait() == 2
    assert f"error: impersonation.must_deny: the account reaches {CEO}" in refused.errors.read_text()
    assert office.state()["streams"] == []


# --- the audit


def test_every_first_use_of_an_identity_is_recorded(simulator: Start, listen: Listen) -> None:
    office = simulator()
    theirs = office.mailboxes[0]
    office.give(theirs, folders=["inbox"])
    must_deny(office, CEO)
    office.append(
        f'\n[[mailboxes.overrides]]\naddresses = ["{theirs}"]\naccess = "delegate"\nfolders = ["inbox"]\n'
        '[log]\naudit_file = "audit.jsonl"\n'
    )
    listener = listen(office)
    office.streaming(4)
    listener.until_logged("scope.verified")
    assert listener.end() == 0
    lines = json_lines(office.folder / "audit.jsonl")
    assert {line["event"] for line in lines} == {"audit.identity_used"}
    assert {line["account"] for line in lines} == {office.told["user"]}
    assert {line["server"] for line in lines} == {f"127.0.0.1:{office.port}"}
    assert all(line["time"].endswith("Z") for line in lines)
    used = [(line["access"], line["identity"]) for line in lines]
    assert len(used) == len(set(used))
    assert set(used) == {
        ("own", office.told["user"]),
        ("delegate", theirs),
        ("delegate", CEO),
        *(("impersonation", mailbox) for mailbox in (*office.mailboxes[1:], CEO)),
    }
    assert (office.folder / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert not listener.logged("audit.identity_used")


# --- advice


def test_an_unknown_code_is_named_as_unknown(simulator: Start) -> None:
    office = simulator("--backends", "1")
    ill, *_ = sorted(office.mailboxes)
    office.break_(kind="response_code", code="ErrorMailboxIsPurple", mailbox=ill, operation="GetFolder")
    checked = check(office, "--mailbox", ill)
    assert checked.code == 4
    head, *told = checked.out.partition("FAIL  ")[2].splitlines()
    assert head == f"{ill}   ErrorMailboxIsPurple"
    assert told[-2].startswith(
        "      The code ErrorMailboxIsPurple is not known to this version of ews-listener."
    )
    assert told[-1].startswith(
        "      Fix: look for ErrorMailboxIsPurple in the list of response codes of EWS"
    )
    assert "wait" not in checked.out.lower()


def test_a_wrong_url_is_diagnosed_from_its_answer(simulator: Start) -> None:
    office = simulator()
    office.change("[auth]", "autodiscover = false\n\n[auth]")
    good = office.told["ews_url"]
    office.change(f'ews_url = "{good}"', f'ews_url = "{good.replace("/EWS/Exchange.asmx", "/owa")}"')
    checked = check(office)
    assert checked.code == 3
    assert "      The URL is probably wrong: /owa is Outlook on the web, not the EWS endpoint." in checked.out
    assert f"      Fix: set ews_url to {good}\n" in checked.out
    office.change("/owa", "/EWS/Exchange.asmx")
    office.change(f'ews_url = "{good}"', f'ews_url = "{good.replace("http:", "https:")}"')
    checked = check(office, "--json")
    (server,) = checked.json["servers"]
    assert (checked.code, server["code"]) == (3, "TlsFailed")
    assert f"127.0.0.1:{office.port}" in server["text"]
    assert "the port does not speak TLS" in server["cause"]


def test_http_to_a_port_with_tls_is_diagnosed(simulator: Start) -> None:
    office = simulator("--tls", "--auth", "ntlm")
    office.change("[auth]", "autodiscover = false\n\n[auth]")
    office.change('ews_url = "https:', 'ews_url = "http:')
    (server,) = check(office, "--json").json["servers"]
    assert (server["code"], "https://" in server["fix"]) == ("ConnectionReset", True)
    assert "the URL says http://" in server["cause"]
