"""Mailbox files as Exchange exports them, read by the daemon and by `check`."""

import json
import subprocess
import sys
from collections.abc import Callable

from tests.system import forked
from tests.system.processes import Listener, Simulator

Start = Callable[..., Simulator]
Listen = Callable[..., Listener]
NON_ASCII = "ümit@contoso.example"


def export(addresses: list[str], delimiter: str = ";") -> str:
    """Return a CSV file as `Export-Csv` writes it."""
    rows = [f'"Person, No. {n}"{delimiter}"{address}"' for n, address in enumerate(addresses)]
    return "\r\n".join(["#TYPE Selected.Mailbox", f'"Name"{delimiter}"PrimarySmtpAddress"', *rows, ""])


def check(exchange: Simulator) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "listener", "check", "--config", str(exchange.config)]
    return forked.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_daemon_reads_exports_at_startup_and_at_each_refresh(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    file, addresses = exchange.folder / "mailboxes.txt", exchange.mailboxes
    exchange.replace_config("[auth]", "autodiscover = false\n\n[auth]")
    exchange.replace_config(
        'file = "mailboxes.txt"', 'file = "mailboxes.txt"\nrefresh = "1s"\nmax_drop = 0.5'
    )
    file.write_bytes(b"\xff\xfe" + export([*addresses[:3], NON_ASCII]).encode("utf-16-le"))
    listener = listen(exchange)
    exchange.until_streaming(3)
    listener.until_logged("listener.started", mailboxes=4)
    listener.until_logged("mailbox.suspended", mailbox=NON_ASCII)
    file.write_text(export(addresses, ","), encoding="utf-8-sig")
    exchange.until_streaming(4)
    listener.until_logged("mailboxes.refreshed", mailboxes=4, added=1, removed=1)
    file.write_bytes(export(["jürgen@contoso.example"]).encode("cp1252"))
    (failed, *_) = listener.until_logged("mailboxes.refresh_failed", level="warning")
    assert failed["text"].startswith("is not UTF-8 text (byte 0xfc in line 3)")
    assert exchange.state()["mailboxes_streaming"] == 4
    assert listener.stop() == 0


def test_check_reports_ten_bad_lines_and_counts_the_others(simulator: Start) -> None:
    exchange = simulator()
    (exchange.folder / "mailboxes.txt").write_text(export([f"person {n}" for n in range(3000)]))
    checked = check(exchange)
    assert checked.returncode == 2
    lines = checked.stderr.splitlines()
    assert lines[0] == 'error: mailboxes.txt:3: "person 0" is not a valid email address'
    assert lines[-1] == "error: mailboxes.txt: and 2,990 more lines"
    assert len(lines) == 11


def test_check_warns_about_a_suspicious_url(simulator: Start) -> None:
    exchange = simulator()
    exchange.replace_config("/EWS/Exchange.asmx", "/owa")
    checked = check(exchange)
    assert checked.returncode == 0
    assert checked.stderr == (
        "warning: exchange.ews_url: /owa is Outlook on the web, not the EWS endpoint. "
        f"Use {exchange.info['ews_url']}\n"
    )
    command = [sys.executable, "-m", "listener", "check", "--json", "--config", str(exchange.config)]
    report = json.loads(forked.run(command, capture_output=True, timeout=60, check=True).stdout)
    assert [warning["where"] for warning in report["warnings"]] == ["exchange.ews_url"]
