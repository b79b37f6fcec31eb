"""What befalls an open stream."""

from listener.simulator import faults
from listener.simulator.faults import StreamFault
from listener.simulator.subscriptions import Stream, Subscription, Subscriptions

# The subscription is gone, says the code: "ResponseCode", learn.microsoft.com.
LOST = frozenset(
    (
        "ErrorSubscriptionNotFound",
        "ErrorInvalidSubscription",
        "ErrorExpiredSubscription",
        "ErrorEventNotFound",
        "ErrorInvalidWatermark",
        "ErrorSubscriptionUnsubscribed",
        "ErrorProxiedSubscriptionCallFailure",
        "ErrorMissedNotificationEvents",
        "ErrorReadEventsFailed",
    )
)
_LAUGHS = 9


def interfere(
    fault: StreamFault, stream: Stream, subscription: Subscription | None, table: Subscriptions, now: float
) -> None:
    """Make the fault in this stream. `subscription` is the one that it is about, if it is about one."""
    match fault:
        case faults.StreamCode():
            _fail(fault, stream, subscription, table)
        case faults.Closed():
            stream.close_early(now, fault.then, fault.seconds)
        case faults.Padding():
            stream.inject(stream.remark("x" * round(fault.megabytes * 1_000_000)))
        case faults.InvalidCharacters(form="reference"):
            stream.inject(stream.remark("here&#x0;and&#x1F;there"))
        case faults.InvalidCharacters(form="control"):
            stream.inject(stream.remark("here\x00and\x1fthere"))
        case faults.InvalidCharacters():
            stream.inject(stream.remark("here@there").replace(b"@", b"\xc3\x28\xff"))
        case faults.Doctype():
            stream.inject(
                _with_doctype(stream.remark("&laugh;" if fault.bomb else "&word;"), bomb=fault.bomb)
            )
        case _:
            stream.misbehave(fault)


def _fail(
    fault: faults.StreamCode, stream: Stream, subscription: Subscription | None, table: Subscriptions
) -> None:
    everything = [each for each in stream.subscriptions if not each.gone]
    concerned = everything if fault.ids == "all" or subscription is None else [subscription]
    ids = [] if fault.ids == "none" else [each.id for each in concerned]
    if fault.code in LOST:
        for each in concerned:
            table.forget(each)
    stream.fail(fault.code, ids, ends=fault.ends)


def _with_doctype(envelope: bytes, *, bomb: bool) -> bytes:
    if bomb:
        entities = '<!ENTITY l0 "ha">' + "".join(
            f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, _LAUGHS + 1)
        )
        entities += f'<!ENTITY laugh "&l{_LAUGHS};">'
    else:
        entities = '<!ENTITY word "a word">'
    declaration, mark, rest = envelope.rpartition(b"?>")
    return declaration + mark + f"<!DOCTYPE Envelope [{entities}]>".encode() + rest
