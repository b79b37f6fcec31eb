"""Which Host headers the status port accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.admin.hosts import host_check
from tests.admin.test_app import BEARER, TOKEN, Daemon, ask


@pytest.mark.parametrize(
    ("listen", "allowed", "host", "accepted"),
    [
        ("127.0.0.1:9817", (), "127.0.0.1:9817", True),
        ("127.0.0.1:9817", (), "127.0.0.1", True),
        ("127.0.0.1:9817", (), "localhost:1", True),
        ("127.0.0.1:9817", (), "LOCALHOST.:9817", True),
        ("127.0.0.1:9817", (), "[::1]:9817", True),
        ("127.0.0.1:9817", (), "evil.example:9817", False),
        ("127.0.0.1:9817", (), "evil.example", False),
        ("127.0.0.1:9817", (), "127.0.0.1.evil.example", False),
        ("127.0.0.1:9817", (), "localhost@evil.example", False),
        ("127.0.0.1:9817", (), "evil.example#localhost", False),
        ("127.0.0.1:9817", (), "localhost:9817:9817", False),
        ("127.0.0.1:9817", (), "localhost:x", False),
        ("127.0.0.1:9817", (), "localhost evil.example", False),
        ("127.0.0.1:9817", (), "::1", False),
        ("127.0.0.1:9817", (), "10.0.0.5", False),
        ("127.0.0.1:9817", (), "", False),
        ("127.0.0.1:9817", (), ".", False),
        ("127.0.0.1:9817", (), None, False),
        ("host.example:9817", (), "host.example:9817", True),
        ("host.example:9817", (), "other.example:9817", False),
        ("0.0.0.0:9817", (), "10.0.0.5:9817", True),
        ("[::]:9817", (), "[2001:db8::1]:9817", True),
        ("0.0.0.0:9817", (), "2001:db8::1", False),
        ("0.0.0.0:9817", (), "evil.example:9817", False),
        ("0.0.0.0:9817", ("mon.example",), "mon.example:9817", True),
        ("0.0.0.0:9817", ("mon.example:9817",), "mon.example", True),
        ("127.0.0.1:9817", ("*.mon.example",), "a.mon.example", True),
        ("127.0.0.1:9817", ("*.mon.example",), "mon.example", False),
        ("127.0.0.1:9817", ("2001:db8::1",), "[2001:db8::1]:9817", True),
    ],
)
def test_accepted_hosts(listen: str, allowed: tuple[str, ...], host: str | None, accepted: bool) -> None:
    assert host_check(listen, allowed)(host) is accepted


@given(st.text(max_size=40))
def test_no_header_raises(header: str) -> None:
    assert host_check("0.0.0.0:1", ("a*",))(header) in (True, False)


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/status.json", "/nowhere", "/watch/bob@x.example"])
async def test_foreign_host_is_rejected_with_a_reason(path: str) -> None:
    allowed = host_check("127.0.0.1:9817")
    headers = {**BEARER, "Host": "evil.example:9817"}
    answer = await ask(Daemon(), path, local=False, headers=headers, token=TOKEN, host_allowed=allowed)
    assert answer.status_code == 421
    assert "evil.example" in answer.text
    assert "allowed_hosts" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    good = await ask(Daemon(), "/healthz", local=False, headers={"Host": "localhost"}, host_allowed=allowed)
    assert good.status_code == 200


async def test_unix_socket_accepts_any_host() -> None:
    answer = await ask(
        Daemon(), "/status.json", headers={"Host": "ews-listener"}, host_allowed=host_check("127.0.0.1:9817")
    )
    assert answer.status_code == 200
