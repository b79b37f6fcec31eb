"""Kerberos tickets in many threads, with a scripted domain that lets tickets expire and refuses passwords."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep

import pytest

from listener.exchange.auth.negotiate import Ticket

THREADS = 8


class Domain:
    """A domain. `asked` has the passwords of the requests for a ticket; a new `life` makes older tickets expire."""

    def __init__(self) -> None:
        self.password = "right"
        self.asked: list[str] = []
        self.life = 0

    def context(self, password: str) -> "Context":
        return Context(self, password)


class Context:
    def __init__(self, domain: Domain, password: str, life: int | None = None) -> None:
        self.domain, self.password, self.life = domain, password, life

    def new_context(self) -> "Context":
        return Context(self.domain, self.password, self.life)

    def step(self) -> int:
        if self.life is None:
            self.domain.asked.append(self.password)
            sleep(0.02)  # the other threads arrive meanwhile
            if self.password != self.domain.password:
                raise ValueError("Preauthentication failed")
            self.life = self.domain.life
        if self.life != self.domain.life:
            raise ValueError("Ticket expired")
        return self.life


def use_in_all_threads(ticket: Ticket, domain: Domain, password: str) -> list[int | str]:
    """Return the result of each thread."""
    barrier = Barrier(THREADS)

    def one(_: int) -> int | str:
        barrier.wait()
        try:
            return ticket.use(password, lambda: domain.context(password), Context.step)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, range(THREADS)))


def test_all_threads_share_one_ticket_until_it_expires() -> None:
    ticket, domain = Ticket(), Domain()
    for domain.life in (1, 1, 2, 3):
        assert use_in_all_threads(ticket, domain, "right") == [domain.life] * THREADS
    assert domain.asked == ["right"] * 3


def test_a_refused_password_is_sent_once_for_all_waiting_threads() -> None:
    ticket, domain = Ticket(), Domain()
    assert use_in_all_threads(ticket, domain, "wrong") == ["Preauthentication failed"] * THREADS
    assert domain.asked == ["wrong"]
    assert use_in_all_threads(ticket, domain, "right") == [0] * THREADS  # the refusal is not cached
    assert domain.asked == ["wrong", "right"]


def test_a_changed_password_gets_a_new_ticket() -> None:
    ticket, domain = Ticket(), Domain()
    assert ticket.use("right", lambda: domain.context("right"), Context.step) == 0
    domain.password = "new"
    with pytest.raises(ValueError, match="Preauth"):
        ticket.use("other", lambda: domain.context("other"), Context.step)
    assert ticket.use("new", lambda: domain.context("new"), Context.step) == 0
