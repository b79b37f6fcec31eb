"""At most three tries with refused credentials, however many ask."""

from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from listener.errors import ExchangeError
from listener.ews.codes import Failure, Verdict
from listener.ews.soap import Impersonation
from listener.exchange.auth.lockout import (
    MAX_ATTEMPTS,
    PAUSES,
    TRUSTED_FOR,
    Identity,
    LockoutProtection,
    Refusals,
    RefusalStore,
)

EWS = "https://mail.example.com/EWS/Exchange.asmx"
OTHER = "https://autodiscover.example.com/autodiscover/autodiscover.svc"
REFUSED = Failure(code="Http401", text="the server offers Basic", status=401)


class Server:
    """What it answers to all, and how often it was asked."""

    def __init__(self, answer: Failure | None = None, seconds: float = 0.1) -> None:
        self.answer = answer
        self.seconds = seconds
        self.asked: list[float] = []
        self.most = self.now = 0

    async def ask(self, lockout: LockoutProtection, url: str = EWS) -> Failure | None:
        """What comes of one request."""
        try:
            async with lockout.request(url):
                self.asked.append(trio.current_time())
                self.now += 1
                self.most = max(self.most, self.now)
                try:
                    await trio.sleep(self.seconds)
                finally:
                    self.now -= 1
                if self.answer is not None:
                    raise ExchangeError(self.answer)
        except ExchangeError as error:
            return error.failure
        return None

    async def ask_often(self, lockout: LockoutProtection, times: int, url: str = EWS) -> list[Failure | None]:
        """What comes of so many requests at once."""
        came: list[Failure | None] = []

        async def one() -> None:
            came.append(await self.ask(lockout, url))

        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(one)
        return came


async def test_one_tries_first_and_then_all_at_once(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(), LockoutProtection("svc")
    await server.ask_often(lockout, 40)
    assert server.most == 39
    assert server.asked.count(server.asked[0]) == 1
    await trio.sleep(TRUSTED_FOR - 1)
    await server.ask_often(lockout, 40)  # still trusted
    assert server.most == 40


async def test_after_a_quiet_minute_one_tries_first_again(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(), LockoutProtection("svc")
    await server.ask(lockout)
    await trio.sleep(TRUSTED_FOR + 1)
    server.answer = REFUSED
    before = len(server.asked)
    came = await server.ask_often(lockout, 40)
    assert server.most == 1
    assert len(server.asked) - before == 2  # the second refusal brings a pause
    assert {failure.code for failure in came if failure} == {"Http401"}
    assert len(came) == 40


async def test_no_more_than_three_and_then_a_pause_that_grows(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    start = trio.current_time()
    with trio.move_on_after(86400):
        while True:
            await server.ask_often(lockout, 3)
            await server.ask_often(lockout, 3, OTHER)
            await trio.sleep(30)
    attempts = [round(moment - start) for moment in server.asked]
    assert len([t for t in attempts if t < 900]) <= MAX_ATTEMPTS
    pauses = [later - earlier for earlier, later in pairwise(attempts[2:])]
    assert pauses == sorted(pauses)
    assert pauses[0] >= PAUSES[2]
    assert pauses[-1] >= PAUSES[-1]


async def test_who_is_held_back_is_told_why_and_how_long(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    with structlog.testing.capture_logs() as logs:
        first, second = [await server.ask(lockout) for _ in range(2)]
    assert first == REFUSED  # the next one may try at once
    assert second is not None
    assert second.wait == 60
    assert [line["attempts"] for line in logs if line["event"] == "auth.refused"] == [1, 2]
    await trio.sleep(20)
    held = await server.ask(lockout)
    assert held is not None
    assert (held.code, held.text, held.wait) == ("Http401", REFUSED.text, pytest.approx(40))
    assert len(server.asked) == 2


async def test_what_was_under_way_counts_but_does_not_prolong(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(), LockoutProtection("svc")
    await server.ask(lockout)
    server.answer = REFUSED
    await server.ask_often(lockout, 10)  # all trusted: the password has changed this minute
    assert lockout.attempts == 10
    held = await server.ask(lockout, OTHER)
    assert held is not None
    assert held.wait == pytest.approx(PAUSES[MAX_ATTEMPTS - 1], abs=1)


async def test_all_is_forgotten_when_they_are_taken(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    await server.ask(lockout)
    server.answer = Failure(code="ErrorServerBusy", status=500)  # says so to those who are let in only
    with structlog.testing.capture_logs() as logs:
        assert await server.ask(lockout) == server.answer
    assert [line["event"] for line in logs] == ["auth.accepted"]
    assert lockout.attempts == 0


async def test_where_nobody_is_there_the_others_hear_it_too(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(Failure(code="ConnectTimeout"), seconds=10), LockoutProtection("svc")
    start = trio.current_time()
    came = await server.ask_often(lockout, 40)
    assert trio.current_time() - start == pytest.approx(10)
    assert came == [server.answer] * 40


@pytest.mark.parametrize("answer", [Failure(code="ReadTimeout"), Failure(code="Http503", status=503)])
async def test_an_answer_that_tells_nothing_lets_the_next_one_try(
    autojump_clock: trio.testing.MockClock, answer: Failure
) -> None:
    server, lockout = Server(answer), LockoutProtection("svc")
    await server.ask_often(lockout, 5)
    assert (len(server.asked), server.most, lockout.attempts) == (5, 1, 0)


async def test_a_try_that_is_given_up_lets_the_next_one_try(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(seconds=1000), LockoutProtection("svc")
    with trio.move_on_after(1):
        await server.ask(lockout)
    server.seconds = 1
    assert await server.ask(lockout) is None


async def test_refusals_outlive_the_process(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    server, path = Server(REFUSED), tmp_path / "refusals.json"

    def process(password: str) -> LockoutProtection:
        lockout = LockoutProtection("svc", lambda: password)
        lockout.persist(RefusalStore(path))
        return lockout

    for _ in range(5):  # restarted over and over
        lockout = process("wrong")
        for _ in range(2):
            await server.ask(lockout)
    assert len(server.asked) == 2
    held = await server.ask(process("wrong"))
    assert held is not None
    assert (held.code, held.text) == ("Http401", REFUSED.text)
    assert held.wait == pytest.approx(60, abs=5)
    assert b"wrong" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    server.answer = None
    assert await server.ask(process("right")) is None  # another password is another matter
    assert process("wrong").attempts == 2
    await trio.sleep(0)
    lockout = process("wrong")
    await trio.sleep(61)
    assert await server.ask(lockout) is None
    assert process("wrong").attempts == 0


@pytest.mark.parametrize("content", [b"", b"{", b'{"svc": 1}'])
def test_a_file_that_cannot_be_read_counts_as_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refusals.json"
    path.write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        assert RefusalStore(path).load("svc", "x") is None
        RefusalStore(path / "no directory" / "x.json").save("svc", "x", Refusals(1, 1, 0.0, "Http401", ""))
    assert [line["event"] for line in logs] == ["auth.refusals_not_saved"] * 3


@pytest.mark.parametrize(
    "told",
    [
        Failure(code="SchemeNotOffered", status=401),  # a web site that wants something else
        Failure(code="NotSoap", text="an HTML page: Welcome"),  # one that is there for everybody
        Failure(code="UnexpectedReply"),
    ],
)
async def test_who_does_not_answer_as_exchange_has_not_let_us_in(
    autojump_clock: trio.testing.MockClock, told: Failure
) -> None:
    refusing, site, lockout = Server(REFUSED), Server(told), LockoutProtection("svc")
    for _ in range(4):
        for _ in range(2):
            await refusing.ask(lockout)
        await site.ask(lockout, "https://example.com/autodiscover/autodiscover.svc")
    assert len(refusing.asked) == 2
    assert lockout.attempts == 2


async def test_a_code_of_exchange_in_a_good_answer_has_let_us_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    await server.ask(lockout)
    server.answer = Failure(code="ErrorNonExistentMailbox")
    await server.ask(lockout)
    assert lockout.attempts == 0


# --- refusals that are about one mailbox


def of(mailbox: str) -> Identity:
    return Identity(impersonate=Impersonation("PrimarySmtpAddress", mailbox), anchor=mailbox)


class Organisation:
    """A server that refuses the account for some mailboxes, or for all."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.locked = False
        self.asked: list[str] = []
        self.attempts = 0  # refusals in a row while the password is wrong

    async def answer(self, identity: Identity) -> None:
        self.asked.append(identity.mailbox)
        await trio.sleep(0.1)
        if self.locked:
            self.attempts += 1
        if self.locked or identity.mailbox in self.refused:
            raise ExchangeError(REFUSED)

    async def ask(self, lockout: LockoutProtection, mailbox: str) -> Failure | None:
        try:
            async with lockout.request(EWS, of(mailbox), self.answer):
                await self.answer(of(mailbox))
        except ExchangeError as error:
            return error.failure
        return None


async def test_a_refusal_of_one_mailbox_does_not_concern_the_account(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organisation("bob"), LockoutProtection("svc")
    assert await there.ask(lockout, "ann") is None
    for _ in range(20):
        await trio.sleep(TRUSTED_FOR * 2)
        failure = await there.ask(lockout, "bob")
        assert failure is not None
        assert failure.code == "MailboxRefused"
        assert failure.verdict is Verdict.SUSPEND
        assert failure.wait is None
        assert await there.ask(lockout, "ann") is None
    assert lockout.attempts == 0


async def test_several_mailboxes_are_refused_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    there, lockout = Organisation("bob", "cat", "dan", "eve", "fay"), LockoutProtection("svc")
    assert await there.ask(lockout, "ann") is None
    codes: dict[str, str | None] = {}

    async def one(mailbox: str) -> None:
        failure = await there.ask(lockout, mailbox)
        codes[mailbox] = None if failure is None else failure.code

    async with trio.open_nursery() as nursery:
        for mailbox in ("bob", "cat", "dan", "eve", "fay", "gus"):
            nursery.start_soon(one, mailbox)
    assert codes == dict.fromkeys(["bob", "cat", "dan", "eve", "fay"], "MailboxRefused") | {"gus": None}
    assert lockout.attempts == 0


async def test_a_password_that_is_changed_while_a_mailbox_is_refused_is_tried_three_times(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organisation("bob"), LockoutProtection("svc")
    assert await there.ask(lockout, "ann") is None
    assert await there.ask(lockout, "bob") is not None
    await trio.sleep(TRUSTED_FOR * 2)
    there.locked = True
    for _ in range(40):
        for mailbox in ("bob", "ann", "cat"):
            failure = await there.ask(lockout, mailbox)
            assert failure is not None
            assert failure.code == "Http401"
        await trio.sleep(10)
    assert there.attempts == MAX_ATTEMPTS


async def test_while_one_mailbox_is_in_question_nobody_else_asks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organisation("bob"), LockoutProtection("svc")
    assert await there.ask(lockout, "ann") is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(there.ask, lockout, "bob")
        await trio.sleep(0.15)  # it is refused, and ann's mailbox is being asked for
        there.locked = True
        nursery.start_soon(there.ask, lockout, "cat")
        await trio.sleep(0.04)
        assert there.asked == ["ann", "bob", "ann"]


async def test_where_no_other_mailbox_was_accepted_the_account_is_in_question(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organisation("bob"), LockoutProtection("svc")
    failures = [await there.ask(lockout, "bob") for _ in range(2)]
    assert [failure and failure.code for failure in failures] == ["Http401", "Http401"]
    assert lockout.attempts == 2
