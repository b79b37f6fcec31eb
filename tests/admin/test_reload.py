"""Which keys a reload applies, and which need a restart."""

from typing import Any

import pytest

from listener.admin.reload import LIVE, merged
from listener.config import Config, parse
from listener.errors import ConfigError
from tests.test_example_config import ROOT

BASE: dict[str, Any] = {
    "auth": {"user": "u", "password": "p"},
    "mailboxes": {"addresses": ["a@b.c"]},
    "handlers": {"log": {"use": "log"}},
}


def config(**sections: Any) -> Config:
    return parse(BASE | sections, ROOT, {})


CHANGES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, ()),
    ({"mailboxes": {"addresses": ["a@b.c", "d@e.f"]}}, ()),
    ({"handlers": {"log": {"use": "log"}, "file": {"use": "file", "path": "x"}}}, ()),
    ({"handlers": {"log": {"use": "log", "filter": {"types": ["created"]}}}}, ()),
    ({"delivery": {"timeout": 5}, "backoff": {"first": 2}, "shutdown": {"grace": 1}}, ()),
    ({"log": {"level": "debug", "repeat_interval": 0}, "exchange": {"concurrency": 3}}, ()),
    (
        {
            "stream": {"window": "5m"},
            "catch_up": {"interval": 60, "idle_interval": 600, "initial": "7d"},
            "affinity": {"refresh": 60},
        },
        (),
    ),
    ({"state_directory": "elsewhere"}, ("state_directory",)),
    ({"auth": {"user": "v", "password": "p"}}, ("auth.user",)),
    ({"log": {"level": "debug", "format": "json"}}, ("log.format",)),
    ({"exchange": {"concurrency": 3, "user_agent": "x"}}, ("exchange.user_agent",)),
    ({"affinity": {"group_size": 7}, "journal": {"age": "1d"}}, ("affinity.group_size", "journal.age")),
    ({"subscription": {"folders": ["inbox"]}}, ("subscription.folders",)),
    ({"catch_up": {"mode": "off"}, "status": {"listen": "127.0.0.1:1"}}, ("catch_up.mode", "status.listen")),
]


@pytest.mark.parametrize(("sections", "pending"), CHANGES)
def test_pending_keys_are_returned_and_keep_their_old_values(
    sections: dict[str, Any], pending: tuple[str, ...]
) -> None:
    running, new = config(), config(**sections)
    applied, found = merged(running, new)
    assert set(found) == set(pending)
    for key in found:
        section, _, name = key.partition(".")
        before, after = getattr(running, section), getattr(applied, section)
        assert (getattr(before, name), before) == (getattr(after, name), before) if name else before == after
    if not pending:
        assert applied == new


def test_pending_key_is_returned_again_until_it_is_reverted() -> None:
    running, new = config(), config(exchange={"user_agent": "x"})
    applied, _ = merged(running, new)
    assert merged(applied, new)[1] == ("exchange.user_agent",)
    assert merged(applied, config())[1] == ()


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        (  # a delegate must subscribe to named folders; all folders would mean the account's own mailbox
            {},
            {
                "mailboxes": {"addresses": ["a@b.c"], "access": "delegate"},
                "subscription": {"folders": ["inbox"]},
            },
            "subscription.folders",
        ),
        (
            {},
            {
                "exchange": {"autodiscover": False, "ews_url": "https://x.example/EWS/Exchange.asmx"},
                "groups": [{"name": "one", "mailboxes": ["d@e.f"]}],
            },
            "exchange.ews_url",
        ),
        (
            {"impersonation": {"must_deny": ["ceo@b.c"]}},
            {"mailboxes": {"addresses": ["a@b.c", "ceo@b.c"]}},
            "impersonation.must_deny",
        ),
    ],
)
def test_conflict_with_a_pending_key_is_rejected(
    before: dict[str, Any], after: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        merged(config(**before), config(**after))
    assert where in str(caught.value)
    assert "restart the daemon instead of reloading" in str(caught.value)


def test_docs_list_the_keys_that_a_reload_applies() -> None:
    text = (ROOT / "docs/CLI.md").read_text()
    for section, keys in LIVE.items():
        listed = (
            f"`[{section}]`"
            if keys is None
            else f"`[{section}]` {', '.join(f'`{key}`' for key in sorted(keys))}"
        )
        assert listed in text, f"docs/CLI.md does not say that a reload applies {listed}"
