"""A snapshot as Prometheus metrics. Names and labels are a promise: docs/METRICS.md lists them all.

No label is a mailbox, unless asked for, nor a group where groups are as many: thousands of series a metric are
nobody's friend.
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

# So many groups have series of their own.
MOST_GROUPS = 500

# When the machine was started, in Unix time: once, so that a process keeps its start when the clock is set.
BOOTED = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def render(
    snapshot: Snapshot, streaming: Iterable[tuple[str, bool]] = (), accept: str = ""
) -> tuple[bytes, str]:
    """The text that Prometheus reads, and its content type, the one that the Accept header wants.

    `streaming` are (mailbox, whether it has a stream) if there is to be a series a mailbox.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot, streaming))
    _Process(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Process(ProcessCollector):
    """Would read the boot time from /proc/stat, and without it say nothing: the unit's ProcSubset=pid hides it."""

    def _boot_time(self) -> float:
        return BOOTED


class _Families(Collector):
    def __init__(self, snapshot: Snapshot, streaming: Iterable[tuple[str, bool]]) -> None:
        self._snapshot = snapshot
        self._streaming = streaming

    def collect(self) -> Iterator[Metric]:
        yield from _of_daemon(self._snapshot)
        yield from _of_groups(self._snapshot)
        yield from _of_handlers(self._snapshot)
        yield from _of_servers(self._snapshot)
        yield from _of_journal(self._snapshot)
        yield from _of_catching_up(self._snapshot)
        yield from _of_mailboxes(self._streaming)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _labelled(
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


def _of_daemon(it: Snapshot) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "build", "The version that runs.", value={"version": it.version})
    yield _gauge("start_time_seconds", "When it was started (Unix time).", it.started)
    yield _gauge(
        "ready", "1 when configuration, journal and handlers stand, and the end has not begun.", it.ready
    )
    yield _gauge("healthy", "1 while the journal's writer works.", it.healthy)
    yield _gauge("mailboxes", "Mailboxes that are to be listened to.", it.mailboxes)
    yield _gauge(
        "mailboxes_streaming", "Those with an open stream on which the server was heard.", it.streaming
    )
    yield _gauge("mailboxes_suspended", "Those that only the operator can help.", it.suspended)
    yield _gauge("mailboxes_refused", "Those that were refused and are tried again.", it.refused)
    yield _gauge("mailboxes_missing", "Those that Autodiscover did not find.", it.missing)
    yield _counter("events", "Events received on streams.", it.events)
    yield _counter(
        "events_dropped", "Events without a valid id; the mailbox is compared instead.", it.dropped
    )
    yield _labelled(
        CounterMetricFamily, "reloads", "Reloads of the configuration.", ("result",),
        [(("done",), it.reloads.done), (("refused",), it.reloads.refused)],
    )  # fmt: skip
    yield _labelled(
        GaugeMetricFamily, "token_remaining_seconds", "How long an access token is good for.", ("token",),
        [((token.name,), token.remaining) for token in it.tokens],
    )  # fmt: skip


def _of_groups(it: Snapshot) -> Iterator[Metric]:
    states = dict.fromkeys(PHASES, 0)
    for group in it.groups:
        states[group.state] = states.get(group.state, 0) + 1
    yield _labelled(
        GaugeMetricFamily, "groups", "Groups by what they do.", ("state",),
        [((state,), count) for state, count in states.items()],
    )  # fmt: skip
    told = it.groups if len(it.groups) <= MOST_GROUPS else ()
    yield _gauge(
        "groups_left_out",
        "Groups that have no series of their own: all, if too many.",
        len(it.groups) - len(told),
    )
    gauge, label = GaugeMetricFamily, ("group",)
    yield _labelled(
        gauge, "group_mailboxes", "Mailboxes of a group.", label, [((g.name,), g.mailboxes) for g in told]
    )
    yield _labelled(
        gauge, "group_streaming", "Mailboxes of a group with a stream.", label,
        [((g.name,), g.streaming) for g in told],
    )  # fmt: skip
    yield _labelled(
        gauge, "group_failures", "Failures of a group in a row.", label,
        [((g.name,), g.failures) for g in told],
    )  # fmt: skip
    yield _labelled(
        gauge, "group_stream_opened_timestamp_seconds", "When the newest stream of a group was first heard.", label,
        [((g.name,), g.stream_opened) for g in told if g.stream_opened is not None],
    )  # fmt: skip


def _of_handlers(it: Snapshot) -> Iterator[Metric]:
    gauge, counter, label = GaugeMetricFamily, CounterMetricFamily, ("handler",)
    yield _labelled(
        gauge, "handler_up", "1 while the handler is open.", label,
        [((h.name,), h.state in ("running", "ending")) for h in it.handlers],
    )  # fmt: skip
    yield _labelled(
        gauge, "handler_lag_events", "Events that the handler has not finished with, at most.", label,
        [((h.name,), h.lag) for h in it.handlers],
    )  # fmt: skip
    yield _labelled(
        counter, "handler_delivered", "Events that the handler has finished.", label,
        [((h.name,), h.delivered) for h in it.handlers],
    )  # fmt: skip
    yield _labelled(
        counter, "handler_dead_letters", "Events that went to the dead letters.", label,
        [((h.name,), h.dead_lettered) for h in it.handlers],
    )  # fmt: skip
    yield _labelled(
        gauge, "handler_last_delivered_timestamp_seconds", "When the handler last finished an event.", label,
        [((h.name,), h.last_delivered) for h in it.handlers if h.last_delivered is not None],
    )  # fmt: skip


def _of_servers(it: Snapshot) -> Iterator[Metric]:
    gauge, label = GaugeMetricFamily, ("server",)
    yield _labelled(
        gauge, "throttle_pause_seconds", "How long a server wants to be left alone still.", label,
        [((s.host,), s.pause) for s in it.servers],
    )  # fmt: skip
    yield _labelled(
        gauge, "requests_concurrency", "Requests side by side that a server is asked now, at most.", label,
        [((s.host,), s.concurrency) for s in it.servers],
    )  # fmt: skip
    yield _labelled(
        CounterMetricFamily, "answers", 'What came of requests and streams: "ok", a code, or "other".',
        ("server", "code"),
        [((s.host, code), count) for s in it.servers for code, count in s.answers.items()],
    )  # fmt: skip


def _of_journal(it: Snapshot) -> Iterator[Metric]:
    if it.journal is None:
        return
    yield _gauge("journal_size_bytes", "The size of the journal.", it.journal.size)
    yield _gauge("journal_limit_bytes", "The size at which nothing new is taken in.", it.journal.limit)
    yield _gauge("journal_full", "1 while the journal takes nothing in.", it.journal.full)
    yield _gauge("journal_write_error", "1 while the disk refuses.", it.journal.write_error is not None)
    yield _counter("journal_events", "The position of the newest event in the journal.", it.journal.end)


def _of_catching_up(it: Snapshot) -> Iterator[Metric]:
    if it.catch_up is None:
        return
    yield _counter("gaps", "Times that a mailbox was without a good stream.", it.catch_up.gaps)
    yield _gauge("gaps_open", "Mailboxes with a gap that is not filled.", it.catch_up.open)
    yield _counter(
        "events_recovered", "Events that were found by comparing mailboxes.", it.catch_up.recovered
    )
    yield _counter(
        "changes_missed", "Changes that a stream should have told, and did not.", it.catch_up.missed
    )
    yield _counter("catch_up_requests", "Requests that comparing mailboxes took.", it.catch_up.requests)


def _of_mailboxes(streaming: Iterable[tuple[str, bool]]) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily, "mailbox_streaming", "1 while the mailbox has a stream; only if asked for.", ("mailbox",),
        [((mailbox,), is_streaming) for mailbox, is_streaming in streaming],
    )  # fmt: skip
