"""events.jsonl: one JSON object a line, appended whole, for machines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from manifests import disk
from manifests.records import now

REPORTED = "reported"
"""Event of a run that ended with a report; its field `report` is the name of the report's folder."""


class EventLog:
    """An append-only log; several threads and processes may write to one file.

    Parameters
    ----------
    path : Path
        The file; created with its folder.

    Raises
    ------
    StoreError
        If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk.disk_errors(f"write {disk.place(path)}", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            size = os.fstat(self._descriptor).st_size
            self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with its time (`event`, `time` in UTC, then the fields: JSON values).

        Raises
        ------
        ValueError
            If a field is NaN or infinite.
        StoreError
            If it cannot be written.
        """
        line = json.dumps({"event": event, "time": now(), **fields}, allow_nan=False) + "\n"
        # A kill or a full disk left half a line: this event must not become part of it.
        data = (("\n" if self._torn else "") + line).encode("ascii")
        with disk.disk_errors(f"write {disk.place(self._path)}", self._path):
            while data:
                self._torn = True
                # One call a line, so that lines of several processes do not mix; a second one only on a full disk.
                data = data[os.write(self._descriptor, data) :]
            self._torn = False

    def close(self) -> None:
        """Close the file; closing twice is no error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """Read all whole lines of an event log; a line torn by a kill or a full disk is left out.

    Parameters
    ----------
    path : Path
        The log.
    tail_bytes : int, optional
        Read no more than this from the end.
    """
    with path.open("rb") as stream:
        if tail_bytes is not None:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - tail_bytes))
        data = stream.read()
    events = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
