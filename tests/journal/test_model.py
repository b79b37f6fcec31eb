"""Random appends, reads, acknowledgements and crashes, compared with a simple model of the result."""

import tempfile
from pathlib import Path

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from listener.journal import Entry

from .tools import crashed, event, everything, items, opened

MAILBOXES = ["ann@x.example", "bob@x.example", "cat@x.example"]

append = st.tuples(st.just("append"), st.lists(st.integers(0, 2), max_size=6))
read = st.tuples(st.just("read"), st.integers(1, 8))
finish = st.tuples(st.just("finish"), st.integers(0, 2))  # the oldest event in progress of one mailbox
wait = st.tuples(st.just("wait"), st.just(0))
crash = st.tuples(st.just("crash"), st.just(0))
stop = st.tuples(st.just("stop"), st.just(0))


class Model:
    """The model: what was appended, in order, and what may and must be redelivered."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.appended: list[tuple[int, str]] = []
        self.finished: set[int] = set()
        self.durably_finished: set[int] = set()
        self.in_progress: list[Entry] = []

    async def run_steps(self, directory: Path, steps: list[tuple[str, object]]) -> Path | None:
        """Run the steps until they end, or until a crash or stop. Return where to continue."""
        async with opened(directory, memory=self.memory) as journal:
            reader = await journal.reader("h")
            self.in_progress = []
            seen: set[int] = set()
            while steps:
                step, what = steps.pop(0)
                if step == "append":
                    assert isinstance(what, list)
                    numbers = range(len(self.appended), len(self.appended) + len(what))
                    batch = [event(n, MAILBOXES[m]) for n, m in zip(numbers, what, strict=True)]
                    await journal.append(batch)
                    self.appended += [(n, MAILBOXES[m]) for n, m in zip(numbers, what, strict=True)]
                elif step == "read":
                    assert isinstance(what, int)
                    with trio.move_on_after(0.001):
                        got = await reader.read(what)
                        assert len(got) <= what
                        assert not seen & set(items(got))
                        seen |= set(items(got))
                        self.in_progress += got
                elif step == "finish":
                    assert isinstance(what, int)
                    own = [entry for entry in self.in_progress if entry.event.mailbox == MAILBOXES[what]]
                    for entry in own[:2]:
                        reader.acknowledge([entry.position])
                        self.in_progress.remove(entry)
                        self.finished.add(items([entry])[0])
                elif step == "wait":
                    await trio.sleep(1)
                    self.durably_finished = set(self.finished)
                elif step == "stop":
                    self.durably_finished = set(self.finished)
                    return directory
                else:
                    return crashed(directory, f"run{len(steps)}")
            self.check(seen, items(await everything(reader, 3)))
            return None

    def check(self, seen: set[int], rest: list[int]) -> None:
        assert not seen & set(rest)
        unfinished = {n for n, _ in self.appended} - self.finished
        assert unfinished <= seen | set(rest)
        assert rest == sorted(rest)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.one_of(append, append, read, read, finish, finish, wait, crash, stop), min_size=8, max_size=40
    ),
    memory=st.sampled_from([0, 0, 3, 100]),
)
def test_random_operations_and_crashes_lose_nothing(steps: list[tuple[str, object]], memory: int) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            model = Model(memory)
            left = list(steps)
            directory: Path | None = Path(temporary) / "first"
            assert directory is not None
            async with opened(directory) as journal:
                await journal.reader("h")  # so that it receives all later events
            while directory is not None:
                left_at = set(model.durably_finished)
                async with opened(crashed(directory, f"look{len(left)}-{id(left_at)}")) as journal:
                    # no durably acknowledged event is redelivered; all others are, in order
                    again = items(await everything(await journal.reader("h"), 5))
                assert not set(again) & left_at
                assert set(again) >= {n for n, _ in model.appended} - model.finished
                for mailbox in MAILBOXES:
                    own = {n for n, m in model.appended if m == mailbox}
                    order = [n for n in again if n in own]
                    assert order == sorted(order)
                model.finished = {n for n, _ in model.appended} - set(again)
                model.durably_finished = set(model.finished)
                directory = await model.run_steps(directory, left)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
