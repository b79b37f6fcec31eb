"""Which back end answers ("How to: Maintain affinity between a group of subscriptions and the Mailbox server").

The front end sends a request

1. where the cookie X-BackEndOverrideCookie points, if `X-PreferServerAffinity: true` comes with it;
2. else to the home of the mailbox in X-AnchorMailbox;
3. else to any back end.

Back ends that are dead take no part: a cookie that leads to one is not obeyed.

A request about a mailbox should arrive at that mailbox's home. With `X-PreferServerAffinity: true` and a cookie or
an anchor it stays where it arrived: that is how one back end comes to hold the subscriptions of a group. Without,
the back end that got it by chance or by a wrong anchor proxies it to the right one, which is slow and sometimes
fails (settings.Network). A stream or an Unsubscribe is never proxied: subscriptions of another back end are unknown.
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
    """`backend` answers; `proxied` says that another one got the request first. `affinity` is the client's wish
    to stay with one back end."""

    backend: str
    proxied: bool
    affinity: bool


def route(request: HttpRequest, home: str | None, directory: Directory, rng: Random) -> Route:
    """Where the request goes. `home` is the back end of the mailbox that it is about, None if it is about
    subscriptions."""
    affinity = request.headers.get("x-preferserveraffinity", "").strip().lower() == "true"
    arrived = _from_cookie(request, directory) if affinity else None
    if arrived is None:
        anchor = directory.find(request.headers.get("x-anchormailbox", ""))
        arrived = directory.home(anchor) if anchor else None
    known = arrived is not None
    arrived = arrived or rng.choice(directory.alive)
    if home is None or home == arrived or (affinity and known):
        return Route(arrived, proxied=False, affinity=affinity)
    return Route(home, proxied=True, affinity=affinity)


def override_cookie(backend: str) -> str:
    """The value of X-BackEndOverrideCookie that leads to this back end."""
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
    """Counts what is charged to whom. Each method that takes something raises Failure when there is no more."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running: Counter[str] = Counter()
        self._syncing: Counter[str] = Counter()
        self._hanging: Counter[str] = Counter()

    def start_request(self, budget_owner: str, *, is_sync: bool = False) -> Callable[[], None]:
        """One request more under way, which synchronises or does not; call what is returned when it is answered."""
        if self._running[budget_owner] >= self._limits.concurrency:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        if not is_sync:
            return _acquire(budget_owner, self._running)
        if self._syncing[budget_owner] >= self._limits.sync_calls:
            raise Failure("ErrorServerBusy", fault=True, values={"BackOffMilliseconds": _SYNC_BACK_OFF})
        return _acquire(budget_owner, self._running, self._syncing)

    def start_stream(self, budget_owner: str) -> Callable[[], None]:
        """One stream more; call what is returned when it has ended."""
        if self._hanging[budget_owner] >= self._limits.hanging_connections:
            raise Failure("ErrorExceededConnectionCount", fault=True, values={"BackOffMilliseconds": "0"})
        return _acquire(budget_owner, self._hanging)

    @property
    def running(self) -> int:
        """Requests under way, streams apart."""
        return sum(self._running.values())

    @property
    def hanging(self) -> int:
        """Streams under way."""
        return sum(self._hanging.values())

    def streams_by_account(self) -> dict[str, int]:
        """Open streams by whom they are charged to."""
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
