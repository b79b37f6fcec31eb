"""Runs the simulator as a process of its own and the daemon here, over real sockets, and takes the measure."""

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
from listener.demo.verdict import Call, Gaps, balance, call_of, read_ledger
from listener.errors import ConfigError, ListenerError, Problem
from listener.event import MailboxEvent
from listener.handler import Handler
from listener.plugins import load_all
from listener.simulator import fault_plans
from listener.simulator.faults import FaultError

log = structlog.get_logger()

# How long traffic waits for the mailboxes to stream, at most, and the end for the next of what is still on its way;
# seconds.
SETTLE = 120.0
LAST_CALL = 10.0
# A stream that keeps things back, and says nothing, is found by sweeps: soon enough for a demo.
SWEEPS = '\n[catch_up]\ninterval = "10s"\n'
# Somebody has to ask for something while tokens end.
REQUESTS = '\n[catch_up]\ninterval = "40s"\n'
POLL = 0.05
# The simulator's; short, so that a stream that fell silent is found within a demo.
HEARTBEAT = 5.0
AS_STRICT_AS = {
    "basic": (),
    "ntlm": ("--extended-protection", "require"),
    "negotiate": ("--extended-protection", "require"),
    "oauth": ("--token-lifetime", "20"),
}
"""What makes each kind of authentication worth showing; a token that ends often shows that streams do not mind."""


class SimulatorError(ListenerError):
    """The simulator did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be shown. `rate` is in events per second, `duration` in seconds (None: until told to stop).

    `faults` is a profile of the simulator or a file of faults, `auth` one of its kinds of authentication.
    """

    mailboxes: int
    rate: float
    seed: int
    duration: float | None
    faults: str = "none"
    auth: str = "basic"


@dataclass(slots=True)
class Probe:
    """A handler that notes what it is called with, and when (Unix seconds)."""

    calls: list[Call] = field(default_factory=list)
    latest: deque[MailboxEvent] = field(default_factory=lambda: deque(maxlen=8))
    name: str = "demo"

    @property
    def told(self) -> int:
        """Calls with events that came on a stream."""
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
    """One run of the demo. What it shows while it runs: `daemon`, `probe`, `generating`, `started` (Unix time)."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.probe = Probe()
        self.daemon: Daemon | None = None
        self.started = time.time()
        self.generating_since: float | None = None
        self.observer = GapObserver(_wall)
        self.streaming_at_end = 0
        self.groups_at_end = 0

    async def run(self, stop: trio.Event) -> None:
        """Runs until the duration is over or `stop` is set. Raises SimulatorError."""
        async with (
            self._simulator() as (control_url, tls),
            httpx.AsyncClient(verify=tls, trust_env=False) as http,
        ):
            file = self.directory / "config.toml"
            if self.plan.faults != "none":
                file.write_text(file.read_text() + SWEEPS)
            elif self.plan.auth == "oauth":
                file.write_text(file.read_text() + REQUESTS)
            config, handlers = load_all(file)
            end = trio.Event()
            async with (
                open_daemon(config, [*handlers, self.probe], observer=self.observer) as daemon,
                trio.open_nursery() as nursery,
            ):
                self.daemon = daemon
                nursery.start_soon(daemon.run, end)
                await self._measure(daemon, http, control_url, stop)
                self.streaming_at_end = daemon.manager.streaming
                self.groups_at_end = len(daemon.runners.by_group)
                end.set()

    @property
    def gaps(self) -> dict[str, Gaps]:
        """By mailbox."""
        return self.observer.gaps()

    def summary(self) -> dict[str, object]:
        """The fixed keys of `demo --json`."""
        with (self.directory / "ledger.jsonl").open("rb") as file:
            ledger, faults = read_ledger(file)
        books = balance(ledger, self.probe.calls, self.gaps)
        for line in books.lost:
            what = {"type": line.key.kind, "subject": line.thing, "happened": f"{line.time:.3f}"}
            log.error("demo.lost", mailbox=line.mailbox, **what)
        verdict = books.verdict()
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
        await self._all_streaming(daemon, stop)
        await _post(http, f"{control_url}/traffic", {"rate": self.plan.rate})
        for order in orders(self.plan.faults):
            await _post(http, f"{control_url}/faults", order)
        self.generating_since = time.time()
        with trio.move_on_after(math.inf if self.plan.duration is None else self.plan.duration):
            await stop.wait()
        await _post(http, f"{control_url}/traffic", {"rate": 0})
        if self.plan.faults != "none":
            await _post(http, f"{control_url}/faults", {"profile": "none"})
            await self._all_streaming(daemon)
            await self._caught_up(daemon.catch_up)
        state = (await http.get(f"{control_url}/state")).raise_for_status().json()
        with trio.move_on_after(LAST_CALL) as waiting:
            told = self.probe.told
            while self.probe.told < state["generated"] and self.plan.faults == "none":
                await trio.sleep(POLL)
                if self.probe.told > told:
                    told = self.probe.told
                    waiting.deadline = trio.current_time() + LAST_CALL

    @staticmethod
    async def _caught_up(catch_up: CatchUp) -> None:
        """Returns when each mailbox has been compared since now and has no open gap, or after SETTLE seconds."""
        with trio.move_on_after(SETTLE):
            since = trio.current_time()
            catch_up.sweep()
            while catch_up.lagging(since):  # noqa: ASYNC110
                await trio.sleep(POLL)

    async def _all_streaming(self, daemon: Daemon, stop: trio.Event | None = None) -> None:
        """Returns when every mailbox streams, or after SETTLE seconds, or when told to stop."""
        with trio.move_on_after(SETTLE):
            while daemon.manager.streaming < self.plan.mailboxes:
                if stop is not None and stop.is_set():
                    return
                await trio.sleep(POLL)

    @asynccontextmanager
    async def _simulator(self) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
        """Where its control interface is, and what to trust there."""
        plan, here = self.plan, self.directory
        command = [
            *(sys.executable, "-m", "listener", "simulate", "--rate", "0", "--until-stdin-closes"),
            *("--mailboxes", str(plan.mailboxes), "--seed", str(plan.seed)),
            *("--heartbeat", str(HEARTBEAT), "--auth", plan.auth, *AS_STRICT_AS[plan.auth]),
            *("--ledger", str(here / "ledger.jsonl"), "--write-config", str(here / "config.toml")),
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
            first = bytearray()
            while b"\n" not in first:
                chunk = await process.stdout.receive_some()
                if not chunk:
                    raise SimulatorError(
                        f"the simulator ended before it began, with exit code {await process.wait()}"
                    )
                first += chunk
            told = msgspec.json.decode(first.partition(b"\n")[0])
            yield str(told["control_url"]), ssl.create_default_context(cafile=told["ca_file"])
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()
                with trio.move_on_after(5):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def orders(faults: str) -> list[dict[str, object]]:
    """What is to be posted to the simulator: a profile by its name, or the entries of a file of faults.

    Raises ConfigError if it is neither, or the file makes no sense.
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


def _wall(moment: float) -> float:
    """A moment of trio's clock in Unix seconds."""
    return time.time() - (trio.current_time() - moment)


async def _post(http: httpx.AsyncClient, url: str, content: dict[str, object]) -> None:
    (await http.post(url, json=content)).raise_for_status()
