"""Servers with equal settings share an account."""

import ssl
from pathlib import Path

from listener.config import parse
from listener.exchange.auth import accounts
from listener.exchange.network import Network

HERE, THERE = "https://a.example/EWS/Exchange.asmx", "https://b.example/EWS/Exchange.asmx"


def test_an_account_stays_shared_when_its_secret_changes(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old")
    file.chmod(0o600)
    auth = {"kind": "basic", "user": "svc", "password_file": str(file)}
    document = {
        "exchange": {"ews_url": HERE, "autodiscover": False},
        "auth": dict(auth),
        "servers": [{"hosts": ["b.example"], "auth": dict(auth)}],
        "mailboxes": {"addresses": ["x@a.example"]},
        "handlers": {"log": {"use": "log"}},
    }
    config = parse(document, tmp_path, {})
    known = accounts(config, Network(tls=ssl.create_default_context()))
    before = known.of(HERE)
    file.write_text("new")
    assert config.auth.password.renew()  # type: ignore[union-attr]
    assert known.of(HERE) is before
    assert known.of(THERE) is before
    assert known.in_use == (before,)
