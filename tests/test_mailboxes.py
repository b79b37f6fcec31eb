"""The mailbox source on a virtual clock: groups and a file that change, fail, or are emptied by mistake."""

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
from listener.mailboxes import MAX_GROUPS, MAX_MEMBERS, MailboxSource, Sources, members_of

NOT_FOUND = Failure(code="ErrorNameResolutionNoResults")


@dataclass
class Groups:
    """Distribution groups. `members` is by group: "@" marks a nested group, "!" a contact, "#" a public folder; "…"
    omits other members. A Failure is raised."""

    members: dict[str, list[str] | Failure] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    async def expand(self, group: str) -> Expansion:
        self.requests.append(group)
        await trio.lowlevel.checkpoint()
        result = self.members.get(group, NOT_FOUND)
        if isinstance(result, Failure):
            raise ExchangeError(result)
        kinds = {"@": "PublicDL", "!": "Contact", "#": "PublicFolder"}
        found = (
            GroupMember(address=m.strip("@!#"), type=kinds.get(m[0], "Mailbox")) for m in result if m != "…"
        )
        return Expansion(tuple(found), complete="…" not in result)


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
    async def test_nested_groups_without_contacts(self) -> None:
        groups = Groups({"all": ["zoe", "@team", "!partner", "#folder"], "team": ["ann", "zoe"]})
        assert await members_of("all", groups.expand) == (("ann", "zoe"), {})

    async def test_groups_that_contain_each_other(self) -> None:
        groups = Groups({"a": ["@b", "ann"], "b": ["@c", "@b"], "c": ["@a", "bob"]})
        assert await members_of("a", groups.expand) == (("ann", "bob"), {})
        assert sorted(groups.requests) == ["a", "b", "c"]

    async def test_failure_of_a_nested_group_is_returned_with_the_other_members(self) -> None:
        found = await members_of("a", Groups({"a": ["@b", "ann", "@c"], "c": ["bob"]}).expand)
        assert found == (("ann", "bob"), {"b": NOT_FOUND})

    async def test_incomplete_nested_group_is_a_failure(self) -> None:
        found = await members_of("a", Groups({"a": ["@b"], "b": ["ann", "…"]}).expand)
        assert found.mailboxes == ("ann",)
        assert [(group, failure.text) for group, failure in found.failures.items()] == [
            ("b", "the server returned only some of the members")
        ]

    async def test_failure_of_the_group_itself_is_raised(self) -> None:
        with pytest.raises(ExchangeError):
            await members_of("a", Groups().expand)

    @pytest.mark.parametrize("more", [("PublicDL", 1), ("PublicDL", 3), ("Mailbox", 5000)])
    async def test_endless_nesting_is_limited(self, more: tuple[str, int]) -> None:
        """The members found so far are returned, with a failure, so that no previous member is dropped."""
        requests = 0

        async def expand(_group: str) -> Expansion:
            nonlocal requests
            requests += 1
            kind, count = more
            members = [GroupMember(address=f"{requests}-{n}@x.example", type=kind) for n in range(count)]
            return Expansion((*members, GroupMember(address=f"next-{requests}@x.example", type="PublicDL")))

        found = await members_of("a", expand)
        assert requests <= MAX_GROUPS
        assert len(found.mailboxes) <= MAX_MEMBERS + 5000
        assert found.failures["a"].code == "UnexpectedReply"

    @given(
        st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from(["@a", "@b", "@c", "1", "2"])))
    )
    def test_expansion_ends_for_any_nesting(self, members: dict[str, list[str]]) -> None:
        groups = Groups({name: list(members.get(name, [])) for name in "abcdef"})
        found = trio.run(members_of, "a", groups.expand)
        assert len(groups.requests) == len(set(groups.requests))
        assert set(found.mailboxes) == {
            m for group in groups.requests for m in members.get(group, []) if m[0] != "@"
        }


async def test_members_are_added_to_the_configured_mailboxes_and_refreshed() -> None:
    groups = Groups({"sales": ["ann", "bob"]})
    async with running(groups, Sources(listed=("zoe", "ann"), groups=("sales",)), refresh=0.05) as run:
        assert run.mailbox_source.mailboxes == ("zoe", "ann")
        await trio.sleep(0.02)
        assert run.mailbox_source.mailboxes == ("zoe", "ann", "bob")
        groups.members["sales"] = ["ann", "bob", "cat"]
        await trio.sleep(0.1)
        assert run.changes == [("zoe", "ann", "bob"), ("zoe", "ann", "bob", "cat")]
        assert run.logged("mailboxes.refreshed")[-1]["added"] == 1


def source_of(groups: Groups, sources: Sources, **options: Any) -> MailboxSource:
    return MailboxSource(sources=sources, expand=groups.expand, changed=lambda: None, **options)


@pytest.mark.parametrize(
    ("remaining", "rejected"), [(["a", "b", "c", "d"], False), (["a", "b", "c"], True), ([], True)]
)
async def test_refresh_that_would_drop_too_many_mailboxes_is_rejected(
    remaining: list[str], *, rejected: bool
) -> None:
    groups = Groups({"all": ["a", "b", "c", "d", "e"]})
    mailbox_source = source_of(groups, Sources(groups=("all",)), max_drop=0.2)
    await mailbox_source.refresh_now()
    groups.members["all"] = list(remaining)
    with structlog.testing.capture_logs() as log:
        await mailbox_source.refresh_now()
    if rejected:
        assert mailbox_source.mailboxes == ("a", "b", "c", "d", "e")
        (line,) = (line for line in log if line["event"] == "mailboxes.refresh_rejected")
        assert (line["log_level"], line["mailboxes"], line["dropped"]) == ("error", 5, 5 - len(remaining))
    else:
        assert mailbox_source.mailboxes == tuple(remaining)


async def test_failing_group_keeps_its_members_while_others_change() -> None:
    groups = Groups({"one": ["ann"], "two": ["bob"]})
    mailbox_source = source_of(groups, Sources(groups=("one", "two")))
    assert await mailbox_source.refresh_now()
    groups.members |= {"one": NOT_FOUND, "two": ["bob", "cat"]}
    assert not await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("ann", "bob", "cat")


@pytest.mark.parametrize("answer", [["ann", "@team"], ["ann", "…"]])
async def test_incomplete_group_loses_no_member_and_gains_new_ones(answer: list[str]) -> None:
    groups = Groups({"all": ["ann", "bob", "cat"]})
    mailbox_source = source_of(groups, Sources(groups=("all",)))
    assert await mailbox_source.refresh_now()
    groups.members["all"] = [*answer, "dan"]
    with structlog.testing.capture_logs() as log:
        assert not await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("ann", "bob", "cat", "dan")
    (line,) = (line for line in log if line["event"] == "mailboxes.refresh_failed")
    assert (line["source"], line.get("within")) == (("team", "all") if "@team" in answer else ("all", None))
    groups.members |= {"team": ["bob"], "all": [answer[0], "dan", "cat", "@team"]}
    assert await mailbox_source.refresh_now()
    groups.members["all"] = ["ann", "dan", "cat", "@team"]
    groups.members["team"] = []
    mailbox_source.max_drop = 0.5
    assert await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("ann", "cat", "dan")


async def test_refresh_is_retried_sooner_after_failures(autojump_clock: trio.testing.MockClock) -> None:
    groups = Groups()
    mailbox_source = source_of(groups, Sources(groups=("all",)), refresh=86400.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox_source.run)
        await trio.sleep(100)
        assert len(groups.requests) == 3  # at 0, 30 and 90 s
        groups.members["all"] = ["ann"]
        await trio.sleep(1000)
        assert mailbox_source.mailboxes == ("ann",)
        assert len(groups.requests) == 4
        nursery.cancel_scope.cancel()


async def test_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mailboxes.txt"
    sources = Sources(listed=("zoe@b.c",), file=file, in_file=("ann@b.c", "bob@b.c"))
    mailbox_source = source_of(Groups(), sources, max_drop=0.5)
    assert not await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("zoe@b.c", "ann@b.c", "bob@b.c")
    file.write_text("bob@b.c\nno address\n")
    assert not await mailbox_source.refresh_now()
    file.write_text("# new\nCat@b.c\nbob@b.c\n")
    assert await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("zoe@b.c", "cat@b.c", "bob@b.c")


async def test_must_deny_mailboxes_are_removed_from_groups() -> None:
    sources = Sources(groups=("all",), never=frozenset(["ceo"]))
    mailbox_source = source_of(Groups({"all": ["ann", "ceo"]}), sources)
    await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("ann",)


async def test_must_deny_mailboxes_are_removed_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mailboxes.txt"
    file.write_text("ann@b.c\nceo@b.c\n")
    mailbox_source = source_of(
        Groups(), Sources(file=file, in_file=("ann@b.c",), never=frozenset(["ceo@b.c"]))
    )
    with structlog.testing.capture_logs() as logs:
        assert await mailbox_source.refresh_now()
    assert mailbox_source.mailboxes == ("ann@b.c",)
    logged = [(line["event"], line["log_level"], line.get("mailbox")) for line in logs]
    assert logged == [("mailboxes.must_deny", "warning", "ceo@b.c")]


async def test_members_are_known_after_a_start_without_exchange(tmp_path: Path) -> None:
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


async def test_changed_sources_apply_and_are_refreshed_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    groups = Groups({"one": ["ann"], "two": ["bob"]})
    mailbox_source = source_of(groups, Sources(listed=("zoe",), groups=("one",)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox_source.run)
        await trio.sleep(1)
        mailbox_source.change(Sources(groups=("one", "two")), refresh=60.0, max_drop=0.1)
        assert mailbox_source.mailboxes == ("ann",)
        await trio.sleep(1)
        assert mailbox_source.mailboxes == ("ann", "bob")
        await trio.sleep(60)
        assert groups.requests == ["one", "one", "two", "one", "two"]
        nursery.cancel_scope.cancel()


async def test_reload_during_a_refresh_takes_precedence() -> None:
    groups = Groups({"sales": ["ann", "bob"]})
    async with running(groups, Sources(listed=("zoe",), groups=("sales",)), max_drop=1.0) as run:
        await trio.sleep(0.02)
        mailbox_source, journal = run.mailbox_source, run.mailbox_source._journal
        assert journal is not None

        class Slow:
            async def append(self, *arguments: Any) -> None:
                mailbox_source.change(Sources(listed=("zoe",)), refresh=3600.0, max_drop=1.0)
                assert journal is not None
                await journal.append(*arguments)

        groups.members["sales"] = ["ann", "cat"]
        mailbox_source._journal = Slow()  # type: ignore[assignment]
        await mailbox_source.refresh_now()
        assert mailbox_source.mailboxes == ("zoe",)


async def test_unexpected_exception_is_logged_and_retried(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Fragile(Groups):
        async def expand(self, group: str) -> Expansion:
            if len(self.requests) < 2:
                self.requests.append(group)
                raise ValueError("a date of the year 99999")
            return await super().expand(group)

    groups = Fragile({"all": ["ann"]})
    async with running(groups, Sources(groups=("all",))) as run:
        await trio.sleep(200)
        assert run.mailbox_source.mailboxes == ("ann",)
    assert len(run.logged("mailboxes.refresh_crashed")) == 2
