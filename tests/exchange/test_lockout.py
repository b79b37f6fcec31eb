"""Lockout protection: at most three attempts with refused credentials, for any number of requests."""

from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from listener.ews.codes import ExchangeError, Failure, Verdict
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
    """A server with the same answer to every request; counts the requests."""

    def __init__(self, answer: Failure | None = None, seconds: float = 0.1) -> None:
        self.answer = answer
        self.seconds = seconds
        self.asked: list[float] = []
        self.most = self.now = 0

    async def ask(self, lockout: LockoutProtection, url: str = EWS) -> Failure | None:
        """Return the failure of one request."""
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
        """Return the failures of `times` concurrent requests."""
        failures: list[Failure | None] = []

        async def one() -> None:
            failures.append(await self.ask(lockout, url))

        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(one)
        return failures


async def test_one_request_probes_before_all_others(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(), LockoutProtection("svc")
    await server.ask_often(lockout, 40)
    assert server.most == 39
    assert server.asked.count(server.asked[0]) == 1
    await trio.sleep(TRUSTED_FOR - 1)
    await server.ask_often(lockout, 40)  # still trusted
    assert server.most == 40


async def test_after_a_quiet_minute_one_request_probes_again(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(), LockoutProtection("svc")
    await server.ask(lockout)
    await trio.sleep(TRUSTED_FOR + 1)
    server.answer = REFUSED
    before = len(server.asked)
    failures = await server.ask_often(lockout, 40)
    assert server.most == 1
    assert len(server.asked) - before == 2  # the second refusal starts a pause
    assert {failure.code for failure in failures if failure} == {"Http401"}
    assert len(failures) == 40


async def test_at_most_three_attempts_and_then_a_growing_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
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


async def test_a_blocked_request_gets_refusal_and_remaining_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    with structlog.testing.capture_logs() as logs:
        first, second = [await server.ask(lockout) for _ in range(2)]
    assert first == REFUSED  # the next one may try at once
    assert second is not None
    assert second.wait == 60
    assert [line["attempts"] for line in logs if line["event"] == "auth.refused"] == [1, 2]
    await trio.sleep(20)
    blocked = await server.ask(lockout)
    assert blocked is not None
    assert (blocked.code, blocked.text, blocked.wait) == ("Http401", REFUSED.text, pytest.approx(40))
    assert len(server.asked) == 2


async def test_requests_in_flight_count_but_do_not_extend_the_pause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, lockout = Server(), LockoutProtection("svc")
    await server.ask(lockout)
    server.answer = REFUSED
    # All are sent: the server was trusted, and the password has just changed.
    await server.ask_often(lockout, 10)
    assert lockout.attempts == 10
    blocked = await server.ask(lockout, OTHER)
    assert blocked is not None
    assert blocked.wait == pytest.approx(PAUSES[MAX_ATTEMPTS - 1], abs=1)


async def test_accepted_credentials_reset_the_count(autojump_clock: trio.testing.MockClock) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    await server.ask(lockout)
    server.answer = Failure(code="ErrorServerBusy", status=500)  # sent only after authentication
    with structlog.testing.capture_logs() as logs:
        assert await server.ask(lockout) == server.answer
    assert [line["event"] for line in logs] == ["auth.accepted"]
    assert lockout.attempts == 0


async def test_waiting_requests_fail_with_an_unreachable_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, lockout = Server(Failure(code="ConnectTimeout"), seconds=10), LockoutProtection("svc")
    start = trio.current_time()
    failures = await server.ask_often(lockout, 40)
    assert trio.current_time() - start == pytest.approx(10)
    assert failures == [server.answer] * 40


@pytest.mark.parametrize("answer", [Failure(code="ReadTimeout"), Failure(code="Http503", status=503)])
async def test_after_an_inconclusive_answer_the_next_request_probes(
    autojump_clock: trio.testing.MockClock, answer: Failure
) -> None:
    server, lockout = Server(answer), LockoutProtection("svc")
    await server.ask_often(lockout, 5)
    assert (len(server.asked), server.most, lockout.attempts) == (5, 1, 0)


async def test_after_a_cancelled_probe_the_next_request_probes(
    autojump_clock: trio.testing.MockClock,
) -> None:
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

    for _ in range(5):  # a restart loop
        lockout = process("wrong")
        for _ in range(2):
            await server.ask(lockout)
    assert len(server.asked) == 2
    blocked = await server.ask(process("wrong"))
    assert blocked is not None
    assert (blocked.code, blocked.text) == ("Http401", REFUSED.text)
    assert blocked.wait == pytest.approx(60, abs=5)
    assert b"wrong" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    server.answer = None
    assert await server.ask(process("right")) is None  # a different password may be tried at once
    assert process("wrong").attempts == 2
    await trio.sleep(0)
    lockout = process("wrong")
    await trio.sleep(61)
    assert await server.ask(lockout) is None
    assert process("wrong").attempts == 0


@pytest.mark.parametrize("content", [b"", b"{", b'{"svc": 1}'])
def test_an_unreadable_file_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refusals.json"
    path.write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        assert RefusalStore(path).load("svc", "x") is None
        RefusalStore(path / "no directory" / "x.json").save("svc", "x", Refusals(1, 1, 0.0, "Http401", ""))
    assert [line["event"] for line in logs] == ["auth.refusals_not_saved"] * 3


@pytest.mark.parametrize(
    "answer",
    [
        Failure(code="SchemeNotOffered", status=401),  # a web site with another scheme
        Failure(code="NotSoap", text="an HTML page: Welcome"),  # a public web site
        Failure(code="UnexpectedReply"),
    ],
)
async def test_a_response_that_is_not_of_exchange_does_not_count_as_accepted(
    autojump_clock: trio.testing.MockClock, answer: Failure
) -> None:
    refusing, site, lockout = Server(REFUSED), Server(answer), LockoutProtection("svc")
    for _ in range(4):
        for _ in range(2):
            await refusing.ask(lockout)
        await site.ask(lockout, "https://example.com/autodiscover/autodiscover.svc")
    assert len(refusing.asked) == 2
    assert lockout.attempts == 2


async def test_an_error_code_of_exchange_counts_as_accepted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server, lockout = Server(REFUSED), LockoutProtection("svc")
    await server.ask(lockout)
    server.answer = Failure(code="ErrorNonExistentMailbox")
    await server.ask(lockout)
    assert lockout.attempts == 0


# --- refusals of one mailbox


def of(mailbox: str) -> Identity:
    return Identity(impersonate=Impersonation("PrimarySmtpAddress", mailbox), anchor=mailbox)


class Organization:
    """A server that refuses the account for some mailboxes, or for all."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.locked = False
        self.asked: list[str] = []
        self.attempts = 0  # refusals while the password is wrong

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


async def test_a_refusal_of_one_mailbox_does_not_block_the_account(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organization("bob"), LockoutProtection("svc")
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
    there, lockout = Organization("bob", "cat", "dan", "eve", "fay"), LockoutProtection("svc")
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


async def test_a_password_changed_while_a_mailbox_is_refused_is_tried_three_times(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organization("bob"), LockoutProtection("svc")
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


async def test_other_requests_wait_while_a_refusal_is_confirmed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organization("bob"), LockoutProtection("svc")
    assert await there.ask(lockout, "ann") is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(there.ask, lockout, "bob")
        await trio.sleep(0.15)  # bob is refused, and ann's mailbox is being requested
        there.locked = True
        nursery.start_soon(there.ask, lockout, "cat")
        await trio.sleep(0.04)
        assert there.asked == ["ann", "bob", "ann"]


async def test_without_another_accepted_mailbox_the_refusal_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there, lockout = Organization("bob"), LockoutProtection("svc")
    failures = [await there.ask(lockout, "bob") for _ in range(2)]
    assert [failure and failure.code for failure in failures] == ["Http401", "Http401"]
    assert lockout.attempts == 2
