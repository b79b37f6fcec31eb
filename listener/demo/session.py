"""Run of the demo: starts the simulator as a separate process and the daemon in this one, over real sockets."""

from __future__ import annotations

import math
import os
import ssl
import sys
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

import httpx
import msgspec
import structlog
import trio

from listener.catchup.catchup import CatchUp, Observer
from listener.daemon import Daemon, open_daemon
from listener.demo.verdict import Call, Gaps, call_of, compare_in_detail, read_ledger
from listener.errors import ConfigError, ListenerError, Problem
from listener.event import MailboxEvent
from listener.handler import Handler
from listener.plugins import load_all
from listener.simulator import fault_plans
from listener.simulator.faults import FaultError

log = structlog.get_logger()

# Seconds: the maximum wait for all mailboxes to stream, and for the next outstanding event at the end.
SETTLE_TIMEOUT = 120.0
DRAIN_TIMEOUT = 10.0
# Frequent sweeps, so that the demo finds events that a stream withholds without an error.
SWEEP_CONFIG = '\n[catch_up]\ninterval = "10s"\n'
# Sweeps make requests, so that expired tokens are noticed.
OAUTH_CONFIG = '\n[catch_up]\ninterval = "40s"\n'
POLL = 0.05
# Heartbeat interval of the simulator in seconds. It is short, so that the demo detects a silent stream.
HEARTBEAT = 5.0
AUTH_OPTIONS = {
    "basic": (),
    "ntlm": ("--extended-protection", "require"),
    "negotiate": ("--extended-protection", "require"),
    "oauth": ("--token-lifetime", "20"),
}
"""Simulator options for each authentication method. Short-lived tokens show that streams survive token renewal."""


class SimulatorError(ListenerError):
    """The simulator did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Parameters of a demo. `rate` is in events per second, `duration` in seconds (None: until stopped).

    `faults` is a fault profile of the simulator or a file of faults, `auth` one of its authentication methods.
    """

    mailboxes: int
    rate: float
    seed: int
    duration: float | None
    faults: str = "none"
    auth: str = "basic"


@dataclass(slots=True)
class Probe:
    """A handler that records its calls and their times (Unix seconds)."""

    calls: list[Call] = field(default_factory=list)
    latest: deque[MailboxEvent] = field(default_factory=lambda: deque(maxlen=8))
    name: str = "demo"

    @property
    def streamed(self) -> int:
        """Number of calls with streamed events."""
        return sum(not call.recovered for call in self.calls)

    @property
    def accepts(self) -> Probe:
        return self

    def matches(self, event: MailboxEvent, /) -> bool:
        return not event.type.startswith("exchange.listener.")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Handler]:
        async def handle(event: MailboxEvent) -> None:
            self.calls.append(call_of(event, time.time()))
            self.latest.append(event)

        yield handle


class GapObserver(Observer):
    """Notes when mailboxes had no working stream and when they were compared: a change that began and ended within
    one gap leaves no trace. `wall` converts moments of trio's clock to Unix seconds."""

    def __init__(self, wall: Callable[[float], float]) -> None:
        self._wall = wall
        self._without: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self._compared: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    def gap(self, mailbox: str, since: float | None) -> None:
        if since is not None:
            self._without[mailbox].append((self._wall(since), self._wall(trio.current_time())))

    def compared(self, mailbox: str, started_at: float) -> None:
        self._compared[mailbox].append((self._wall(started_at), self._wall(trio.current_time())))

    def gaps(self) -> dict[str, Gaps]:
        """By mailbox, in Unix seconds."""
        return {mailbox: Gaps(without, self._compared[mailbox]) for mailbox, without in self._without.items()}


class Session:
    """One run of the demo. The view reads `daemon` and `probe` while it runs."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.probe = Probe()
        self.daemon: Daemon | None = None
        self.generating_since: float | None = None
        self.observer = GapObserver(_unix_time)
        self.streaming_at_end = 0
        self.groups_at_end = 0

    async def run(self, stop: trio.Event) -> None:
        """Run for the duration of the plan or until `stop` is set. Raises SimulatorError."""
        async with (
            self._simulator() as (control_url, tls),
            httpx.AsyncClient(verify=tls, trust_env=False) as http,
        ):
            file = self.directory / "config.toml"
            if self.plan.faults != "none":
                file.write_text(file.read_text() + SWEEP_CONFIG)
            elif self.plan.auth == "oauth":
                file.write_text(file.read_text() + OAUTH_CONFIG)
            config, handlers = load_all(file)
            stop_daemon = trio.Event()
            async with (
                open_daemon(config, [*handlers, self.probe], observer=self.observer) as daemon,
                trio.open_nursery() as nursery,
            ):
                self.daemon = daemon
                nursery.start_soon(daemon.run, stop_daemon)
                await self._measure(daemon, http, control_url, stop)
                self.streaming_at_end = daemon.manager.streaming
                self.groups_at_end = len(daemon.runners.by_group)
                stop_daemon.set()

    @property
    def gaps(self) -> dict[str, Gaps]:
        """The recorded gaps and comparisons by mailbox."""
        return self.observer.gaps()

    def summary(self) -> dict[str, object]:
        """Log each lost change and return the summary. docs/CLI.md lists its keys."""
        with (self.directory / "ledger.jsonl").open("rb") as file:
            ledger, faults = read_ledger(file)
        comparison = compare_in_detail(ledger, self.probe.calls, self.gaps)
        for line in comparison.lost:
            fields = {"type": line.key.kind, "subject": line.id, "happened": f"{line.time:.3f}"}
            log.error("demo.lost", mailbox=line.mailbox, **fields)
        verdict = comparison.verdict()
        return {
            "mailboxes": self.plan.mailboxes,
            "streaming": self.streaming_at_end,
            "groups": self.groups_at_end,
            "generated": verdict.generated,
            "delivered": verdict.delivered,
            "duplicates": verdict.duplicates,
            "lost": verdict.lost,
            "unseen": verdict.unseen,
            "faults": faults,
            "p50_ms": verdict.p50_ms,
            "p99_ms": verdict.p99_ms,
        }

    async def _measure(
        self, daemon: Daemon, http: httpx.AsyncClient, control_url: str, stop: trio.Event
    ) -> None:
        await self._wait_until_streaming(daemon, stop)
        await _post(http, f"{control_url}/traffic", {"rate": self.plan.rate})
        for request in fault_requests(self.plan.faults):
            await _post(http, f"{control_url}/faults", request)
        self.generating_since = time.time()
        with trio.move_on_after(math.inf if self.plan.duration is None else self.plan.duration):
            await stop.wait()
        await _post(http, f"{control_url}/traffic", {"rate": 0})
        if self.plan.faults != "none":
            await _post(http, f"{control_url}/faults", {"profile": "none"})
            await self._wait_until_streaming(daemon)
            await self._wait_until_caught_up(daemon.catch_up)
        state = (await http.get(f"{control_url}/state")).raise_for_status().json()
        with trio.move_on_after(DRAIN_TIMEOUT) as waiting:
            streamed = self.probe.streamed
            while self.probe.streamed < state["generated"] and self.plan.faults == "none":
                await trio.sleep(POLL)
                if self.probe.streamed > streamed:
                    streamed = self.probe.streamed
                    waiting.deadline = trio.current_time() + DRAIN_TIMEOUT

    @staticmethod
    async def _wait_until_caught_up(catch_up: CatchUp) -> None:
        """Wait until a sweep of all mailboxes is complete and no gap is open; at most SETTLE_TIMEOUT seconds."""
        with trio.move_on_after(SETTLE_TIMEOUT):
            since = trio.current_time()
            catch_up.sweep()
            while catch_up.lagging(since):  # noqa: ASYNC110
                await trio.sleep(POLL)

    async def _wait_until_streaming(self, daemon: Daemon, stop: trio.Event | None = None) -> None:
        """Wait until all mailboxes stream or `stop` is set; at most SETTLE_TIMEOUT seconds."""
        with trio.move_on_after(SETTLE_TIMEOUT):
            while daemon.manager.streaming < self.plan.mailboxes:
                if stop is not None and stop.is_set():
                    return
                await trio.sleep(POLL)

    @asynccontextmanager
    async def _simulator(self) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
        """Start the simulator. Return the URL of its control interface and a TLS context that trusts it."""
        plan, directory = self.plan, self.directory
        command = [
            *(sys.executable, "-m", "listener", "simulate", "--rate", "0", "--until-stdin-closes"),
            *("--mailboxes", str(plan.mailboxes), "--seed", str(plan.seed)),
            *("--heartbeat", str(HEARTBEAT), "--auth", plan.auth, *AUTH_OPTIONS[plan.auth]),
            *("--ledger", str(directory / "ledger.jsonl"), "--write-config", str(directory / "config.toml")),
        ]
        process = await trio.lowlevel.open_process(
            command,
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stdout is not None
            output = bytearray()
            while b"\n" not in output:
                chunk = await process.stdout.receive_some()
                if not chunk:
                    raise SimulatorError(
                        f"the simulator did not start; its exit code is {await process.wait()}"
                    )
                output += chunk
            info = msgspec.json.decode(output.partition(b"\n")[0])
            yield str(info["control_url"]), ssl.create_default_context(cafile=info["ca_file"])
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()
                with trio.move_on_after(5):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def fault_requests(faults: str) -> list[dict[str, object]]:
    """Return the requests to post to the simulator: the name of a profile, or the entries of a file of faults.

    Raises ConfigError if it is neither, or if the file is invalid.
    """
    try:
        fault_plans.load(faults)
    except FaultError as error:
        raise ConfigError([Problem("--faults", str(error))]) from None
    if faults in fault_plans.PROFILES:
        return [{"profile": faults}]
    entries: list[dict[str, object]] = tomllib.loads(Path(faults).read_text(encoding="utf-8")).get(
        "faults", []
    )
    return entries


def _unix_time(loop_time: float) -> float:
    """Convert a time of trio's clock to Unix time."""
    return time.time() - (trio.current_time() - loop_time)


async def _post(http: httpx.AsyncClient, url: str, content: dict[str, object]) -> None:
    (await http.post(url, json=content)).raise_for_status()
