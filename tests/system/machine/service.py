"""ews-listener as a systemd service in a test machine, and its simulator on the host."""

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
    """Run a simulator of four mailboxes without traffic, on the host."""
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
    """The ews-listener unit in a machine, with its configuration, logs and deliveries."""

    def __init__(self, machine: Machine, simulator: Simulator, instance: str = "") -> None:
        self.machine = machine
        self.simulator = simulator
        self.unit = f"ews-listener{instance and '@'}{instance}.service"
        self.config = f"/etc/ews-listener/{instance or 'config'}.toml"
        self.state = f"/var/lib/ews-listener{instance and '-'}{instance}"

    def configure(self, more: str = "") -> None:
        """Write the simulator's configuration plus `more`, with the password as a systemd credential."""
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
        with self._with_journal():
            self.machine.run("systemctl", verb, self.unit)

    def property_value(self, name: str) -> str:
        return self.machine.run("systemctl", "show", "--value", f"--property={name}", self.unit).strip()

    def until_property(self, name: str, value: str) -> None:
        def matches() -> bool:
            time.sleep(0.05)  # each query starts a process, which takes processor time from the service
            return self.property_value(name) == value

        with self._with_journal():
            until(matches, f"{name} = {value}")

    def until_streaming(self, mailboxes: int = 4) -> None:
        self.until_property("StatusText", f"{mailboxes} of {mailboxes} mailboxes streaming")

    def journal(self, *options: str) -> str:
        return self.machine.run("journalctl", "--no-pager", f"--unit={self.unit}", *options)

    def logged(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """Return the journal entries of this event that have these fields, selected by journalctl."""
        wanted = [f"EWS_{name.upper()}={value}" for name, value in {"event": event, **fields}.items()]
        return [json.loads(line) for line in self.journal("--output=json", *wanted).splitlines()]

    def state_file(self, name: str) -> Path:
        """Return the host path of a file in the state directory; /var/lib/NAME is only a link to it (DynamicUser)."""
        return self.machine.path(f"/var/lib/private/{Path(self.state).name}/{name}")

    def metrics(self) -> dict[str, float]:
        """Return the metrics without labels, read from the status socket."""
        transport = httpx.HTTPTransport(uds=str(self.state_file("ews-listener.sock")))
        with httpx.Client(transport=transport, base_url="http://ews-listener") as daemon:
            text = daemon.get("/metrics").raise_for_status().text
        lines = [line.split(" ") for line in text.splitlines() if line[0] != "#" and "{" not in line]
        return {name: float(value) for name, value in lines}

    def until_delivered(self, ledger: list[dict[str, Any]], file: str = "deliveries.jsonl") -> None:
        """Wait until the handler has written all items of these ledger lines to its file."""
        wanted = {line["item_id"] for line in ledger if "item_id" in line}

        def missing() -> set[str]:
            return wanted - {line["data"].get("item_id") for line in json_lines(self.state_file(file))}

        with self._with_journal():
            until(lambda: not missing(), f"{len(wanted)} deliveries")

    @contextmanager
    def _with_journal(self) -> Iterator[None]:
        """Add the end of the journal to an AssertionError."""
        try:
            yield
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()[-3000:]}") from None
