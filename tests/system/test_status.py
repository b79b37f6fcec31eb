"""How a daemon that runs is: its socket, its port, and the command."""

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


def test_the_command_and_the_port(simulator: Start, listen: Listen) -> None:
    there, port = simulator(), free_port()
    there.append_config(f'\n[status]\nlisten = "127.0.0.1:{port}"\n')
    with (there.folder / "mailboxes.txt").open("a") as file:
        file.write("nobody@contoso.example\n")
    daemon = listen(there)
    there.until_streaming(4)
    there.create_events(there.mailboxes[0])
    until(lambda: there.deliveries, "a delivery")
    it = until(
        lambda: (found := status(there))["handlers"][0]["delivered"] and found, "a delivery in the status"
    )
    assert it["pid"] == daemon.process.pid
    assert (it["state"], it["healthy"], it["mailboxes"], it["streaming"], it["missing"]) == (
        "listening", True, 5, 4, 1,
    )  # fmt: skip
    assert sum(group["streaming"] for group in it["groups"]) == 4
    assert it["events"] >= 1
    (handler,) = it["handlers"]
    assert (handler["name"], handler["state"], handler["lag"]) == ("deliveries", "running", 0)
    (write_error,) = it["mailbox_problems"]
    assert (write_error["mailbox"], write_error["state"]) == ("nobody@contoso.example", "missing")
    told = command(there, "status")
    assert told.returncode == 0
    assert "4/5" in told.stdout
    assert "nobody@contoso.example" in told.stdout

    url = f"http://127.0.0.1:{port}"
    assert (get(f"{url}/healthz"), get(f"{url}/readyz")) == ("ok\n", "listening\n")
    families = {family.name: family for family in text_string_to_metric_families(get(f"{url}/metrics"))}
    assert families["ews_listener_mailboxes_streaming"].samples[0].value == 4
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(f"{url}/watch/{there.mailboxes[0]}")

    assert stat.S_IMODE(socket_of(there).stat().st_mode) == 0o600
    assert daemon.stop() == 0
    assert not socket_of(there).exists()
    gone = command(there, "status")
    assert gone.returncode == 1
    assert "no daemon answers" in gone.stderr
    assert "Traceback" not in gone.stderr
    assert not daemon.logged("python.log")


def test_a_token_and_a_socket_that_a_dead_daemon_left(simulator: Start, listen: Listen) -> None:
    there, port = simulator(), free_port()
    there.append_config(f'\n[status]\nlisten = "127.0.0.1:{port}"\ntoken = "t0ken"\n')
    first = listen(there)
    there.until_streaming(4)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert socket_of(there).exists()
    second = listen(there)
    second.until_logged("group.streaming")
    assert status(there)["pid"] == second.process.pid
    url = f"http://127.0.0.1:{port}/metrics"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(url)
    assert "ews_listener_ready 1.0" in get(url, Authorization="Bearer t0ken")
    assert "t0ken" not in second.log_file.read_text()


def test_a_port_that_is_taken_is_told(simulator: Start, listen: Listen) -> None:
    there = simulator()
    there.append_config(f'\n[status]\nlisten = "127.0.0.1:{there.port}"\n')
    daemon = listen(there)
    assert daemon.wait() == 2
    assert f"error: status.listen: cannot listen at 127.0.0.1:{there.port}: Address already in use" in (
        daemon.log_file.read_text()
    )


def test_a_socket_that_cannot_be_opened_harms_nobody(simulator: Start, listen: Listen) -> None:
    there = simulator()
    deep = there.folder / ("x" * 100)
    there.replace_config(
        "state_directory", "#state_directory"
    ) if "state_directory" in there.config.read_text() else None
    there.config.write_text(f'state_directory = "{deep}"\n' + there.config.read_text())
    daemon = listen(there)
    there.until_streaming(4)
    (line,) = daemon.until_logged("status.unavailable")
    assert "AF_UNIX path too long" in line["reason"]
    assert daemon.stop() == 0


def test_other_hosts_take_a_token(simulator: Start) -> None:
    there = simulator()
    there.append_config('\n[status]\nlisten = "0.0.0.0:1"\n')
    told = command(there, "check")
    assert told.returncode == 2
    assert "error: status.listen: requires token" in told.stderr


def test_the_status_of_a_configuration_that_has_become_bad(simulator: Start, listen: Listen) -> None:
    """The daemon that runs can still be asked."""
    there = simulator()
    listen(there)
    there.until_streaming(4)
    there.append_config('\n[log]\nlevel = "loud"\n')
    assert status(there)["streaming"] == 4
    os.unlink(there.config)
    told = command(there, "status")
    assert told.returncode == 2
    assert "cannot be read" in told.stderr


def test_it_is_shown_again_and_again_until_it_is_interrupted(simulator: Start, listen: Listen) -> None:
    there = simulator()
    listen(there)
    there.until_streaming(4)
    shown = there.folder / "shown.jsonl"
    words = [sys.executable, "-m", "listener", "status", "--watch", "--json", "--config", str(there.config)]
    with shown.open("w") as file, interruptible(words, file.fileno()) as process:
        until(lambda: len(json_lines(shown)) >= 2, "two looks")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    main, other = pty.openpty()
    with interruptible([word for word in words if word != "--json"], other) as process:
        text = b""
        while b"deliveries" not in text:
            text += os.read(main, 65536)
        process.send_signal(signal.SIGINT)
        threading.Thread(target=drain, args=(main,), daemon=True).start()
        assert process.wait(10) == 0
    os.close(other)


@contextmanager
def interruptible(words: list[str], output: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that SIGINT ends even where the tests themselves run in the background, where shells have it
    ignored. It is gone when the context is left."""
    with subprocess.Popen(["env", "--default-signal=INT", *words], stdout=output) as process:
        try:
            yield process
        finally:
            process.kill()


def drain(terminal: int) -> None:
    with suppress(OSError):
        while os.read(terminal, 65536):
            pass
