"""The service under a real systemd: its unit as it is shipped, in a machine of its own, against the simulator."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine import Machine, why_not
from tests.system.processes import Simulator, json_lines, until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")

ROOT = Path(__file__).parent.parent.parent
UNIT = "ews-listener.service"
# An interpreter that the service's account can get at, with the listener of this tree.
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
    config = tmp_path_factory.mktemp("simulator") / "listener.toml"
    options = ["--rate", "0", "--mailboxes", "4", "--write-config", str(config)]
    process = subprocess.Popen(
        [sys.executable, "-m", "listener", "simulate", *options], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield Simulator(process, json.loads(process.stdout.readline()), config)
        process.kill()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    plugins = tmp_path_factory.mktemp("plugins")
    plugins.chmod(0o755)
    (plugins / "acme.py").write_text(PLUGIN)
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


class Service:
    """The service in the machine, with what it delivers."""

    def __init__(self, machine: Machine, simulator: Simulator, unit: str, instance: str = "") -> None:
        self.machine = machine
        self.simulator = simulator
        self.unit = unit
        self.config = f"/etc/ews-listener/{instance or 'config'}.toml"
        self.state = f"/var/lib/ews-listener{instance and '-'}{instance}"

    def configure(self, *, old: str = "", new: str = "", more: str = "") -> None:
        """Writes the simulator's configuration, changed so, with the password as a credential."""
        text = self.simulator.config.read_text()
        password = next(line for line in text.splitlines() if line.startswith("password = "))
        secret = f"/run/credentials/{self.unit}/password"
        text = text.replace(password, f'password_file = "{secret}"')
        text = text.replace('"state"', f'"{self.state}"').replace('"deliver', f'"{self.state}/deliver')
        self.machine.write(self.config, text.replace(old, new) + more)
        self.machine.write("/etc/ews-listener/password", json.loads(password.partition(" = ")[2]), 0o600)
        self.machine.write("/etc/ews-listener/mailboxes.txt", "\n".join(self.simulator.mailboxes))

    def drop_in(self, name: str, text: str) -> None:
        self.machine.write(f"/etc/systemd/system/{self.unit}.d/{name}.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str) -> None:
        try:
            self.machine.run("systemctl", verb, self.unit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()[-3000:]}") from None

    def shown(self, name: str) -> str:
        return self.machine.run("systemctl", "show", "--value", f"--property={name}", self.unit).strip()

    def until_shown(self, name: str, value: str) -> None:
        until(
            lambda: self.shown(name) == value, f"{name} = {value}, but {self.shown(name)}\n{self.journal()}"
        )

    def until_streaming(self) -> None:
        self.until_shown("StatusText", "4 of 4 mailboxes streaming")

    def journal(self, *options: str) -> str:
        return self.machine.run("journalctl", "--no-pager", f"--unit={self.unit}", *options)

    def logged(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """The entries of this event that have these fields: the journal itself finds them."""
        wanted = [f"EWS_{name.upper()}={value}" for name, value in {"event": event, **fields}.items()]
        return [json.loads(line) for line in self.journal("--output=json", *wanted).splitlines()]

    def kept(self, name: str) -> Path:
        """A file in its state directory. What systemd shows of that to others is a link to this place."""
        return self.machine.path(f"/var/lib/private/{Path(self.state).name}/{name}")

    def until_delivered(self, ledger: list[dict[str, Any]], file: str = "deliveries.jsonl") -> None:
        """Returns when the handler that writes this file was told of all items."""
        wanted = {line["item_id"] for line in ledger if "item_id" in line}

        def missing() -> set[str]:
            return wanted - {line["data"].get("item_id") for line in json_lines(self.kept(file))}

        until(
            lambda: not missing(), f"{len(wanted)} deliveries; missing: {missing()}\n{self.journal()[-3000:]}"
        )


@pytest.fixture
def service(booted: Machine, simulator: Simulator) -> Iterator[Service]:
    """The single service, configured and not yet started, with a password from systemd; stopped in the end."""
    there = Service(booted, simulator, UNIT)
    there.configure()
    there.drop_in("credentials", (ROOT / "systemd" / "drop-ins" / "credentials.conf").read_text())
    there.drop_in("soon", SOON)
    yield there
    booted.ask("systemctl", "stop", there.unit)
    booted.ask("systemctl", "reset-failed", there.unit)
    shutil.rmtree(booted.path(f"/etc/systemd/system/{there.unit}.d"))


def test_it_starts_delivers_and_stops_in_its_sandbox(service: Service) -> None:
    service.systemctl("start")  # returns when it is ready
    assert service.logged("handler.started", handler="deliveries")
    service.until_streaming()
    ledger = service.simulator.make(service.simulator.mailboxes[0], count=10)
    service.until_delivered(ledger)
    status = dict(
        line.split(":\t", 1)
        for line in service.machine.path(f"/proc/{service.shown('MainPID')}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)) == ("1", "2", 0)
    service.systemctl("stop")
    assert (service.shown("Result"), service.shown("ExecMainStatus")) == ("success", "0")
    assert service.logged("listener.stopped")
    assert service.simulator.state()["subscriptions"] == 0


def test_killed_it_comes_back_and_nothing_is_lost(service: Service) -> None:
    gate = f'gate = "{service.state}/gate"\npath = "{service.state}/late.jsonl"\n'
    service.configure(more=f'\n[handlers.late]\nuse = "acme:open_behind_a_gate"\n{gate}')
    service.systemctl("start")
    service.until_streaming()
    ledger = service.simulator.make(service.simulator.mailboxes[1], count=50)
    service.until_delivered(ledger)  # to the other handler: so they are in the journal
    service.machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    service.until_shown("NRestarts", "1")
    service.until_streaming()
    ledger += service.simulator.make(service.simulator.mailboxes[1], count=50)
    service.kept("gate").touch()
    service.until_delivered(ledger)
    service.until_delivered(ledger, "late.jsonl")


def test_the_watchdog_ends_a_loop_that_hangs_and_the_journal_says_where(service: Service) -> None:
    service.configure(more='\n[handlers.bad]\nuse = "acme:open_blocking"\n')
    service.drop_in("watchdog", "[Service]\nWatchdogSec=1s\n")
    service.systemctl("start")
    service.until_streaming()
    service.simulator.make(service.simulator.mailboxes[2], "DeletedEvent")
    until(lambda: "block_the_loop" in service.journal(), "the traceback of what hangs")
    service.until_shown("NRestarts", "1")
    assert "Watchdog timeout" in service.journal()


def test_a_bad_configuration_is_told_and_not_tried_again(service: Service) -> None:
    service.configure(more="\n[dispatch]\n")
    service.machine.fail("systemctl", "start", UNIT)
    service.until_shown("ActiveState", "failed")
    assert (service.shown("ExecMainStatus"), service.shown("NRestarts")) == ("2", "0")
    assert "error: dispatch: unknown" in service.journal()


def test_instances_live_side_by_side(booted: Machine, simulator: Simulator) -> None:
    units = {
        name: Service(booted, simulator, f"ews-listener@{name}.service", name) for name in ("one", "two")
    }
    for unit in units.values():
        unit.configure()
        unit.drop_in("credentials", (ROOT / "systemd" / "drop-ins" / "credentials.conf").read_text())
        unit.systemctl("start")
    for unit in units.values():
        unit.until_streaming()
    accounts = {booted.path(f"/proc/{unit.shown('MainPID')}").stat().st_uid for unit in units.values()}
    assert len(accounts) == 2
    ledger = simulator.make(simulator.mailboxes[3], count=3)
    for unit in units.values():
        unit.until_delivered(ledger)
        unit.systemctl("stop")
        assert unit.shown("Result") == "success"
