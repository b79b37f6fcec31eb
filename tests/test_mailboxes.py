"""Who is to be listened to, on a virtual clock: groups and a file that change, fail, and are emptied by mistake."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from listener.errors import ExchangeError
from listener.ews.codes import Failure
from listener.ews.directory import Expansion, GroupMember
from listener.journal.sqlite import open_journal
from listener.mailboxes import MOST_GROUPS, MOST_MEMBERS, MailboxSource, Sources, members_of

GONE = Failure(code="ErrorNameResolutionNoResults")


@dataclass
class Groups:
    """`says` has the members by group: an @ makes a group of them, a ! a contact, a … leaves others out; a Failure
    instead is raised."""

    says: dict[str, list[str] | Failure] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def expand(self, group: str) -> Expansion:
        self.asked.append(group)
        await trio.lowlevel.checkpoint()
        told = self.says.get(group, GONE)
        if isinstance(told, Failure):
            raise ExchangeError(told)
        kinds = {"@": "PublicDL", "!": "Contact", "#": "PublicFolder"}
        members = (
            GroupMember(address=m.strip("@!#"), type=kinds.get(m[0], "Mailbox")) for m in told if m != "…"
        )
        return Expansion(tuple(members), complete="…" not in told)


@dataclass
class Run:
    mailbox_source: MailboxSource
    groups: Groups
    log: list[Any]
    changes: list[tuple[str, ...]]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]


@asynccontextmanager
async def running(
    groups: Groups, sources: Sources, directory: Path | None = None, **options: Any
) -> AsyncIterator[Run]:
    changes: list[tuple[str, ...]] = []
    with structlog.testing.capture_logs() as log:
        async with open_journal(directory) as journal, trio.open_nursery() as nursery:
            mailbox_source = MailboxSource(
                sources=sources,
                expand=groups.expand,
                changed=lambda: changes.append(mailbox_source.mailboxes),
                **{"refresh": 3600.0} | options,
            )
            await mailbox_source.recall(journal)
            nursery.start_soon(mailbox_source.run)
            yield Run(mailbox_source, groups, log, changes)
            nursery.cancel_scope.cancel()


class TestMembers:
    async def test_groups_within_groups_and_no_contacts(self) -> None:
        groups = Groups({"all": ["zoe", "@team", "!partner", "#folder"], "team": ["ann", "zoe"]})
        assert await members_of("all", groups.expand) == (("ann", "zoe"), {})

    async def test_groups_that_hold_each_other(self) -> None:
        groups = Groups({"a": ["@b", "ann"], "b": ["@c", "@b"], "c": ["@a", "bob"]})
        assert await members_of("a", groups.expand) == (("ann", "bob"), {})
        assert sorted(groups.asked) == ["a", "b", "c"]

    async def test_one_within_that_cannot_be_asked_is_named_and_the_others_are_told(self) -> None:
        found = await members_of("a", Groups({"a": ["@b", "ann", "@c"], "c": ["bob"]}).expand)
        assert found == (("ann", "bob"), {"b": GONE})

    async def test_one_that_is_told_in_part_is_named(self) -> None:
        found = await members_of("a", Groups({"a": ["@b"], "b": ["ann", "…"]}).expand)
        assert found.mailboxes == ("ann",)
        assert [(group, why.text) for group, why in found.failures.items()] == [
            ("b", "only a part of its members was told")
        ]

    async def test_one_that_cannot_be_asked_itself_is_an_error(self) -> None:
        with pytest.raises(ExchangeError):
            await members_of("a", Groups().expand)

    @pytest.mark.parametrize("more", [("PublicDL", 1), ("PublicDL", 3), ("Mailbox", 5000)])
    async def test_groups_without_end_have_a_bound(self, more: tuple[str, int]) -> None:
        """What was found so far counts, and those from before stay: not all of it was told."""
        asked = 0

        async def expand(_group: str) -> Expansion:
            nonlocal asked
            asked += 1
            kind, count = more
            members = [GroupMember(address=f"{asked}-{n}@x.example", type=kind) for n in range(count)]
            return Expansion((*members, GroupMember(address=f"next-{asked}@x.example", type="PublicDL")))

        found = await members_of("a", expand)
        assert asked <= MOST_GROUPS
        assert len(found.mailboxes) <= MOST_MEMBERS + 5000
        assert found.failures["a"].code == "UnexpectedReply"

    @given(
        st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from(["@a", "@b", "@c", "1", "2"])))
    )
    def test_it_comes_to_an_end_whatever_holds_what(self, says: dict[str, list[str]]) -> None:
        groups = Groups({name: list(says.get(name, [])) for name in "abcdef"})
        found = trio.run(members_of, "a", groups.expand)
        assert len(groups.asked) == len(set(groups.asked))
        assert set(found.mailboxes) == {
            m for group in groups.asked for m in says.get(group, []) if m[0] != "@"
        }


async def test_members_join_those_of_the_configuration_and_are_asked_for_again() -> None:
    groups = Groups({"sales": ["ann", "bob"]})
    async with running(groups, Sources(listed=("zoe", "ann"), groups=("sales",)), refresh=0.05) as run:
        assert run.mailbox_source.mailboxes == ("zoe", "ann")
        await trio.sleep(0.02)
        assert run.mailbox_source.mailboxes == ("zoe", "ann", "bob")
        groups.says["sales"] = ["ann", "bob", "cat"]
        await trio.sleep(0.1)
        assert run.changes == [("zoe", "ann", "bob"), ("zoe", "ann", "bob", "cat")]
        assert run.logged("mailboxes.refreshed")[-1]["added"] == 1


def census_of(groups: Groups, sources: Sources, **options: Any) -> MailboxSource:
    return MailboxSource(sources=sources, expand=groups.expand, changed=lambda: None, **options)


@pytest.mark.parametrize(
    ("left", "stopped"), [(["a", "b", "c", "d"], False), (["a", "b", "c"], True), ([], True)]
)
async def test_a_refresh_that_would_drop_too_many_changes_nothing(left: list[str], *, stopped: bool) -> None:
    groups = Groups({"all": ["a", "b", "c", "d", "e"]})
    mailbox_source = census_of(groups, Sources(groups=("all",)), max_drop=0.2)
    await mailbox_source.take()
    groups.says["all"] = list(left)
    with structlog.testing.capture_logs() as log:
        await mailbox_source.take()
    if stopped:
        assert mailbox_source.mailboxes == ("a", "b", "c", "d", "e")
        (line,) = (line for line in log if line["event"] == "mailboxes.refresh_rejected")
        assert (line["log_level"], line["mailboxes"], line["dropped"]) == ("error", 5, 5 - len(left))
    else:
        assert mailbox_source.mailboxes == tuple(left)


async def test_a_group_that_cannot_be_asked_keeps_its_members_while_others_change() -> None:
    groups = Groups({"one": ["ann"], "two": ["bob"]})
    mailbox_source = census_of(groups, Sources(groups=("one", "two")))
    assert await mailbox_source.take()
    groups.says |= {"one": GONE, "two": ["bob", "cat"]}
    assert not await mailbox_source.take()
    assert mailbox_source.mailboxes == ("ann", "bob", "cat")


@pytest.mark.parametrize("told", [["ann", "@team"], ["ann", "…"]])
async def test_a_group_of_which_only_a_part_is_told_loses_nobody_and_others_come(told: list[str]) -> None:
    groups = Groups({"all": ["ann", "bob", "cat"]})
    mailbox_source = census_of(groups, Sources(groups=("all",)))
    assert await mailbox_source.take()
    groups.says["all"] = [*told, "dan"]
    with structlog.testing.capture_logs() as log:
        assert not await mailbox_source.take()
    assert mailbox_source.mailboxes == ("ann", "bob", "cat", "dan")
    (line,) = (line for line in log if line["event"] == "mailboxes.refresh_failed")
    assert (line["source"], line.get("within")) == (("team", "all") if "@team" in told else ("all", None))
    groups.says |= {"team": ["bob"], "all": [told[0], "dan", "cat", "@team"]}
    assert await mailbox_source.take()
    groups.says["all"] = ["ann", "dan", "cat", "@team"]
    groups.says["team"] = []
    mailbox_source.max_drop = 0.5
    assert await mailbox_source.take()
    assert mailbox_source.mailboxes == ("ann", "cat", "dan")


async def test_failures_are_asked_again_sooner(autojump_clock: trio.testing.MockClock) -> None:
    groups = Groups()
    mailbox_source = census_of(groups, Sources(groups=("all",)), refresh=86400.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox_source.run)
        await trio.sleep(100)
        assert len(groups.asked) == 3  # at 0, 30 and 90 s
        groups.says["all"] = ["ann"]
        await trio.sleep(1000)
        assert mailbox_source.mailboxes == ("ann",)
        assert len(groups.asked) == 4
        nursery.cancel_scope.cancel()


async def test_the_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mailboxes.txt"
    sources = Sources(listed=("zoe@b.c",), file=file, in_file=("ann@b.c", "bob@b.c"))
    mailbox_source = census_of(Groups(), sources, max_drop=0.5)
    assert not await mailbox_source.take()
    assert mailbox_source.mailboxes == ("zoe@b.c", "ann@b.c", "bob@b.c")
    file.write_text("bob@b.c\nno address\n")
    assert not await mailbox_source.take()
    file.write_text("# new\nCat@b.c\nbob@b.c\n")
    assert await mailbox_source.take()
    assert mailbox_source.mailboxes == ("zoe@b.c", "cat@b.c", "bob@b.c")


async def test_who_must_deny_is_left_out_of_groups() -> None:
    sources = Sources(groups=("all",), never=frozenset(["ceo"]))
    mailbox_source = census_of(Groups({"all": ["ann", "ceo"]}), sources)
    await mailbox_source.take()
    assert mailbox_source.mailboxes == ("ann",)


async def test_who_must_deny_is_left_out_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mailboxes.txt"
    file.write_text("ann@b.c\nceo@b.c\n")
    mailbox_source = census_of(
        Groups(), Sources(file=file, in_file=("ann@b.c",), never=frozenset(["ceo@b.c"]))
    )
    with structlog.testing.capture_logs() as logs:
        assert await mailbox_source.take()
    assert mailbox_source.mailboxes == ("ann@b.c",)
    told = [(line["event"], line["log_level"], line.get("mailbox")) for line in logs]
    assert told == [("mailboxes.must_deny", "warning", "ceo@b.c")]


async def test_what_groups_told_last_is_known_after_a_start_without_exchange(tmp_path: Path) -> None:
    sources = Sources(groups=("all", "other"))
    start = partial(running, sources=sources, directory=tmp_path)
    async with start(Groups({"all": ["ann", "bob"], "other": ["cat"]})) as run:
        with trio.fail_after(5):
            while not run.changes:
                await trio.sleep(0.01)
    async with start(Groups()) as run:
        assert run.mailbox_source.mailboxes == ("ann", "bob", "cat")
        await trio.sleep(0.05)
        assert run.changes == []
    # A group that is no longer configured is forgotten.
    async with running(Groups(), Sources(groups=("other",)), tmp_path) as run:
        assert run.mailbox_source.mailboxes == ("cat",)
    async with start(Groups()) as run:
        assert run.mailbox_source.mailboxes == ("cat",)


async def test_other_sources_count_at_once_and_are_asked(autojump_clock: trio.testing.MockClock) -> None:
    groups = Groups({"one": ["ann"], "two": ["bob"]})
    mailbox_source = census_of(groups, Sources(listed=("zoe",), groups=("one",)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox_source.run)
        await trio.sleep(1)
        mailbox_source.change(Sources(groups=("one", "two")), refresh=60.0, max_drop=0.1)
        assert mailbox_source.mailboxes == ("ann",)
        await trio.sleep(1)
        assert mailbox_source.mailboxes == ("ann", "bob")
        await trio.sleep(60)
        assert groups.asked == ["one", "one", "two", "one", "two"]
        nursery.cancel_scope.cancel()


async def test_a_reload_while_members_are_being_written_has_the_last_word() -> None:
    groups = Groups({"sales": ["ann", "bob"]})
    async with running(groups, Sources(listed=("zoe",), groups=("sales",)), max_drop=1.0) as run:
        await trio.sleep(0.02)
        mailbox_source, journal = run.mailbox_source, run.mailbox_source._journal
        assert journal is not None

        class Slow:
            async def append(self, *what: Any) -> None:
                mailbox_source.change(Sources(listed=("zoe",)), refresh=3600.0, max_drop=1.0)
                assert journal is not None
                await journal.append(*what)

        groups.says["sales"] = ["ann", "cat"]
        mailbox_source._journal = Slow()  # type: ignore[assignment]
        await mailbox_source.take()
        assert mailbox_source.mailboxes == ("zoe",)


async def test_an_unknown_exception_is_asked_again_later_and_ends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Fragile(Groups):
        async def expand(self, group: str) -> Expansion:
            if len(self.asked) < 2:
                self.asked.append(group)
                raise ValueError("a date of the year 99999")
            return await super().expand(group)

    groups = Fragile({"all": ["ann"]})
    async with running(groups, Sources(groups=("all",))) as run:
        await trio.sleep(200)
        assert run.mailbox_source.mailboxes == ("ann",)
    assert len(run.logged("mailboxes.refresh_crashed")) == 2
