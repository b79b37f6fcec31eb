"""When faults happen."""

from collections import Counter
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

import pytest

from listener.simulator.fault_plans import PROFILES, Entry, load, parse_entry, parse_plan, to_toml
from listener.simulator.faults import KINDS, AccessFault, FaultError, OrganizationFault, parse

RESTART = parse({"kind": "backend_restart"})


def within_a_minute(entry: Entry, seed: int = 1) -> list[float]:
    return list(takewhile(lambda moment: moment < 60, entry.moments(Random(seed))))


def test_times_are_sorted() -> None:
    assert within_a_minute(Entry(RESTART, at=(40, 10))) == [10, 40]


def test_rate_is_exact_in_each_minute_at_random_times() -> None:
    moments = within_a_minute(Entry(RESTART, per_minute=6))
    assert [int(moment // 10) for moment in moments] == list(range(6))
    assert moments == within_a_minute(Entry(RESTART, per_minute=6))
    assert moments != within_a_minute(Entry(RESTART, per_minute=6), seed=2)


def test_rate_ends_at_until() -> None:
    entry = Entry(RESTART, per_minute=60, until=5)
    assert len(list(entry.moments(Random(1)))) == 5


def test_plan_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(
        '[[faults]]\nkind = "backend_restart"\nat = 10\nbackend = "EX01"\n\n'
        '[[faults]]\nkind = "http"\nstatus = 503\nretry_after = 2\nper_minute = 6\nuntil = 90\n'
    )
    assert load(str(path)) == (
        Entry(parse({"kind": "backend_restart", "backend": "EX01"}), at=(10,)),
        Entry(parse({"kind": "http", "status": 503, "retry_after": 2}), per_minute=6, until=90),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[faults]\n", "faults must be an array of tables: [[faults]]"),
        ("[[fault]]\n", 'unknown key "fault", did you mean "faults"?'),
        ("[[faults]\n", "line 1"),
        ('[[faults]]\nkind = "outage"\n', "faults[1]: outage: give either at"),
        ('[[faults]]\nkind = "outage"\nat = 1\nper_minute = 1\n', "faults[1]: outage: give either at"),
        ('[[faults]]\nkind = "outage"\nat = 1\nuntil = 2\n', "until requires per_minute"),
        ('[[faults]]\nkind = "outage"\nat = -1\n', "at must be a non-negative number, not -1"),
        ('[[faults]]\nkind = "outage"\nat = [1, "x"]\n', "at must be a non-negative number, not 'x'"),
        ('[[faults]]\nkind = "outage"\nper_minute = true\n', "per_minute must be a non-negative number"),
        ('[[faults]]\nkind = "outage"\nat = 1\n[[faults]]\nkind = "outrage"\n', "faults[2]: unknown kind"),
    ],
)
def test_invalid_plans(text: str, expected: str) -> None:
    with pytest.raises(FaultError) as error:
        parse_plan(text)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hevy", 'unknown profile "hevy", did you mean "heavy"?'),
        ("/missing/faults.toml", "/missing/faults.toml: No such file or directory"),
    ],
)
def test_unknown_plans(name: str, expected: str) -> None:
    with pytest.raises(FaultError) as error:
        load(name)
    assert str(error.value) == expected


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(FaultError):
        load(str(path))


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_round_trip_through_toml(name: str) -> None:
    assert load(name) == parse_plan(to_toml(PROFILES[name])) == PROFILES[name]


def test_profile_none_has_no_faults() -> None:
    assert PROFILES["none"] == ()


def test_profile_heavy_has_all_kinds() -> None:
    made = Counter(entry.fault.kind for entry in PROFILES["heavy"] for _ in within_a_minute(entry))
    assert made.total() >= 100
    # Excluded: profiles do not require TLS, and a locked account does not recover.
    access_faults = {name for name, kind in KINDS.items() if issubclass(kind, AccessFault)}
    # Also excluded: a replaced mailbox loses past changes, and a proxy that buffers streams never recovers.
    excluded = {"bad_certificate", "mailbox_replaced", "buffered_streams"}
    assert set(made) == set(KINDS) - excluded - access_faults
    assert made["backend_restart"] + made["failover"] >= 5
    assert made["mailbox_move"] >= 6


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_profile_faults_are_short(name: str) -> None:
    for entry in PROFILES[name]:
        given: dict[str, Any] = {n: getattr(entry.fault, n) for n in entry.fault.__struct_fields__}
        assert (given.get("back_off_ms") or 0) <= 5000
        assert (given.get("retry_after") or 0) <= 5
        assert (given.get("seconds") or 0) <= 5
        if not isinstance(entry.fault, OrganizationFault) and "times" in given:
            assert given["within"] is not None, "a fault that waits for a request must expire"


def test_entry_from_json() -> None:
    assert parse_entry({"kind": "outage", "at": 3}) == Entry(parse({"kind": "outage"}), at=(3.0,))
