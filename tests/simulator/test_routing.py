from random import Random

import pytest

from listener.simulator.directory import Directory
from listener.simulator.frontend import COOKIE, Route, override_cookie, route
from listener.simulator.http import HttpRequest
from listener.simulator.settings import Settings

DIRECTORY = Directory(Settings(mailboxes=60), 0.0)
FIRST, SECOND, THIRD = DIRECTORY.backends


def someone_on(backend: str) -> str:
    return next(m.address for m in DIRECTORY if DIRECTORY.home(m) == backend)


def send(home: str | None, *, seed: int = 1, **headers: str) -> Route:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = HttpRequest("POST", "/EWS/Exchange.asmx", named, b"", "me")
    return route(request, home, DIRECTORY, Random(seed))


def test_anchor_selects_the_home() -> None:
    assert send(SECOND, x_anchormailbox=someone_on(SECOND)) == Route(SECOND, proxied=False, affinity=False)


def test_wrong_anchor_is_proxied() -> None:
    assert send(SECOND, x_anchormailbox=someone_on(FIRST)) == Route(SECOND, proxied=True, affinity=False)


def test_affinity_keeps_the_request_on_the_anchors_back_end() -> None:
    way = send(SECOND, x_anchormailbox=someone_on(FIRST), x_preferserveraffinity="True")
    assert way == Route(FIRST, proxied=False, affinity=True)


def test_cookie_takes_precedence_over_the_anchor() -> None:
    cookie = f"{COOKIE}={override_cookie(THIRD)}"
    way = send(None, x_anchormailbox=someone_on(FIRST), x_preferserveraffinity="true", cookie=cookie)
    assert way.backend == THIRD


def test_cookie_is_ignored_without_affinity() -> None:
    cookie = f"{COOKIE}={override_cookie(THIRD)}"
    assert send(None, x_anchormailbox=someone_on(FIRST), cookie=cookie).backend == FIRST


@pytest.mark.parametrize("value", ["", "????", "ä", "bm9ib2R5fjE", "="])
def test_invalid_cookie_is_ignored(value: str) -> None:
    way = send(
        None, x_anchormailbox=someone_on(FIRST), x_preferserveraffinity="true", cookie=f"{COOKIE}={value}"
    )
    assert way.backend == FIRST


def test_without_cookie_and_anchor_the_back_end_is_random() -> None:
    assert {send(None, seed=seed).backend for seed in range(30)} == {FIRST, SECOND, THIRD}
    assert {send(FIRST, seed=seed).proxied for seed in range(30)} == {True, False}
    assert {send(FIRST, seed=seed, x_preferserveraffinity="true").proxied for seed in range(30)} == {
        True,
        False,
    }
