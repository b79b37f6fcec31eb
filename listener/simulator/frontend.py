"""The front end: which back end answers a request, and throttling.

Routing ("How to: Maintain affinity between a group of subscriptions and the Mailbox server"). The front end sends a
request

1. to the back end in the cookie X-BackEndOverrideCookie, if the request has `X-PreferServerAffinity: true`;
2. else to the home of the mailbox in X-AnchorMailbox;
3. else to any back end.

Failed back ends are skipped: a cookie that selects one is ignored.

A request about a mailbox should arrive at that mailbox's home. With `X-PreferServerAffinity: true` and a cookie or an
anchor it stays where it arrived: so one back end holds the subscriptions of a group. Otherwise the back end that got
it by chance or by a wrong anchor proxies it to the right one, which is slow and sometimes fails (settings.Network). A
stream or an Unsubscribe is never proxied: the subscriptions of another back end are unknown.

Throttling ("EWS throttling in Exchange", learn.microsoft.com). A request is charged to the budget of the impersonated
mailbox, or to that of the account without impersonation.
"""

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from listener.simulator.directory import Directory
from listener.simulator.http import HttpRequest
from listener.simulator.responses import Failure
from listener.simulator.settings import Limits

COOKIE = "X-BackEndOverrideCookie"


class Route(NamedTuple):
    """The back end that answers.

    `proxied`: another back end received the request first. `affinity`: the client asked to stay with one back
    end.
    """

    backend: str
    proxied: bool
    affinity: bool


def route(request: HttpRequest, home: str | None, directory: Directory, rng: Random) -> Route:
    """Return where the request goes.

    `home` is the back end of the mailbox that the request is about, None if it is about subscriptions.
    """
    affinity = request.headers.get("x-preferserveraffinity", "").strip().lower() == "true"
    received_by = _from_cookie(request, directory) if affinity else None
    if received_by is None:
        anchor = directory.find(request.headers.get("x-anchormailbox", ""))
        received_by = directory.home(anchor) if anchor else None
    known = received_by is not None
    received_by = received_by or rng.choice(directory.alive)
    if home is None or home == received_by or (affinity and known):
        return Route(received_by, proxied=False, affinity=affinity)
    return Route(home, proxied=True, affinity=affinity)


def override_cookie(backend: str) -> str:
    """Return the value of X-BackEndOverrideCookie that selects this back end."""
    return b64encode(f"{backend}~1943999999~2049-12-31T23:59:59".encode()).decode().rstrip("=")


def _from_cookie(request: HttpRequest, directory: Directory) -> str | None:
    value = request.cookie(COOKIE)
    if value is None:
        return None
    try:
        name = b64decode(value + "=" * (-len(value) % 4)).decode("ascii").partition("~")[0]
    except ValueError:
        return None
    return name if name in directory.alive else None


_SYNC_BACK_OFF = "500"


class Throttle:
    """Counts the requests and streams of each budget owner."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running: Counter[str] = Counter()
        self._syncing: Counter[str] = Counter()
        self._hanging: Counter[str] = Counter()

    def start_request(self, budget_owner: str, *, is_sync: bool = False) -> Callable[[], None]:
        """Count one more request in progress; `is_sync` if it synchronizes. Call the result at its end.

        Raises Failure if the budget is exhausted.
        """
        if self._running[budget_owner] >= self._limits.concurrency:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        if not is_sync:
            return _acquire(budget_owner, self._running)
        if self._syncing[budget_owner] >= self._limits.sync_calls:
            raise Failure("ErrorServerBusy", fault=True, values={"BackOffMilliseconds": _SYNC_BACK_OFF})
        return _acquire(budget_owner, self._running, self._syncing)

    def start_stream(self, budget_owner: str) -> Callable[[], None]:
        """Count one more stream. Call the result at its end. Raises Failure if the budget is exhausted."""
        if self._hanging[budget_owner] >= self._limits.hanging_connections:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        return _acquire(budget_owner, self._hanging)

    @property
    def running(self) -> int:
        """Requests in progress, without streams."""
        return sum(self._running.values())

    @property
    def hanging(self) -> int:
        """Streams in progress."""
        return sum(self._hanging.values())

    def streams_by_account(self) -> dict[str, int]:
        """Return the number of open streams of each budget owner."""
        return dict(self._hanging)


def _acquire(budget_owner: str, *counters: Counter[str]) -> Callable[[], None]:
    for counter in counters:
        counter[budget_owner] += 1

    def release() -> None:
        for counter in counters:
            counter[budget_owner] -= 1
            if not counter[budget_owner]:
                del counter[budget_owner]

    return release
