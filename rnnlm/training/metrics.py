"""The metrics of a run as JSON lines. Each line is an event:

config        the first line: the configuration, the back end, the number of processes
evaluation    a line of the history
step          every --log-every steps
test          once, at the end: the best weights on the test split
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnlm.errors import reason, show_path
from rnnlm.files import SaveError, atomic_write
from rnnlm.training.progress import Row


class Metrics:
    """Writes the lines as they come. What a full disk refuses is kept, and written by the next `flush`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first = b""  # the line of the configuration
        self._size = 0  # of the file, in whole lines
        self._pending = b""

    def begin(self, about: Mapping[str, Any], history: Sequence[Row], step: int) -> None:
        """Start the file, or continue that of a run which is resumed after `step` steps. Raises SaveError.

        Of the lines that are there, those of steps up to `step` stay; the evaluations come from the history. A new
        run's file is written by the first `flush`: if the run is killed before, it leaves no file to ask about.
        """
        self._first = _line("config", about)
        kept = [row for row in read(self.path) if row.get("event") == "step" and row["step"] <= step] if step else []
        rows = [*kept, *({"event": "evaluation", **row} for row in history)]
        rows.sort(key=lambda row: row["step"])  # stable: a step comes before its evaluation
        self._pending = self._first + b"".join(_line(row.pop("event"), row) for row in rows)
        self._size = 0
        if history:
            self.flush()

    def add(self, event: str, row: Mapping[str, Any]) -> None:
        """Add a line. It is in the file after `flush`."""
        self._pending += _line(event, row)

    def flush(self) -> None:
        """Write the lines that are not in the file yet. Raises SaveError."""
        if self._size and not self.path.exists():  # somebody removed it
            self._size, self._pending = 0, self._first + self._pending
        if self._size == 0:
            atomic_write(self.path, self._pending)
        else:
            self._append()
        self._size += len(self._pending)
        self._pending = b""

    def _append(self) -> None:
        try:
            with open(self.path, "r+b", buffering=0) as file:
                file.seek(self._size)
                file.truncate()  # what a full disk took of the lines before
                written = file.write(self._pending)
                if written < len(self._pending):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise SaveError(f"{show_path(self.path)} cannot be saved ({reason(error)}): make room") from error


def _line(event: str, row: Mapping[str, Any]) -> bytes:
    return json.dumps({"event": event, **row}).encode() + b"\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file up to the first that is cut or damaged; none if there is no file."""
    rows: list[dict[str, Any]] = []
    try:
        for line in path.read_bytes().splitlines(keepends=True):
            row = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(row, dict):
                break
            rows.append(row)
    except (OSError, ValueError):
        pass
    return rows
