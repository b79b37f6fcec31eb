"""What operators ask of a daemon at work, in the virtual world."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from listener.config import Config
from listener.delivery.delivery import Source
from listener.errors import ConfigError
from listener.operations import Operations
from listener.simulator.settings import Settings
from tests.virtual.world import World, world

SETTINGS = Settings(mailboxes=12, backends=3, seed=2)
FEW = Settings(mailboxes=3, backends=3, seed=2)


def changed(there: World, **sections: dict[str, Any]) -> Config:
    """The daemon's configuration with these values in these sections."""
    config = there.daemon.config
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def operations(there: World, config: Config) -> Operations:
    def load() -> tuple[Config, Sequence[Source]]:
        return config, [there.notes]

    return Operations(there.daemon, load)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread would let the virtual clock leap."""

    async def run_sync(work: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


async def test_limits_and_patience_change_and_no_stream_is_opened_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(SETTINGS) as there:
        await there.until_streaming()
        await trio.sleep(100)
        before = there.daemon.delivery.workers
        opened = {name: runner.opened for name, runner in there.daemon.runners.by_group.items()}
        asked = len(there.wire.asked)
        config = changed(
            there, exchange={"concurrency": 3, "user_agent": "x"}, backoff={"first": 7.0}, stream={"window": 300.0},
            catch_up={"interval": 77.0},
        )  # fmt: skip
        there_is = operations(there, config)
        assert await there_is.reload() == ("exchange.user_agent",)
        assert len(there.wire.asked) == asked
        daemon = there.daemon
        assert {name: runner.opened for name, runner in daemon.runners.by_group.items()} == opened
        assert daemon.delivery.workers == before
        assert daemon.access.throttles.limit == 3
        assert daemon.catch_up.interval == 77
        assert {runner.state.policy.backoff.first for runner in daemon.runners.by_group.values()} == {7.0}
        assert {runner.spec.window for runner in daemon.runners.by_group.values()} == {5}
        it = there_is.snapshot()
        assert (it.state, it.streaming, it.reloads.done, it.reloads.pending) == (
            "listening", 12, 1, ("exchange.user_agent",),
        )  # fmt: skip
        assert all(group.stream_opened is not None for group in it.groups)
        assert dict(there_is.streaming()) == dict.fromkeys(there.mailboxes, True)


async def test_mailboxes_leave_and_come_back(autojump_clock: trio.testing.MockClock) -> None:
    async with world(SETTINGS) as there:
        await there.until_streaming()
        everybody = there.mailboxes
        few = changed(there, mailboxes={"addresses": tuple(everybody[:9])})
        await operations(there, few).reload()
        await trio.sleep(60)
        assert (there.daemon.manager.streaming, there.daemon.manager.mailboxes) == (9, 9)
        all_ = changed(there, mailboxes={"addresses": tuple(everybody)})
        await operations(there, all_).reload()
        await there.until_streaming()
        made = there.touch(everybody[-1])
        await trio.sleep(1)
        assert made <= there.notes.came.keys()


async def test_a_mistake_of_ours_ends_nothing(autojump_clock: trio.testing.MockClock) -> None:
    def load() -> NoReturn:
        raise LookupError("a mistake")

    async with world(FEW) as there:
        await there.until_streaming()
        there_is = Operations(there.daemon, load)
        with pytest.raises(ConfigError, match="failed because of an internal error; see the log"):
            await there_is.reload()
        assert there.logged("listener.reload_crashed")
        assert there.streaming == 3


async def test_nothing_is_reloaded_before_the_start_is_over(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    async with world(FEW) as there:
        monkeypatch.setattr(
            type(there.daemon.systemd.notifier), "_send", lambda _, *lines: told.extend(lines)
        )
        with pytest.raises(ConfigError, match="the daemon is starting"):
            await operations(there, there.daemon.config).reload()
        assert not told  # READY=1 would end the start for the service manager
        await there.until_streaming()


async def test_who_is_not_listened_to_cannot_be_watched(autojump_clock: trio.testing.MockClock) -> None:
    async with world(FEW) as there:
        await there.until_streaming()
        with pytest.raises(LookupError, match=r"unknown mailbox .*: the daemon does not listen to it"):
            operations(there, there.daemon.config).watch("nobody@contoso.example")


async def test_a_mailbox_is_watched_in_whatever_case_it_is_named(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(FEW) as there:
        mailbox = there.mailboxes[0]
        lines = operations(there, there.daemon.config).watch(mailbox.title())
        assert json.loads(await anext(lines))["mailbox"] == mailbox
        await lines.aclose()  # type: ignore[attr-defined]
