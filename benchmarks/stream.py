"""Measure the time to parse one event and convert it: microseconds, the best of five runs."""

import time
from collections.abc import Callable

from listener import log
from listener.event import MailboxEvent
from listener.ews.events import Notification, mailbox_event
from listener.ews.stream import StreamParser

EVENTS_PER_ENVELOPE = 3
ENVELOPES = 5_000
EVENT = (
    '<t:CreatedEvent><t:TimeStamp>2026-01-01T12:00:00Z</t:TimeStamp><t:ItemId Id="AAMkAGI2TG93AAAA{n:060d}" '
    'ChangeKey="CQAAABYAAAAiIsqMbYjsT5e/T7KzowPTAAAYWdZ9"/>'
    '<t:ParentFolderId Id="AAMkAGI2TG93AAAB" ChangeKey="AQAAAA=="/>'
    "</t:CreatedEvent>"
)
ENVELOPE = (
    '<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><soap11:Header '
    'xmlns:soap11="http://schemas.xmlsoap.org/soap/envelope/"><ServerVersionInfo MajorVersion="15" '
    'xmlns="http://schemas.microsoft.com/exchange/services/2006/types"/></soap11:Header><soap11:Body '
    'xmlns:soap11="http://schemas.xmlsoap.org/soap/envelope/"><m:GetStreamingEventsResponse '
    'xmlns:m="http://schemas.microsoft.com/exchange/services/2006/messages" '
    'xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"><m:ResponseMessages>'
    '<m:GetStreamingEventsResponseMessage ResponseClass="Success"><m:ResponseCode>NoError</m:ResponseCode>'
    "<m:Notifications><m:Notification><t:SubscriptionId>JQBleDAxLmNvbnRvc28uZXhhbXBsZRAAAAA=</t:SubscriptionId>"
    "<t:MoreEvents>false</t:MoreEvents>{events}</m:Notification></m:Notifications></m:GetStreamingEventsResponseMessage>"
    "</m:ResponseMessages></m:GetStreamingEventsResponse></soap11:Body></Envelope>"
)


def main() -> None:
    """Print one row for each step."""
    log.configure("error")
    body = "".join(
        ENVELOPE.format(events="".join(EVENT.format(n=3 * e + n) for n in range(EVENTS_PER_ENVELOPE)))
        for e in range(ENVELOPES)
    ).encode()
    chunks = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    count = EVENTS_PER_ENVELOPE * ENVELOPES
    parsed = parse(chunks)
    events = to_events(parsed)
    print(f"{count} events, {EVENTS_PER_ENVELOPE} per envelope, {len(body) / count:.0f} bytes per event")
    print_row("parse the stream", count, lambda: parse(chunks))
    print_row("make mailbox events", count, lambda: to_events(parsed))
    print_row("to CloudEvents JSON", count, lambda: [event.to_json() for event in events])


def print_row(name: str, count: int, work: Callable[[], object]) -> None:
    best = min(measure(work) for _ in range(5))
    print(f"{name:30} {best / count * 1e6:7.2f} µs per event {count / best:12,.0f} events/s")


def measure(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def parse(chunks: list[bytes]) -> list[Notification]:
    parser = StreamParser()
    return [s for chunk in chunks for s in parser.feed(chunk) if isinstance(s, Notification)]


def to_events(notifications: list[Notification]) -> list[MailboxEvent]:
    return [mailbox_event("ann@contoso.example", event) for n in notifications for event in n.events]


if __name__ == "__main__":
    main()
