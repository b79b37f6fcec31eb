"""The contract between the listener and a handler plugin.

A plugin is a *factory*: a function that returns an async context manager, mostly one written with
`contextlib.asynccontextmanager`. Its keyword arguments are the options of `[handlers.NAME]` in the
configuration, and they are bound to its signature, and checked against its annotations, before any socket
opens. Entering the context opens what the handler needs and yields the handler; leaving it closes that again.

    @asynccontextmanager
    async def open_audit(*, path: str) -> AsyncIterator[Handler]:
        async with await trio.open_file(path, "a") as file:

            async def handle(event: MailboxEvent) -> None:
                await file.write(event.to_json() + "\\n")

            yield handle

Returning acknowledges the event. Raising `Retry` asks for it again, raising `Reject` gives it up, and any other
exception counts as a failure of the handler: it is logged under the handler's name and the event is tried again.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, runtime_checkable

from listener.event import MailboxEvent

Handler: TypeAlias = Callable[[MailboxEvent], Awaitable[None]]


@runtime_checkable
class BatchHandler(Protocol):
    """A handler that takes many events at a time, `max_batch` at most, of any mailboxes, each mailbox's in order.

    It may also have `max_wait`: the seconds to wait for a batch to fill (else it gets what is there). Returning
    acknowledges all of them; raising brings all of them again.
    """

    max_batch: int

    async def handle_batch(self, events: Sequence[MailboxEvent], /) -> None: ...


HandlerContext: TypeAlias = AbstractAsyncContextManager[Handler | BatchHandler]
HandlerFactory: TypeAlias = Callable[..., HandlerContext]


class Retry(Exception):  # noqa: N818  (it is a request, not an error)
    """Raised by a handler: bring me this event again.

    `after` is in seconds; None leaves the wait to the configured back-off. With `counts` False it is not the event's
    fault (what the handler needs is not there just now), and this was none of the tries that the event has.
    """

    def __init__(self, reason: str = "", *, after: float | None = None, counts: bool = True) -> None:
        super().__init__(reason)
        self.after = after
        self.counts = counts


class Reject(Exception):  # noqa: N818
    """Raised by a handler: this event can never be handled, do not bring it again. The reason is logged."""
