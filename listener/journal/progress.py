"""How far a handler has come: what it was handed, and which of that it has not finished (pure).

Kept as `upto`, the position it has read to, and the unfinished ones up to there. However the acknowledgements come,
and where a filter passes most events over, that is never more than what the handler has in hand.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


class Progress:
    """Mutable; positions are handed out in rising order."""

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
        """The highest position up to which all is finished."""
        return next(iter(self._unfinished), self.upto + 1) - 1

    def hand_out(self, positions: Iterable[int], upto: int) -> None:
        """These are in the handler's hand; whatever else lies up to `upto` is nothing for it."""
        self._unfinished.update(dict.fromkeys(positions))
        self.upto = max(self.upto, upto)

    def finish(self, positions: Iterable[int]) -> None:
        """What was finished before, or never handed out, is no error."""
        for position in positions:
            self._unfinished.pop(position, None)

    def pack(self) -> bytes:
        """The unfinished ones as runs: how far from the end of the last run, how many, and so on."""
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
        """Raises ValueError or TypeError if it was not made by pack() at this `upto`."""
        runs = _decode(packed)
        unfinished: list[int] = []
        end = 0
        for gap, count in zip(runs[::2], runs[1::2], strict=True):
            # Before a range is made of them: damaged numbers may be of any size.
            if gap < (0 if end else 1) or count < 1 or end + gap + count - 1 > upto:
                raise ValueError("unfinished positions that were never handed out")
            unfinished += range(end + gap, end + gap + count)
            end += gap + count
        return cls(upto, unfinished)
