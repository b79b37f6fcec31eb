"""The public interface for handler plugins; everything else is private. See docs/HANDLERS.md."""

from listener._version import __version__
from listener.event import MailboxEvent
from listener.handler import BatchHandler, Handler, Reject, Retry

__all__ = ["BatchHandler", "Handler", "MailboxEvent", "Reject", "Retry", "__version__"]
