"""Prometheus metrics of a snapshot. Names and labels are a public interface; docs/METRICS.md lists all of them.

To limit the number of series, mailboxes are labels only on request, and groups only up to MAX_GROUPS.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from listener.admin.snapshot import Snapshot

PREFIX = "ews_listener_"
PHASES = ("subscribing", "streaming", "waiting", "stopping")

# With more groups than this, no group has its own series.
MAX_GROUPS = 500

# Boot time of the machine (Unix time). Read once: the start time of the process must not change with the clock.
BOOTED = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def render(
    snapshot: Snapshot, streaming: Iterable[tuple[str, bool]] = (), accept: str = ""
) -> tuple[bytes, str]:
    """Return the metrics as text in the format that the Accept header requests, and its content type.

    `streaming` has each mailbox and whether it has a stream, if there is to be one series per mailbox.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot, streaming))
    _Process(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Process(ProcessCollector):
    """Process metrics. The base class reads the boot time from /proc/stat, which the unit's ProcSubset=pid hides, and
    then omits all metrics."""

    def _boot_time(self) -> float:
        return BOOTED


class _Families(Collector):
    def __init__(self, snapshot: Snapshot, streaming: Iterable[tuple[str, bool]]) -> None:
        self._snapshot = snapshot
        self._streaming = streaming

    def collect(self) -> Iterator[Metric]:
        yield from _daemon_metrics(self._snapshot)
        yield from _group_metrics(self._snapshot)
        yield from _handler_metrics(self._snapshot)
        yield from _server_metrics(self._snapshot)
        yield from _journal_metrics(self._snapshot)
        yield from _catch_up_metrics(self._snapshot)
        yield from _mailbox_metrics(self._streaming)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _labeled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = kind(PREFIX + name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _daemon_metrics(it: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "build", "Version of the running daemon.", value={"version": it.version})
    yield _gauge("start_time_seconds", "Start time of the daemon (Unix time).", it.started)
    yield _gauge("ready", "1 when journal and handlers are open and the daemon is not stopping.", it.ready)
    yield _gauge("healthy", "1 while the journal writer makes progress.", it.healthy)
    yield _gauge("mailboxes", "Mailboxes that the daemon listens to or tries to.", it.mailboxes)
    yield _gauge("mailboxes_streaming", "Mailboxes with an open stream that has sent data.", it.streaming)
    yield _gauge(
        "mailboxes_suspended", "Mailboxes whose subscription needs a fix by the operator.", it.suspended
    )
    yield _gauge("mailboxes_refused", "Mailboxes whose subscription failed and is retried.", it.refused)
    yield _gauge("mailboxes_missing", "Mailboxes that Autodiscover did not find.", it.missing)
    yield _counter("events", "Events received on streams.", it.events)
    yield _counter(
        "events_dropped", "Events without a valid id; the mailbox is resynced instead.", it.dropped
    )
    yield _labeled(
        CounterMetricFamily, "reloads", "Reloads of the configuration.", ("result",),
        [(("done",), it.reloads.done), (("refused",), it.reloads.refused)],
    )  # fmt: skip
    yield _labeled(
        GaugeMetricFamily, "token_remaining_seconds", "Remaining lifetime of an access token.", ("token",),
        [((token.name,), token.remaining) for token in it.tokens],
    )  # fmt: skip


def _group_metrics(it: Snapshot) -> Iterator[Metric]:
    states = dict.fromkeys(PHASES, 0)
    for group in it.groups:
        states[group.state] = states.get(group.state, 0) + 1
    yield _labeled(
        GaugeMetricFamily, "groups", "Groups by state.", ("state",),
        [((state,), count) for state, count in states.items()],
    )  # fmt: skip
    listed = it.groups if len(it.groups) <= MAX_GROUPS else ()
    yield _gauge(
        "groups_left_out",
        f"Groups without their own series: all groups if there are more than {MAX_GROUPS}.",
        len(it.groups) - len(listed),
    )
    gauge, label = GaugeMetricFamily, ("group",)
    yield _labeled(
        gauge, "group_mailboxes", "Mailboxes of the group.", label, [((g.name,), g.mailboxes) for g in listed]
    )
    yield _labeled(
        gauge, "group_streaming", "Mailboxes of the group with an open stream.", label,
        [((g.name,), g.streaming) for g in listed],
    )  # fmt: skip
    yield _labeled(
        gauge, "group_failures", "Consecutive failures of the group.", label,
        [((g.name,), g.failures) for g in listed],
    )  # fmt: skip
    yield _labeled(
        gauge, "group_stream_opened_timestamp_seconds",
        "Time of the first data on the group's newest stream (Unix time).", label,
        [((g.name,), g.stream_opened) for g in listed if g.stream_opened is not None],
    )  # fmt: skip


def _handler_metrics(it: Snapshot) -> Iterator[Metric]:
    gauge, counter, label = GaugeMetricFamily, CounterMetricFamily, ("handler",)
    yield _labeled(
        gauge, "handler_up", "1 while the handler is open.", label,
        [((h.name,), h.state in ("running", "ending")) for h in it.handlers],
    )  # fmt: skip
    yield _labeled(
        gauge, "handler_lag_events", "Journaled events not yet finished by the handler (upper bound).", label,
        [((h.name,), h.lag) for h in it.handlers],
    )  # fmt: skip
    yield _labeled(
        counter, "handler_delivered", "Events finished by the handler.", label,
        [((h.name,), h.delivered) for h in it.handlers],
    )  # fmt: skip
    yield _labeled(
        counter, "handler_dead_letters", "Events moved to the dead letters.", label,
        [((h.name,), h.dead_lettered) for h in it.handlers],
    )  # fmt: skip
    yield _labeled(
        gauge, "handler_last_delivered_timestamp_seconds",
        "Time when the handler last finished an event (Unix time).", label,
        [((h.name,), h.last_delivered) for h in it.handlers if h.last_delivered is not None],
    )  # fmt: skip


def _server_metrics(it: Snapshot) -> Iterator[Metric]:
    gauge, label = GaugeMetricFamily, ("server",)
    yield _labeled(
        gauge, "throttle_pause_seconds", "Remaining pause that the server requested.", label,
        [((s.host,), s.pause) for s in it.servers],
    )  # fmt: skip
    yield _labeled(
        gauge, "requests_concurrency", "Current limit of concurrent requests to the server.", label,
        [((s.host,), s.concurrency) for s in it.servers],
    )  # fmt: skip
    yield _labeled(
        CounterMetricFamily, "answers", 'Results of requests and streams: "ok", a known code, or "other".',
        ("server", "code"),
        [((s.host, code), count) for s in it.servers for code, count in s.answers.items()],
    )  # fmt: skip


def _journal_metrics(it: Snapshot) -> Iterator[Metric]:
    if it.journal is None:
        return
    yield _gauge("journal_size_bytes", "Size of the journal.", it.journal.size)
    yield _gauge("journal_limit_bytes", "Size at which ingestion pauses.", it.journal.limit)
    yield _gauge("journal_full", "1 while the journal is full and ingestion is paused.", it.journal.full)
    yield _gauge(
        "journal_write_error", "1 while writing the journal fails.", it.journal.write_error is not None
    )
    yield _counter("journal_events", "Offset of the newest event in the journal.", it.journal.end)


def _catch_up_metrics(it: Snapshot) -> Iterator[Metric]:
    if it.catch_up is None:
        return
    yield _counter("gaps", "Gaps: times when a mailbox had no working subscription.", it.catch_up.gaps)
    yield _gauge("gaps_open", "Mailboxes with a gap that catch-up has not closed yet.", it.catch_up.open)
    yield _counter("events_recovered", "Events found by catch-up.", it.catch_up.recovered)
    yield _counter(
        "changes_missed",
        "Changes that a working stream should have reported but did not.",
        it.catch_up.missed,
    )
    yield _counter("catch_up_requests", "Requests made by catch-up.", it.catch_up.requests)


def _mailbox_metrics(streaming: Iterable[tuple[str, bool]]) -> Iterator[Metric]:
    yield _labeled(
        GaugeMetricFamily, "mailbox_streaming", "1 while the mailbox has an open stream.", ("mailbox",),
        [((mailbox,), is_streaming) for mailbox, is_streaming in streaming],
    )  # fmt: skip
