"""ews-listener as a service in a machine for tests, and the simulator that it listens to."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.system import forked
from tests.system.machine import Machine
from tests.system.processes import Simulator, json_lines, until

CREDENTIALS = Path(__file__).parents[3] / "systemd" / "drop-ins" / "credentials.conf"


@contextmanager
def silent_simulator(folder: Path) -> Iterator[Simulator]:
    """A simulator of four mailboxes, on this machine."""
    config = folder / "listener.toml"
    options = ["--rate", "0", "--mailboxes", "4", "--write-config", str(config)]
    process = forked.Popen(
        [sys.executable, "-m", "listener", "simulate", *options], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield Simulator(process, json.loads(process.stdout.readline()), config)
        process.kill()


class Service:
    """The service in the machine, with what it delivers."""

    def __init__(self, machine: Machine, simulator: Simulator, instance: str = "") -> None:
        self.machine = machine
        self.simulator = simulator
        self.unit = f"ews-listener{instance and '@'}{instance}.service"
        self.config = f"/etc/ews-listener/{instance or 'config'}.toml"
        self.state = f"/var/lib/ews-listener{instance and '-'}{instance}"

    def configure(self, more: str = "") -> None:
        """Writes the simulator's configuration, and more, with the password as a credential of systemd."""
        text = self.simulator.config.read_text()
        password = next(line for line in text.splitlines() if line.startswith("password = "))
        text = text.replace(password, 'password_credential = "password"')
        text = text.replace('"state"', f'"{self.state}"').replace('"deliver', f'"{self.state}/deliver')
        self.machine.write(self.config, text + more)
        self.machine.write("/etc/ews-listener/password", json.loads(password.partition(" = ")[2]), 0o600)
        self.machine.write("/etc/ews-listener/mailboxes.txt", "\n".join(self.simulator.mailboxes))
        self.drop_in("credentials", CREDENTIALS.read_text())

    def drop_in(self, name: str, text: str) -> None:
        self.machine.write(f"/etc/systemd/system/{self.unit}.d/{name}.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str) -> None:
        with self._explained():
            self.machine.run("systemctl", verb, self.unit)

    def property_value(self, name: str) -> str:
        return self.machine.run("systemctl", "show", "--value", f"--property={name}", self.unit).strip()

    def until_property(self, name: str, value: str) -> None:
        def is_so() -> bool:
            time.sleep(0.05)  # each look is a process, which takes time from what is looked at
            return self.property_value(name) == value

        with self._explained():
            until(is_so, f"{name} = {value}")

    def until_streaming(self, mailboxes: int = 4) -> None:
        self.until_property("StatusText", f"{mailboxes} of {mailboxes} mailboxes streaming")

    def journal(self, *options: str) -> str:
        return self.machine.run("journalctl", "--no-pager", f"--unit={self.unit}", *options)

    def logged(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """The entries of this event that have these fields: the journal itself finds them."""
        wanted = [f"EWS_{name.upper()}={value}" for name, value in {"event": event, **fields}.items()]
        return [json.loads(line) for line in self.journal("--output=json", *wanted).splitlines()]

    def state_file(self, name: str) -> Path:
        """A file in its state directory. What systemd shows of that to others is a link to this place."""
        return self.machine.path(f"/var/lib/private/{Path(self.state).name}/{name}")

    def metrics(self) -> dict[str, float]:
        """Those that have no labels, from its socket."""
        way = httpx.HTTPTransport(uds=str(self.state_file("ews-listener.sock")))
        with httpx.Client(transport=way, base_url="http://ews-listener") as daemon:
            text = daemon.get("/metrics").raise_for_status().text
        lines = [line.split(" ") for line in text.splitlines() if line[0] != "#" and "{" not in line]
        return {name: float(value) for name, value in lines}

    def until_delivered(self, ledger: list[dict[str, Any]], file: str = "deliveries.jsonl") -> None:
        """Returns when the handler that writes this file was told of all items."""
        wanted = {line["item_id"] for line in ledger if "item_id" in line}

        def missing() -> set[str]:
            return wanted - {line["data"].get("item_id") for line in json_lines(self.state_file(file))}

        with self._explained():
            until(lambda: not missing(), f"{len(wanted)} deliveries")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What fails has the end of the journal with it."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()[-3000:]}") from None
