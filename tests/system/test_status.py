"""Status of a running daemon: its socket, its HTTP port and the command."""

import os
import pty
import signal
import stat
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.operating import command, free_port, get, socket_of, status
from tests.system.processes import Listen, Start, json_lines, until


def test_the_status_command_and_the_http_port(simulator: Start, listen: Listen) -> None:
    exchange, port = simulator(), free_port()
    exchange.append_config(f'\n[status]\nlisten = "127.0.0.1:{port}"\n')
    with (exchange.folder / "mailboxes.txt").open("a") as file:
        file.write("unknown@contoso.example\n")
    daemon = listen(exchange)
    exchange.until_streaming(4)
    exchange.create_events(exchange.mailboxes[0])
    until(lambda: exchange.deliveries, "a delivery")
    report = until(
        lambda: (found := status(exchange))["handlers"][0]["delivered"] and found, "a delivery in the status"
    )
    assert report["pid"] == daemon.process.pid
    assert (report["state"], report["healthy"], report["mailboxes"], report["streaming"], report["missing"]) == (
        "listening", True, 5, 4, 1,
    )  # fmt: skip
    assert sum(group["streaming"] for group in report["groups"]) == 4
    assert report["events"] >= 1
    (handler,) = report["handlers"]
    assert (handler["name"], handler["state"], handler["lag"]) == ("deliveries", "running", 0)
    (problem,) = report["mailbox_problems"]
    assert (problem["mailbox"], problem["state"]) == ("unknown@contoso.example", "missing")
    done = command(exchange, "status")
    assert done.returncode == 0
    assert "4/5" in done.stdout
    assert "unknown@contoso.example" in done.stdout

    url = f"http://127.0.0.1:{port}"
    assert (get(f"{url}/healthz"), get(f"{url}/readyz")) == ("ok\n", "listening\n")
    families = {family.name: family for family in text_string_to_metric_families(get(f"{url}/metrics"))}
    assert families["ews_listener_mailboxes_streaming"].samples[0].value == 4
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{url}/watch/{exchange.mailboxes[0]}")

    assert stat.S_IMODE(socket_of(exchange).stat().st_mode) == 0o600
    assert daemon.stop() == 0
    assert not socket_of(exchange).exists()
    failed = command(exchange, "status")
    assert failed.returncode == 1
    assert "no daemon answers" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not daemon.logged("python.log")


def test_the_token_is_required_and_a_stale_socket_is_replaced(simulator: Start, listen: Listen) -> None:
    exchange, port = simulator(), free_port()
    exchange.append_config(f'\n[status]\nlisten = "127.0.0.1:{port}"\ntoken = "t0ken"\n')
    first = listen(exchange)
    exchange.until_streaming(4)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert socket_of(exchange).exists()
    second = listen(exchange)
    second.until_logged("group.streaming")
    assert status(exchange)["pid"] == second.process.pid
    url = f"http://127.0.0.1:{port}/metrics"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(url)
    assert "ews_listener_ready 1.0" in get(url, Authorization="Bearer t0ken")
    assert "t0ken" not in second.log_file.read_text()


def test_a_port_in_use_is_reported(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    exchange.append_config(f'\n[status]\nlisten = "127.0.0.1:{exchange.port}"\n')
    daemon = listen(exchange)
    assert daemon.wait() == 2
    assert f"error: status.listen: cannot listen at 127.0.0.1:{exchange.port}: Address already in use" in (
        daemon.log_file.read_text()
    )


def test_the_daemon_runs_if_it_cannot_open_its_socket(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    too_long = exchange.folder / ("x" * 100)
    if "state_directory" in exchange.config.read_text():
        exchange.replace_config("state_directory", "#state_directory")
    exchange.config.write_text(f'state_directory = "{too_long}"\n' + exchange.config.read_text())
    daemon = listen(exchange)
    exchange.until_streaming(4)
    (line,) = daemon.until_logged("status.unavailable")
    assert "AF_UNIX path too long" in line["reason"]
    assert daemon.stop() == 0


def test_a_port_for_other_hosts_requires_a_token(simulator: Start) -> None:
    exchange = simulator()
    exchange.append_config('\n[status]\nlisten = "0.0.0.0:1"\n')
    done = command(exchange, "check")
    assert done.returncode == 2
    assert "error: status.listen: requires token" in done.stderr


def test_status_works_after_the_configuration_becomes_invalid(simulator: Start, listen: Listen) -> None:
    """The command still reports the running daemon."""
    exchange = simulator()
    listen(exchange)
    exchange.until_streaming(4)
    exchange.append_config('\n[log]\nlevel = "loud"\n')
    assert status(exchange)["streaming"] == 4
    os.unlink(exchange.config)
    done = command(exchange, "status")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_status_watch_repeats_until_interrupted(simulator: Start, listen: Listen) -> None:
    exchange = simulator()
    listen(exchange)
    exchange.until_streaming(4)
    output = exchange.folder / "shown.jsonl"
    arguments = [sys.executable, "-m", "listener", "status", "--watch", "--json"]
    arguments += ["--config", str(exchange.config)]
    with output.open("w") as file, interruptible(arguments, file.fileno()) as process:
        until(lambda: len(json_lines(output)) >= 2, "two reports")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    main, terminal = pty.openpty()
    with interruptible([argument for argument in arguments if argument != "--json"], terminal) as process:
        text = b""
        while b"deliveries" not in text:
            text += os.read(main, 65536)
        process.send_signal(signal.SIGINT)
        threading.Thread(target=drain, args=(main,), daemon=True).start()
        assert process.wait(10) == 0
    os.close(terminal)


@contextmanager
def interruptible(arguments: list[str], stdout: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process that SIGINT can stop, and kill it when the context is left.

    Shells start background jobs with SIGINT ignored. If the tests run as such a job, the process would inherit that.
    """
    with subprocess.Popen(["env", "--default-signal=INT", *arguments], stdout=stdout) as process:
        try:
            yield process
        finally:
            process.kill()


def drain(descriptor: int) -> None:
    with suppress(OSError):
        while os.read(descriptor, 65536):
            pass
