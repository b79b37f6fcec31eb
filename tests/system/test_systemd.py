"""The service under a real systemd: the shipped unit, on a test machine, against the simulator."""

import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, unavailable_reason
from tests.system.machine.service import CREDENTIALS, Service, silent_simulator
from tests.system.processes import Simulator, until

pytestmark = pytest.mark.skipif(bool(unavailable_reason()), reason=unavailable_reason() or "-")

ROOT = Path(__file__).parent.parent.parent
# Runs the code of this tree with an interpreter that the service's account can read.
COMMAND = """\
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/listener/source:/opt/listener/packages:/opt/listener/plugins
exec /opt/python/bin/python3 -m listener "$@"
"""
PLUGIN = """
from contextlib import asynccontextmanager
from pathlib import Path
import time
import trio

@asynccontextmanager
async def open_blocking():
    async def handle(event):
        if event.type == "exchange.item.deleted":
            block_the_loop()
    yield handle

def block_the_loop():
    time.sleep(600)

@asynccontextmanager
async def open_behind_a_gate(*, gate: Path, path: Path):
    async def handle(event):
        while not gate.exists():
            await trio.sleep(0.1)
        with path.open("a") as file:
            file.write(event.to_json() + "\\n")
    yield handle
"""
SOON = "[Service]\nRestartSec=100ms\n"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with silent_simulator(tmp_path_factory.mktemp("simulator")) as there:
        yield there


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    plugins = tmp_path_factory.mktemp("plugins")
    plugins.chmod(0o755)
    (plugins / "acme.py").write_text(PLUGIN)
    (plugins / "acme.py").chmod(0o644)
    binds = {
        Path(sys.base_prefix): "/opt/python",
        Path(sysconfig.get_path("purelib")): "/opt/listener/packages",
        ROOT / "listener": "/opt/listener/source/listener",
        plugins: "/opt/listener/plugins",
    }
    with Machine.boot(tmp_path_factory.mktemp("machine"), binds) as machine:
        machine.write("/usr/bin/ews-listener", COMMAND, 0o755)
        for unit in (ROOT / "systemd").glob("*.service"):
            machine.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
        yield machine


@pytest.fixture
def service(booted: Machine, simulator: Simulator) -> Iterator[Service]:
    """Yield the service, configured with a password from systemd and not started. Stop it afterwards."""
    there = Service(booted, simulator)
    booted.run("journalctl", "--rotate", "--vacuum-time=1us")
    there.configure()
    there.drop_in("soon", SOON)
    yield there
    booted.output_of("systemctl", "stop", there.unit)
    booted.output_of("systemctl", "reset-failed", there.unit)
    shutil.rmtree(booted.path(f"/etc/systemd/system/{there.unit}.d"))


def test_service_starts_delivers_and_stops_in_its_sandbox(service: Service) -> None:
    command = f'["/bin/sh", "-c", "cat >> {service.state}/commands.jsonl"]'
    service.configure(more=f'\n[handlers.command]\nuse = "exec"\ncommand = {command}\n')
    service.systemctl("start")  # returns when it is ready
    assert service.logged("handler.started", handler="deliveries")
    service.until_streaming()
    ledger = service.simulator.create_events(service.simulator.mailboxes[0], count=10)
    service.until_delivered(ledger)
    service.until_delivered(ledger, "commands.jsonl")
    status = dict(
        line.split(":\t", 1)
        for line in service.machine.path(f"/proc/{service.property_value('MainPID')}/status")
        .read_text()
        .splitlines()
        if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)) == ("1", "2", 0)
    measured = service.metrics()
    assert measured["process_resident_memory_bytes"] > 1e6
    assert measured["process_open_fds"] > 2
    assert abs(measured["process_start_time_seconds"] - time.time()) < 600
    subscriptions = service.simulator.state()["subscriptions"]  # includes those of other tests
    assert subscriptions >= len(service.simulator.mailboxes)
    service.systemctl("stop")
    assert (service.property_value("Result"), service.property_value("ExecMainStatus")) == ("success", "0")
    assert service.logged("listener.stopped")
    assert service.simulator.state()["subscriptions"] == subscriptions  # for the next start


@pytest.mark.skipif(shutil.which("systemd-creds") is None, reason="systemd-creds is not installed")
def test_password_is_encrypted_on_disk(service: Service) -> None:
    plain, encrypted = "/etc/ews-listener/password", "/etc/ews-listener/password.cred"
    # systemd-creds does not use a host key on a temporary file system by default; this machine has no other.
    options = ("--with-key=host", "--name=password")
    service.machine.run("systemd-creds", "encrypt", *options, plain, encrypted)
    password = service.machine.path(plain).read_text()
    service.machine.path(plain).unlink()
    assert password not in service.machine.path(encrypted).read_text()
    text = CREDENTIALS.read_text().replace("\nLoadCredential=", "\n#LoadCredential=")
    service.drop_in("credentials", text.replace("#LoadCredentialEncrypted=", "LoadCredentialEncrypted="))
    service.systemctl("start")
    service.until_streaming()


def test_killed_service_restarts_and_loses_nothing(service: Service) -> None:
    gate = f'gate = "{service.state}/gate"\npath = "{service.state}/late.jsonl"\n'
    service.configure(more=f'\n[handlers.late]\nuse = "acme:open_behind_a_gate"\n{gate}')
    service.systemctl("start")
    service.until_streaming()
    ledger = service.simulator.create_events(service.simulator.mailboxes[1], count=50)
    service.until_delivered(ledger)  # by the other handler: so the events are journaled
    ledger += service.simulator.create_events(
        service.simulator.mailboxes[2], count=50
    )  # possibly not received before the kill
    service.machine.run("systemctl", "kill", "--signal=KILL", service.unit)
    ledger += service.simulator.create_events(
        service.simulator.mailboxes[1], count=50
    )  # while the daemon is down
    service.until_property("NRestarts", "1")
    service.until_streaming()
    ledger += service.simulator.create_events(service.simulator.mailboxes[1], count=50)
    service.state_file("gate").touch()
    service.until_delivered(ledger)
    service.until_delivered(ledger, "late.jsonl")


def test_reload_waits_for_completion_and_a_failed_one_changes_nothing(service: Service) -> None:
    service.systemctl("start")
    service.until_streaming()
    before = service.property_value("MainPID")
    service.machine.write("/etc/ews-listener/mailboxes.txt", "\n".join(service.simulator.mailboxes[:3]))
    service.systemctl("reload")
    assert len(service.logged("listener.reloaded", mailboxes="3")) == 1
    service.until_streaming(3)

    service.configure(more="\n[dispatch]\n")
    service.machine.run_failing("systemctl", "reload", service.unit)
    assert "error: dispatch: unknown" in service.journal()
    assert (service.property_value("SubState"), service.property_value("MainPID")) == ("running", before)

    service.configure()
    service.machine.run("systemctl", "kill", "--signal=HUP", service.unit)
    service.until_streaming(4)
    service.until_property("SubState", "running")


def test_stop_may_take_longer_than_the_timeout_of_systemd(service: Service) -> None:
    gate = f'gate = "{service.state}/never"\npath = "{service.state}/late.jsonl"\n'
    service.configure(
        more=f'\n[handlers.late]\nuse = "acme:open_behind_a_gate"\n{gate}\n[shutdown]\ngrace = 2\n'
    )
    service.drop_in("hurry", "[Service]\nTimeoutStopSec=1s\n")
    service.systemctl("start")
    service.until_streaming()
    service.until_delivered(service.simulator.create_events(service.simulator.mailboxes[0]))
    service.systemctl("stop")  # waits for a handler that never finishes, longer than TimeoutStopSec=
    assert (service.property_value("Result"), service.property_value("ExecMainStatus")) == ("success", "0")
    assert service.logged("handler.stopped", handler="late")


def test_watchdog_ends_a_blocked_loop_and_the_journal_has_its_stack(service: Service) -> None:
    service.configure(more='\n[handlers.bad]\nuse = "acme:open_blocking"\n')
    service.drop_in("watchdog", "[Service]\nWatchdogSec=1s\n")
    service.systemctl("start")
    service.until_streaming()
    service.simulator.create_events(service.simulator.mailboxes[2], "DeletedEvent")
    until(lambda: "block_the_loop" in service.journal(), "the traceback of the blocked loop")
    service.until_property("NRestarts", "1")
    assert "Watchdog timeout" in service.journal()


def test_invalid_configuration_is_logged_and_not_retried(service: Service) -> None:
    service.configure(more="\n[dispatch]\n")
    service.machine.run_failing("systemctl", "start", service.unit)
    service.until_property("ActiveState", "failed")
    assert (service.property_value("ExecMainStatus"), service.property_value("NRestarts")) == ("2", "0")
    assert "error: dispatch: unknown" in service.journal()


def test_instances_run_at_the_same_time(booted: Machine, simulator: Simulator) -> None:
    units = {name: Service(booted, simulator, name) for name in ("one", "two")}
    for unit in units.values():
        unit.configure()
        unit.systemctl("start")
    for unit in units.values():
        unit.until_streaming()
    accounts = {
        booted.path(f"/proc/{unit.property_value('MainPID')}").stat().st_uid for unit in units.values()
    }
    assert len(accounts) == 2
    ledger = simulator.create_events(simulator.mailboxes[3], count=3)
    for unit in units.values():
        unit.until_delivered(ledger)
        unit.systemctl("stop")
        assert unit.property_value("Result") == "success"
