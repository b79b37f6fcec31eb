"""The truth that deliveries are held against: one JSON line a change."""

from pathlib import Path
from types import TracebackType

import msgspec

from listener.simulator.mailstore import Event


class Line(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One line. `time` is in Unix seconds. `kind` is the EWS element's name, and later lines may tell of other
    things than changes (a fault has the kind "fault"); then the ids are left out."""

    seq: int
    time: float
    mailbox: str
    kind: str
    item_id: str | None = None
    folder_id: str | None = None
    parent_folder_id: str | None = None
    change_key: str | None = None
    old_id: str | None = None


class Ledger:
    """Counts and writes lines; `path` None counts only. A context manager, which closes the file."""

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self._file = path.open("wb", buffering=1 << 16) if path else None
        self._encode = msgspec.json.Encoder().encode

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def enter(self, event: Event) -> Line:
        """Write one change down."""
        self.count += 1
        line = Line(
            seq=self.count,
            time=event.time,
            mailbox=event.mailbox,
            kind=event.kind,
            item_id=event.item_id,
            folder_id=event.folder_id,
            parent_folder_id=event.parent_folder_id,
            change_key=event.change_key,
            old_id=event.old_id,
        )
        if self._file:
            self._file.write(self._encode(line) + b"\n")
        return line

    def flush(self) -> None:
        """Let readers of the file see all that was written."""
        if self._file:
            self._file.flush()
