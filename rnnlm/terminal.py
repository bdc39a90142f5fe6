"""Standard output and standard error as a program may find them: closed, in any encoding, without a reader."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Droppable(io.FileIO):
    """A file whose reader may go away (a closed pipe, a terminal that hung up): what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def prepare() -> None:
    """Make standard error unable to fail, and standard output able to take any text. A main() calls this first.

    What standard output's encoding lacks is written as `\\xf6`. Its other errors are for the caller: see output_lost.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; the file also takes the descriptor, which no other file should get
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open to the end
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if type(sys.stderr) is io.TextIOWrapper:  # else a test or a notebook has put its own there
        raw = getattr(sys.stderr.buffer, "raw", sys.stderr.buffer)  # unbuffered, there is only the raw file
        if type(raw) is io.FileIO:
            droppable = io.BufferedWriter(_Droppable(raw.fileno(), "w", closefd=False))
            sys.stderr = io.TextIOWrapper(
                droppable, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True
            )
