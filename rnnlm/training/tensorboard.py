"""Event files for TensorBoard."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnnlm.files import SaveError
from rnnlm.training.config import ConfigError


class Events:
    """Writes scalars for TensorBoard, into a new file at each start of a run, after its hyperparameters.

    hparams: by name; to be set before the first `write`.

    A file begins with the step that it starts from, so that TensorBoard hides later steps of a run that was killed.
    The library's own writer is not used: its thread waits forever on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        """Raise ConfigError if the library is missing. The folder and the file are made by the first `write`."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb
            from tensorboard.summary.writer.record_writer import RecordWriter
        except Exception as error:  # ImportError; or what protobuf raises if its version does not fit
            raise ConfigError(
                f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            ) from error
        self.folder = folder
        self.hparams: dict[str, bool | int | float | str] = {}
        self._event, self._summary, self._records = event_pb2.Event, summary_pb2.Summary, RecordWriter
        self._describe = hparams_pb
        self._session_start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write these scalars as one event. Raises SaveError."""
        try:
            if self._writer is None:
                self._open(step)
            scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._add(step=step, summary=self._summary(value=scalars))
        except OSError as error:
            self.close()  # the file may end in half an event, so the next write begins another
            raise SaveError(f"{self.folder}: events cannot be saved ({error.strerror or error}): make room") from error

    def close(self) -> None:
        """Close the file, if there is one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):  # a full disk may show only now
                writer.close()

    def _open(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = self._records((self.folder / name).open("wb", buffering=0))
        self._add(file_version="brain.Event:2")
        self._add(step=step, session_log=self._session_start)
        if self.hparams:
            self._add(step=step, summary=self._describe(self.hparams))

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
