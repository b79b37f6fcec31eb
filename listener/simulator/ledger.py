"""The ledger: one JSON line for each change or fault. Tests compare deliveries with it."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from listener.simulator.mailstore import Event


class Line(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One ledger line. `time` is in Unix seconds, `kind` the name of the EWS element.

    A line of the kind "fault" records a fault (faults.py): `fault` is its kind, `parameters` are those that
    differ from their defaults. `mailbox` (or ""), `backend` and `subscription` say what the fault was applied
    to.
    """

    seq: int
    time: float
    mailbox: str
    kind: str
    item_id: str | None = None
    folder_id: str | None = None
    parent_folder_id: str | None = None
    change_key: str | None = None
    old_id: str | None = None
    fault: str | None = None
    backend: str | None = None
    subscription: str | None = None
    parameters: Mapping[str, Any] | None = None


class Ledger:
    """Counts and writes lines: `count` changes and `faults` faults.

    With `path` None it only counts. A context manager that closes the file.
    """

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self.faults = 0
        self._file = path.open("wb", buffering=1 << 16) if path else None
        self._encode = msgspec.json.Encoder().encode

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def record(self, event: Event) -> Line:
        """Write one change."""
        self.count += 1
        line = Line(
            seq=self.count + self.faults,
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

    def record_fault(
        self,
        kind: str,
        now: float,
        *,
        mailbox: str = "",
        backend: str | None = None,
        subscription: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Line:
        """Write one fault and flush the file."""
        self.faults += 1
        line = Line(
            seq=self.count + self.faults,
            time=now,
            mailbox=mailbox,
            kind="fault",
            fault=kind,
            backend=backend,
            subscription=subscription,
            parameters=parameters or None,
        )
        if self._file:
            self._file.write(self._encode(line) + b"\n")
            self._file.flush()
        return line

    def flush(self) -> None:
        """Flush the file, so that readers see all lines."""
        if self._file:
            self._file.flush()
