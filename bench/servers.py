"""For the scripts that start other programs: a port that nobody has, and an end that leaves none of them behind."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_ENDS = (signal.SIGTERM, signal.SIGHUP)


def free_port() -> int:
    """Return the number of a port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process by SystemExit, so that what it has started is stopped and removed."""
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process as Popen does, and stop it at the end, whatever ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)  # or a signal could come before there is a process to stop

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        process = subprocess.Popen(command, preexec_fn=unblock, **options)
        try:
            unblock()
            yield process
        finally:
            process.terminate()
            process.wait()
    finally:
        unblock()
