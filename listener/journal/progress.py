"""A handler's offset: what it has read, and which of those events it has not finished (pure).

Stored as `upto`, the position it has read to, and the unfinished positions up to there. Whatever the order of the
acknowledgements, and however many events a filter excludes, the stored size depends only on the events in progress.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


class Progress:
    """Mutable. Positions are handed out in ascending order."""

    __slots__ = ("_unfinished", "upto")

    def __init__(self, upto: int, unfinished: Iterable[int] = ()) -> None:
        self.upto = upto
        self._unfinished = dict.fromkeys(unfinished)

    @property
    def unfinished(self) -> tuple[int, ...]:
        return tuple(self._unfinished)

    def __len__(self) -> int:
        return len(self._unfinished)

    @property
    def cursor(self) -> int:
        """The highest position up to which everything is finished."""
        return next(iter(self._unfinished), self.upto + 1) - 1

    def hand_out(self, positions: Iterable[int], upto: int) -> None:
        """Record that the handler has these events in progress, and that it skips all others up to `upto`."""
        self._unfinished.update(dict.fromkeys(positions))
        self.upto = max(self.upto, upto)

    def finish(self, positions: Iterable[int]) -> None:
        """Mark positions as finished. Positions that are already finished or were not handed out are ignored."""
        for position in positions:
            self._unfinished.pop(position, None)

    def pack(self) -> bytes:
        """Encode the unfinished positions as runs: distance from the end of the previous run, length, and so on."""
        runs: list[int] = []
        end = 0
        for position in self._unfinished:
            if position == end and runs:
                runs[-1] += 1
            else:
                runs += (position - end, 1)
            end = position + 1
        return _encode(runs)

    @classmethod
    def unpack(cls, upto: int, packed: bytes) -> Progress:
        """Decode what pack() returned at this `upto`. Raises ValueError or TypeError for anything else."""
        runs = _decode(packed)
        unfinished: list[int] = []
        end = 0
        for gap, count in zip(runs[::2], runs[1::2], strict=True):
            # Check before the range is built: damaged numbers may be arbitrarily large.
            if gap < (0 if end else 1) or count < 1 or end + gap + count - 1 > upto:
                raise ValueError("unfinished positions that were never handed out")
            unfinished += range(end + gap, end + gap + count)
            end += gap + count
        return cls(upto, unfinished)
