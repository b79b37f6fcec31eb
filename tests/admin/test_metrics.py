"""Names and labels of the metrics. Alerts and dashboard use only metrics that exist."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from prometheus_client import process_collector
from prometheus_client.parser import text_string_to_metric_families

from listener.admin.metrics import MAX_GROUPS, render
from tests.admin.statuses import group, snapshot

DOCS = Path(__file__).parent.parent.parent / "docs"
NAME = re.compile(r"\b(?:ews_listener|process)_[a-z_]+")


def samples(text: bytes) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def rendered(by_mailbox: bool = True) -> bytes:
    return render(snapshot(), [("ann@x.example", True), ("bob@x.example", False)] if by_mailbox else [])[0]


def test_docs_list_exactly_the_existing_metrics_and_labels() -> None:
    listed = re.findall(
        r"^\| `([a-z_]+)(?:\{([a-z,]+)\})?` \| (gauge|counter)",
        (DOCS / "METRICS.md").read_text(),
        re.MULTILINE,
    )
    documented = {f"ews_listener_{name}": set(filter(None, labels.split(","))) for name, labels, _ in listed}
    assert len(documented) == len(listed)
    found = {name: set(labels) for name, labels, _ in samples(rendered()) if name.startswith("ews_listener")}
    assert documented == found
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", rendered().decode(), re.MULTILINE))
    assert {f"ews_listener_{name}": kind for name, _, kind in listed} == {
        name: kind for name, kind in kinds.items() if name.startswith("ews_listener")
    }


def test_values() -> None:
    found = {(name, *sorted(labels.values())): value for name, labels, value in samples(rendered())}
    assert found["ews_listener_mailboxes_streaming",] == 399
    assert found["ews_listener_ready",] == 1
    assert found["ews_listener_group_streaming", "site/2"] == 199
    assert found["ews_listener_groups", "streaming"] == 2
    assert found["ews_listener_groups", "waiting"] == 0
    assert found["ews_listener_handler_lag_events", "audit"] == 3
    assert found["ews_listener_handler_dead_letters_total", "audit"] == 1
    assert found["ews_listener_answers_total", "Http503", "mail.x.example"] == 1
    assert found["ews_listener_throttle_pause_seconds", "mail.x.example"] == 12
    assert found["ews_listener_reloads_total", "refused"] == 1
    assert found["ews_listener_mailbox_streaming", "bob@x.example"] == 0


def test_no_label_is_a_mailbox_unless_asked_for() -> None:
    assert b"bob@" not in rendered(by_mailbox=False)


def test_groups_above_the_limit_are_only_counted() -> None:
    """With group_size = 1, a group label is in effect a mailbox label."""

    def sampled(groups: int) -> tuple[set[str], float, float]:
        it = snapshot(groups=tuple(group(f"site/{number}") for number in range(groups)))
        found = list(samples(render(it)[0]))
        names = {labels["group"] for _, labels, _ in found if "group" in labels}
        count = next(value for name, labels, value in found if labels.get("state") == "streaming")
        left_out = next(value for name, _, value in found if name == "ews_listener_groups_left_out")
        return names, count, left_out

    names, count, left_out = sampled(MAX_GROUPS)
    assert (len(names), count, left_out) == (MAX_GROUPS, MAX_GROUPS, 0)
    names, count, left_out = sampled(MAX_GROUPS + 1)
    assert (len(names), count, left_out) == (0, MAX_GROUPS + 1, MAX_GROUPS + 1)


def test_metrics_while_starting() -> None:
    early = snapshot(
        state="starting", journal=None, catch_up=None, groups=(), handlers=(), servers=(), tokens=()
    )
    found = {name: value for name, _, value in samples(render(early)[0])}
    assert found["ews_listener_ready"] == 0
    assert "ews_listener_journal_size_bytes" not in found


def test_label_values_are_escaped() -> None:
    name = 'a"b\\c\nd'
    text, _ = render(snapshot(groups=(group(name),)))
    assert name in {labels.get("group") for _, labels, _ in samples(text)}


def test_process_metrics_without_proc_stat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unit sets ProcSubset=pid, which hides /proc/stat."""

    def open_without_stat(path: str, mode: str = "r") -> IO[Any]:
        if path == "/proc/stat":
            raise FileNotFoundError(path)
        return open(path, mode)

    monkeypatch.setattr(process_collector, "open", open_without_stat, raising=False)
    found = {name: value for name, _, value in samples(rendered())}
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_open_fds"] > 2
    assert time.time() - 3600 * 24 < found["process_start_time_seconds"] < time.time() + 1


def test_openmetrics_if_accepted() -> None:
    text, kind = render(snapshot(), accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_alerts_and_dashboard_use_existing_metrics() -> None:
    known = {name for name, _, _ in samples(rendered())}
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    used = set(NAME.findall((DOCS / "alerts.yml").read_text()))
    used |= {name for expression in expressions(dashboard) for name in NAME.findall(expression)}
    used |= {name for each in dashboard["templating"]["list"] for name in NAME.findall(str(each["query"]))}
    assert len(used) > 20
    assert used <= known


def expressions(dashboard: Any) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def promtool() -> str:
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not found:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    return found


def test_promtool_accepts_the_alert_rules() -> None:
    done = subprocess.run([promtool(), "check", "rules", DOCS / "alerts.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_promtool_accepts_the_dashboard_expressions(tmp_path: Path) -> None:
    used = expressions(json.loads((DOCS / "grafana.json").read_text()))
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(used)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML, too
    done = subprocess.run([promtool(), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_promtool_accepts_the_metrics() -> None:
    done = subprocess.run([promtool(), "check", "metrics"], input=rendered(), capture_output=True)
    assert done.returncode == 0, done.stderr
