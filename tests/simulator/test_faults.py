"""Parsing and describing faults."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from listener.simulator.faults import KINDS, FaultError, about, did_you_mean, parameters, parse

ROOT = Path(__file__).parent.parent.parent


def required(kind: str) -> dict[str, Any]:
    """Return the kind with its required parameters."""
    needed = [parameter.name for parameter in parameters(KINDS[kind]) if parameter.required]
    return {"kind": kind, **{name: {"code": "ErrorServerBusy", "status": 503}[name] for name in needed}}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_round_trips(kind: str) -> None:
    fault = parse(required(kind))
    assert fault.kind == kind
    assert {"kind": kind, **fault.parameters()} == required(kind)
    assert about(KINDS[kind]).endswith(".")


def test_parameters_that_differ_from_their_defaults() -> None:
    fault = parse({"kind": "http", "status": 503, "retry_after": 2, "times": 1})
    assert fault.parameters() == {"status": 503, "retry_after": 2}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, "a fault needs a kind: response_code, http,"),
        ({"kind": "backend_restrat"}, 'unknown kind "backend_restrat", did you mean "backend_restart"?'),
        ({"kind": "zzz"}, 'unknown kind "zzz"; known: response_code, http,'),
        (
            {"kind": "http", "status": 503, "retry": 2},
            'unknown parameter "retry", did you mean "retry_after"?',
        ),
        ({"kind": "http"}, "http: Object missing required field `status`"),
        ({"kind": "http", "status": 200}, "`int` >= 300"),
        ({"kind": "outage", "seconds": 0}, "`float` > 0"),
        ({"kind": "outage", "how": "fire"}, "Invalid enum value 'fire' - at `$.how`"),
        ({"kind": "stream_code", "code": "<a>"}, "stream_code: Expected `str` matching regex"),
    ],
)
def test_invalid_faults(value: dict[str, Any], expected: str) -> None:
    with pytest.raises(FaultError) as error:
        parse(value)
    assert expected in str(error.value)


def test_did_you_mean() -> None:
    assert did_you_mean("haevy", ["none", "heavy"]) == ', did you mean "heavy"?'
    assert did_you_mean("x", ["none", "heavy"]) == "; known: none, heavy"


def test_fault_tables_in_docs_are_current() -> None:
    faults = runpy.run_path(str(ROOT / "docs/faults.py"))
    text = faults["PAGE"].read_text(encoding="utf-8")
    assert text == faults["page"](text), "run: python docs/faults.py"
    assert [kind for kind in KINDS if f"| `{kind}` |" not in text] == []
