"""Event files for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnlm.files import SaveError
from rnnlm.training.config import ConfigError


class Events:
    """TensorBoard's event files. One file for each start of a run; what a killed run wrote too much is then hidden.

    Written here with the library's records rather than by its writer, whose thread waits for ever on a full disk.
    Raises ConfigError where the library is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            ) from error
        self.folder = folder
        self._event, self._summary, self._records = event_pb2.Event, summary_pb2.Summary, RecordWriter
        self._session_start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event of these scalars. Raises SaveError."""
        try:
            if self._writer is None:
                self._open(step)
            scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._add(step=step, summary=self._summary(value=scalars))
        except OSError as error:
            self.close()  # the file may end in half an event: go on in another
            raise SaveError(f"{self.folder}: events cannot be saved ({error.strerror or error}): make room") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = self._records((self.folder / name).open("wb", buffering=0))
        self._add(file_version="brain.Event:2")
        self._add(step=step, session_log=self._session_start)

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
