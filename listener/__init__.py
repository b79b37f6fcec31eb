"""What a handler plugin imports, and nothing else: see docs/HANDLERS.md."""

from listener._version import __version__
from listener.event import MailboxEvent
from listener.handler import BatchHandler, Handler, Reject, Retry

__all__ = ["BatchHandler", "Handler", "MailboxEvent", "Reject", "Retry", "__version__"]
