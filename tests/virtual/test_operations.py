"""Operations on a running daemon, on a virtual clock."""

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
from tests.virtual.world import World, open_world

SETTINGS = Settings(mailboxes=12, backends=3, seed=2)
FEW = Settings(mailboxes=3, backends=3, seed=2)


def changed(world: World, **sections: dict[str, Any]) -> Config:
    """Return the daemon's configuration with these values in these sections."""
    config = world.daemon.config
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def operations(world: World, config: Config) -> Operations:
    def load() -> tuple[Config, Sequence[Source]]:
        return config, [world.recorder]

    return Operations(world.daemon, load)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run thread work inline: the virtual clock would jump while a thread runs."""

    async def run_sync(work: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


async def test_reload_changes_limits_without_reopening_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_world(SETTINGS) as world:
        await world.until_streaming()
        await trio.sleep(100)
        before = world.daemon.delivery.workers
        opened = {name: runner.opened for name, runner in world.daemon.runners.by_group.items()}
        requests = len(world.wire.requests)
        config = changed(
            world, exchange={"concurrency": 3, "user_agent": "x"}, backoff={"first": 7.0}, stream={"window": 300.0},
            catch_up={"interval": 77.0},
        )  # fmt: skip
        service = operations(world, config)
        assert await service.reload() == ("exchange.user_agent",)
        assert len(world.wire.requests) == requests
        daemon = world.daemon
        assert {name: runner.opened for name, runner in daemon.runners.by_group.items()} == opened
        assert daemon.delivery.workers == before
        assert daemon.access.throttles.limit == 3
        assert daemon.catch_up.interval == 77
        assert {runner.state.policy.backoff.first for runner in daemon.runners.by_group.values()} == {7.0}
        assert {runner.spec.window for runner in daemon.runners.by_group.values()} == {5}
        it = service.snapshot()
        assert (it.state, it.streaming, it.reloads.done, it.reloads.pending) == (
            "listening", 12, 1, ("exchange.user_agent",),
        )  # fmt: skip
        assert all(group.stream_opened is not None for group in it.groups)
        assert dict(service.streaming()) == dict.fromkeys(world.mailboxes, True)


async def test_mailboxes_are_removed_and_added_again(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world(SETTINGS) as world:
        await world.until_streaming()
        all_addresses = world.mailboxes
        few = changed(world, mailboxes={"addresses": tuple(all_addresses[:9])})
        await operations(world, few).reload()
        await trio.sleep(60)
        assert (world.daemon.manager.streaming, world.daemon.manager.mailboxes) == (9, 9)
        all_ = changed(world, mailboxes={"addresses": tuple(all_addresses)})
        await operations(world, all_).reload()
        await world.until_streaming()
        made = world.change_each(all_addresses[-1])
        await trio.sleep(1)
        assert made <= world.recorder.received_at.keys()


async def test_bug_in_an_operation_does_not_stop_the_daemon(autojump_clock: trio.testing.MockClock) -> None:
    def load() -> NoReturn:
        raise LookupError("a bug")

    async with open_world(FEW) as world:
        await world.until_streaming()
        service = Operations(world.daemon, load)
        with pytest.raises(ConfigError, match="failed because of an internal error; see the log"):
            await service.reload()
        assert world.logged("listener.reload_crashed")
        assert world.streaming == 3


async def test_reload_waits_until_the_start_is_complete(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    async with open_world(FEW) as world:
        monkeypatch.setattr(
            type(world.daemon.systemd.notifier), "_send", lambda _, *lines: reported.extend(lines)
        )
        with pytest.raises(ConfigError, match="the daemon is starting"):
            await operations(world, world.daemon.config).reload()
        assert not reported  # READY=1 would report the start as complete to the service manager
        await world.until_streaming()


async def test_mailbox_that_is_not_configured_cannot_be_watched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_world(FEW) as world:
        await world.until_streaming()
        with pytest.raises(LookupError, match=r"unknown mailbox .*: the daemon does not listen to it"):
            operations(world, world.daemon.config).watch("unknown@contoso.example")


async def test_watch_ignores_the_case_of_the_address(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_world(FEW) as world:
        mailbox = world.mailboxes[0]
        lines = operations(world, world.daemon.config).watch(mailbox.title())
        assert json.loads(await anext(lines))["mailbox"] == mailbox
        await lines.aclose()  # type: ignore[attr-defined]
