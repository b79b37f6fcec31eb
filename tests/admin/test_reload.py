"""What a reload takes up, and what waits for the next start."""

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
def test_what_waits_is_told_and_stays_as_it_was(sections: dict[str, Any], pending: tuple[str, ...]) -> None:
    running, new = config(), config(**sections)
    taken, waiting = merged(running, new)
    assert set(waiting) == set(pending)
    for key in waiting:
        of, _, name = key.partition(".")
        before, after = getattr(running, of), getattr(taken, of)
        assert (getattr(before, name), before) == (getattr(after, name), before) if name else before == after
    if not pending:
        assert taken == new


def test_what_waits_is_told_again_by_the_next_reload_and_no_more_when_it_is_taken_back() -> None:
    running, new = config(), config(exchange={"user_agent": "x"})
    taken, _ = merged(running, new)
    assert merged(taken, new)[1] == ("exchange.user_agent",)
    assert merged(taken, config())[1] == ()


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        (  # a delegate subscribes to folders: to all, it would be to the account's own
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
def test_what_does_not_go_together_with_what_waits_changes_nothing(
    before: dict[str, Any], after: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        merged(config(**before), config(**after))
    assert where in str(caught.value)
    assert "restart instead of a reload" in str(caught.value)


def test_docs_list_what_a_reload_takes_up() -> None:
    text = (ROOT / "docs/CLI.md").read_text()
    for section, keys in LIVE.items():
        shown = (
            f"`[{section}]`"
            if keys is None
            else f"`[{section}]` {', '.join(f'`{key}`' for key in sorted(keys))}"
        )
        assert shown in text, f"docs/CLI.md does not say that a reload takes up {shown}"
