"""Capped exponential backoff with full jitter: the delay after the n-th consecutive failure.

At the cap, a delay is at least half of it. Full jitter alone would sometimes query a server twice within seconds,
although it has been down for an hour.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays grow from `first` by `factor` up to `cap`; all in seconds."""

    first: float = 1.0
    factor: float = 1.5
    cap: float = 60.0

    def longest(self, failures: int) -> float:
        """Return the longest delay after this number of consecutive failures (from 1)."""
        # The exponent is bounded because a float would overflow in an outage that lasts for days.
        return float(min(self.cap, self.first * self.factor ** min(failures - 1, 64)))

    def delay(self, failures: int, jitter: float, retry_after: float | None = None) -> float:
        """Return the delay: the server's `retry_after`, if any, plus a part of the backoff.

        `jitter` is in [0, 1] and spreads clients that failed together over the whole time. It is added to
        `retry_after`, not taken from it: a server that requests 30 s means at least 30 s.
        """
        longest = self.longest(failures)
        least = self.cap / 2 if longest == self.cap > self.first else 0.0
        # min(), because rounding of the sum could exceed the bound slightly.
        return (retry_after or 0.0) + min(longest, least + jitter * (longest - least))
