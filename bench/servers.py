"""For the scripts that start other programs: a port that nobody has, and an end that leaves none of them behind."""

from __future__ import annotations

import signal
import socket
import sys


def free_port() -> int:
    """Return the number of a port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process by SystemExit, so that what it has started is stopped and removed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
