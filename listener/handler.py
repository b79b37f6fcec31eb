"""The contract between the listener and a handler plugin.

A plugin is a *factory*: a function that returns an async context manager, usually one written with
`contextlib.asynccontextmanager`. Its keyword arguments are the options of `[handlers.NAME]` in the configuration.
They are bound to its signature, and checked against its annotations, before any socket opens. Entering the context
opens what the handler needs and yields the handler; leaving it closes everything.

    @asynccontextmanager
    async def open_audit(*, path: str) -> AsyncIterator[Handler]:
        async with await trio.open_file(path, "a") as file:

            async def handle(event: MailboxEvent) -> None:
                await file.write(event.to_json() + "\\n")

            yield handle

Returning acknowledges the event. Raising `Retry` requests a retry, raising `Reject` moves the event to the
dead-letter queue. Any other exception is a failure of the handler: it is logged with the handler's name, and the
event is retried.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, runtime_checkable

from listener.event import MailboxEvent

Handler: TypeAlias = Callable[[MailboxEvent], Awaitable[None]]


@runtime_checkable
class BatchHandler(Protocol):
    """A handler that receives up to `max_batch` events per call, of any mailboxes, those of each mailbox in order.

    It may also have `max_wait`, the seconds to wait for a batch to fill; without it, a batch has the events that are
    available. Returning acknowledges all events of the batch; raising retries all of them.
    """

    max_batch: int

    async def handle_batch(self, events: Sequence[MailboxEvent], /) -> None: ...


HandlerContext: TypeAlias = AbstractAsyncContextManager[Handler | BatchHandler]
HandlerFactory: TypeAlias = Callable[..., HandlerContext]


class Retry(Exception):  # noqa: N818  (it is a request, not an error)
    """Raised by a handler to request a retry of the event.

    `after` is in seconds; None means the configured backoff. With `counts=False` the call does not count as one of
    the event's attempts: use it when something that the handler needs is unavailable.
    """

    def __init__(self, reason: str = "", *, after: float | None = None, counts: bool = True) -> None:
        super().__init__(reason)
        self.after = after
        self.counts = counts


class Reject(Exception):  # noqa: N818
    """Raised by a handler to move the event to the dead-letter queue without a retry. The reason is logged."""
