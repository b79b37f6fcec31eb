"""Kerberos tickets in many threads, with contexts that end, or that the domain refuses, when they are told to."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep

import pytest

from listener.exchange.auth.negotiate import Ticket

THREADS = 8


class Domain:
    """Counts how often it is asked for a ticket, and with which passwords."""

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
            sleep(0.02)  # the others come meanwhile
            if self.password != self.domain.password:
                raise ValueError("Preauthentication failed")
            self.life = self.domain.life
        if self.life != self.domain.life:
            raise ValueError("Ticket expired")
        return self.life


def all_at_once(ticket: Ticket, domain: Domain, password: str) -> list[int | str]:
    """What comes of it in each thread."""
    together = Barrier(THREADS)

    def one(_: int) -> int | str:
        together.wait()
        try:
            return ticket.use(password, lambda: domain.context(password), Context.step)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, range(THREADS)))


def test_one_ticket_is_got_for_all_and_a_new_one_when_it_has_ended() -> None:
    ticket, domain = Ticket(), Domain()
    for domain.life in (1, 1, 2, 3):
        assert all_at_once(ticket, domain, "right") == [domain.life] * THREADS
    assert domain.asked == ["right"] * 3


def test_a_password_that_is_refused_is_sent_once_for_all_that_wait() -> None:
    ticket, domain = Ticket(), Domain()
    assert all_at_once(ticket, domain, "wrong") == ["Preauthentication failed"] * THREADS
    assert domain.asked == ["wrong"]
    assert all_at_once(ticket, domain, "right") == [0] * THREADS  # nothing of it is left
    assert domain.asked == ["wrong", "right"]


def test_another_password_is_another_ticket() -> None:
    ticket, domain = Ticket(), Domain()
    assert ticket.use("right", lambda: domain.context("right"), Context.step) == 0
    domain.password = "new"
    with pytest.raises(ValueError, match="Preauth"):
        ticket.use("other", lambda: domain.context("other"), Context.step)
    assert ticket.use("new", lambda: domain.context("new"), Context.step) == 0
