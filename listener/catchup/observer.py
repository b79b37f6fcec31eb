"""Observation of gaps and comparisons, for tests and the demo."""


class Observer:
    """Methods that catch-up calls. Moments are on trio's clock. This class does nothing."""

    def gap(self, mailbox: str, since: float | None) -> None:
        """A mailbox was without a working stream since that moment (None: unknown), and has one again."""

    def compared(self, mailbox: str, started_at: float) -> None:
        """A comparison of a mailbox, which began at that moment, has ended."""


NO_OBSERVER = Observer()
