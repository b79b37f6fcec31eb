"""When faults happen: plans from TOML files, and the built-in profiles.

    [[faults]]
    kind = "backend_restart"
    backend = "EX01"
    at = [10, 40]               # seconds after the start

    [[faults]]
    kind = "http"
    status = 503
    retry_after = 2
    per_minute = 6              # in the whole organization; the moments are random
    until = 120                 # seconds after the start; default: no end

An entry has either `at` or `per_minute`.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from listener.simulator.faults import Fault, FaultError, did_you_mean, parse

TIMING_KEYS = frozenset(("at", "per_minute", "until"))


class Entry(NamedTuple):
    """A fault and its times: `at` these seconds after the start, or `per_minute` up to `until`."""

    fault: Fault
    at: tuple[float, ...] = ()
    per_minute: float = 0.0
    until: float | None = None

    def moments(self, rng: Random) -> Iterator[float]:
        """Yield seconds after the start, in order; possibly without end.

        A rate is exact: each of n equal parts of a minute has one random moment.
        """
        yield from sorted(self.at)
        if not self.per_minute:
            return
        part, number = 60 / self.per_minute, 0
        while True:
            moment = (number + rng.random()) * part
            if self.until is not None and moment >= self.until:
                return
            yield moment
            number += 1


Plan = tuple[Entry, ...]


def parse_entry(value: Mapping[str, Any]) -> Entry:
    """Parse an entry of a plan. Raises FaultError if it is invalid or has no valid times."""
    fault = parse({name: given for name, given in value.items() if name not in TIMING_KEYS})
    at = value.get("at", [])
    times = [_seconds(fault, "at", each) for each in (at if isinstance(at, list) else [at])]
    rate = _seconds(fault, "per_minute", value.get("per_minute", 0))
    until = _seconds(fault, "until", value["until"]) if "until" in value else None
    if bool(times) == bool(rate):
        raise FaultError(f"{fault.kind}: give either at (seconds after the start) or per_minute")
    if until is not None and times:
        raise FaultError(f"{fault.kind}: until requires per_minute")
    return Entry(fault, tuple(times), rate, until)


def _seconds(fault: Fault, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise FaultError(f"{fault.kind}: {name} must be a non-negative number, not {value!r}")
    return float(value)


def load(name: str) -> Plan:
    """Return the profile with this name, else the plan in the TOML file with this name.

    Raises FaultError if neither exists or the file is invalid.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.suffix and not path.is_file():
        raise FaultError(f'unknown profile "{name}"{did_you_mean(name, PROFILES)}')
    try:
        return parse_plan(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FaultError(f"{name}: {error.strerror}") from None
    except (FaultError, UnicodeDecodeError) as error:
        raise FaultError(f"{name}: {error}") from None


def parse_plan(text: str) -> Plan:
    """Parse a plan in TOML. Raises FaultError if it is invalid."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FaultError(str(error)) from None
    for key in document:
        if key != "faults":
            raise FaultError(f'unknown key "{key}"{did_you_mean(key, ["faults"])}')
    entries = document.get("faults", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FaultError("faults must be an array of tables: [[faults]]")
    plan = []
    for number, entry in enumerate(entries, 1):
        try:
            plan.append(parse_entry(entry))
        except FaultError as error:
            raise FaultError(f"faults[{number}]: {error}") from None
    return tuple(plan)


def to_toml(plan: Plan) -> str:
    """Return the plan as TOML that `parse_plan` accepts."""
    tables = []
    for entry in plan:
        values: dict[str, Any] = {"kind": entry.fault.kind, **entry.fault.parameters()}
        if entry.at:
            values["at"] = list(entry.at)
        else:
            values["per_minute"] = entry.per_minute
        if entry.until is not None:
            values["until"] = entry.until
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        tables.append("\n".join(["[[faults]]", *lines, ""]))
    return "\n".join(tables)


def _rate(per_minute: float, kind: str, **given: Any) -> Entry:
    return Entry(parse({"kind": kind, **given}), per_minute=per_minute)


# A client that suspended a mailbox or must wait has to recover within a minute after the last fault. So no fault
# here lasts longer than a few seconds, and request faults expire soon if no request arrives.
_WITHIN = 15.0

_LIGHT: Plan = (
    _rate(2, "response_code", code="ErrorServerBusy", place="fault", back_off_ms=1000, within=_WITHIN),
    _rate(2, "response_code", code="ErrorInternalServerTransientError", within=_WITHIN),
    _rate(2, "http", status=503, retry_after=1, within=_WITHIN),
    _rate(1, "http", status=500, within=_WITHIN),
    _rate(2, "closed"),
    _rate(1, "cut", where="end", how="close"),
    _rate(1, "cut"),
    _rate(1, "stream_code", code="ErrorInternalServerTransientError", ids="none"),
    _rate(1, "stream_code", code="ErrorSubscriptionNotFound"),
    _rate(0.5, "backend_restart"),
    _rate(1, "mailbox_move"),
)

_HEAVY: Plan = (
    # codes
    *(
        _rate(1, "response_code", code=code, place=place, within=_WITHIN)
        for place, codes in (
            ("message", ("ErrorInternalServerError", "ErrorMailboxFailover", "ErrorTimeoutExpired")),
            ("fault", ("ErrorADUnavailable", "ErrorInsufficientResources", "ErrorTooManyObjectsOpened")),
            ("faultcode", ("ErrorConnectionFailed", "ErrorBatchProcessingStopped")),
        )
        for code in codes
    ),
    *(
        _rate(2, "response_code", code="ErrorServerBusy", back_off_ms=wait, place=place, within=_WITHIN)
        for place, wait in (("message", 1000), ("fault", 2000))
    ),
    _rate(1, "response_code", code="ErrorInternalServerTransientError", place="fault", status=200, within=_WITHIN),
    _rate(2, "response_code", code="ErrorMailboxStoreUnavailable", operation="Subscribe", within=_WITHIN),
    _rate(1, "response_code", code="ErrorProxyRequestNotAllowed", operation="Subscribe", within=_WITHIN),
    _rate(1, "response_code", code="ErrorCrossSiteRequest", operation="GetStreamingEvents", within=_WITHIN),
    _rate(1, "response_code", code="ErrorUndocumentedCode", within=_WITHIN),
    _rate(2, "stream_code", code="ErrorSubscriptionNotFound"),
    _rate(1, "stream_code", code="ErrorExpiredSubscription", ends=False),
    _rate(1, "stream_code", code="ErrorProxiedSubscriptionCallFailure", ids="all"),
    _rate(1, "stream_code", code="ErrorInternalServerTransientError", ids="none"),
    _rate(1, "stream_code", code="ErrorMailboxMoveInProgress", ids="none", ends=False),
    # HTTP
    _rate(1, "http", status=401, within=_WITHIN),
    _rate(1, "http", status=429, retry_after=2, within=_WITHIN),
    _rate(2, "http", status=503, retry_after=2, retry_after_date=True, within=_WITHIN),
    _rate(2, "http", status=500, within=_WITHIN),
    _rate(2, "http", status=502, within=_WITHIN),
    _rate(2, "http", status=504, within=_WITHIN),
    _rate(1, "http", status=302, within=_WITHIN),
    _rate(2, "login_page", within=_WITHIN),
    # connections
    _rate(1, "no_answer", seconds=5, within=_WITHIN),
    _rate(2, "hang_up", within=_WITHIN),
    _rate(2, "hang_up", reset=True, within=_WITHIN),
    _rate(2, "gzip", within=_WITHIN),
    _rate(1, "gzip", operation="GetStreamingEvents", within=_WITHIN),
    _rate(2, "stray_response", within=_WITHIN),
    _rate(1, "slow", seconds=3),
    _rate(1, "slow", seconds=2, operation="Subscribe", within=_WITHIN),
    _rate(1, "cut", operation="Subscribe", within=_WITHIN),
    *(_rate(1, "cut", where=where, how=how) for where, how in (
        ("end", "close"), ("envelope", "close"), ("envelope", "reset"), ("envelope", "order"))),
    _rate(2, "silent_stream"),
    *(_rate(2, "closed", then=then) for then in ("end", "events", "closed")),
    _rate(1, "padding"),
    *(_rate(1, "invalid_characters", form=form) for form in ("reference", "control", "utf8")),
    _rate(1, "doctype"),
    _rate(1, "doctype", bomb=False),
    # the organization
    _rate(3, "backend_restart"),
    _rate(1, "backend_restart", seconds=2),
    _rate(2, "failover", seconds=5),
    _rate(6, "mailbox_move"),
    _rate(2, "mailbox_move", seconds=3, code="ErrorMailboxMoveInProgress"),
    _rate(2, "overflow"),
    _rate(2, "overflow", quiet=True),
    _rate(2, "silent_subscription", seconds=5),
    _rate(2, "sync_state_lost"),
    _rate(1, "sync_state_lost", quiet=True),
    _rate(2, "mailbox_disabled", seconds=3),
    _rate(1, "mailbox_disabled", seconds=3, code="ErrorAccountDisabled"),
    _rate(2, "impersonation_withdrawn", seconds=3),
    _rate(2, "throttled", seconds=3),
    _rate(1, "outage", seconds=2),
    _rate(1, "outage", seconds=2, how="reset"),
    _rate(1, "outage", seconds=2, how="503"),
    _rate(2, "autodiscover_failure", seconds=3),
    _rate(1, "autodiscover_failure", seconds=3, code="ServerBusy"),
    _rate(1, "autodiscover_failure", seconds=3, code="InternalServerError", level="user"),
)  # fmt: skip

PROFILES: dict[str, Plan] = {"none": (), "light": _LIGHT, "heavy": _HEAVY}
