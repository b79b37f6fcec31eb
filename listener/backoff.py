"""How long to wait after the n-th failure in a row: capped exponential back-off with full jitter.

Once the waits have reached their cap, a wait is at least half of it: full jitter alone would now and then ask a
server that has been down for an hour twice within seconds.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits grow from `first` by `factor` up to `cap`; all in seconds."""

    first: float = 1.0
    factor: float = 1.5
    cap: float = 60.0

    def longest(self, failures: int) -> float:
        """The most seconds to wait after this many failures in a row (from 1)."""
        # The exponent is bounded because a float overflows where an outage lasts for days.
        return float(min(self.cap, self.first * self.factor ** min(failures - 1, 64)))

    def delay(self, failures: int, jitter: float, told: float | None = None) -> float:
        """Seconds to wait: what the server told us, if it did, plus a part of the back-off.

        `jitter` lies in [0, 1] and spreads clients that failed together over the whole time. It is added to what the
        server told, not taken from it: a server that says 30 s means at least 30 s.
        """
        longest = self.longest(failures)
        least = self.cap / 2 if longest == self.cap > self.first else 0.0
        # Rounding of the sum could exceed the bound by a bit.
        return (told or 0.0) + min(longest, least + jitter * (longest - least))
