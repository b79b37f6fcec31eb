"""The front end: who is asking, and whom: Exchange, Entra ID, or the doors for tests."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from listener.simulator.auth import Denied
from listener.simulator.control import Control
from listener.simulator.exchange import Exchange
from listener.simulator.http import HttpRequest, Reply, page

if TYPE_CHECKING:
    from listener.simulator.auth.entra import Entra

CONTROL = "/control"
Answer = Callable[[str, str, Mapping[str, str], bytes], Reply]
"""One connection's answers: (method, path, headers, body) -> reply. Headers have lower-case names."""


def exchange_front(
    exchange: Exchange, control: Control, clock: Callable[[], float], certificate: bytes | None
) -> Answer:
    """The answers to a new connection that has been shown this certificate (DER; None without TLS)."""
    gate, conditions = exchange.gate, exchange.conditions
    login = gate.scheme.login(certificate)

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        now = clock()
        if path.startswith(CONTROL):
            return control.handle(method, path.removeprefix(CONTROL), body, now)
        outcome = login.check(headers.get("authorization"), conditions.told_time(now))
        gate.note(outcome)
        if isinstance(outcome, Denied):
            exchange.requests["-", 401] += 1
            return page(401, "Unauthorized", outcome.headers)
        request = HttpRequest(method, path, headers, body, outcome.account, outcome.app_only)
        reply = exchange.handle(request, now)
        reply.headers += outcome.headers
        return reply

    return answer


def entra_front(exchange: Exchange, entra: "Entra", clock: Callable[[], float]) -> Answer:
    """The answers of Entra ID to anybody."""

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return entra.handle(method, path, body, exchange.conditions.told_time(clock()))

    return answer
