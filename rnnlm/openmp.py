"""OpenMP's threads, in both back ends: how many, how they wait for each other, and what a fork does to them."""

import contextlib
import ctypes
import os

from rnnlm.arrays import MAX_THREADS
from rnnlm.errors import UserError
from rnnlm.strict_json import show

_PAUSE_HARD = 2  # omp_pause_hard of omp.h


def wait_briefly() -> None:
    """Make waiting threads sleep soon. Call this before libgomp is loaded, which reads the environment only then.

    By default a waiting thread spins for some milliseconds. If another program wants its processor, the thread that
    everyone waits for runs last, and a step takes tens of times as long. 1,000 spins take a few microseconds; on an
    idle machine they slow down only the smallest steps (by 5%). Values that the user has set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def processors() -> int:
    """Return the number of processors that this process may run on, MAX_THREADS at most."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, MAX_THREADS)


def threads_asked() -> int | None:
    """Return how many threads OMP_NUM_THREADS asks for; None if it is not set. Raises UserError.

    If it is a list (one number per nesting level), the first is used.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not text:
        return None
    first = text.split(",")[0].strip()
    if not (first.isascii() and first.isdigit() and len(first) < 9 and 1 <= int(first) <= MAX_THREADS):
        raise UserError(
            f"OMP_NUM_THREADS must be a number of threads from 1 to {MAX_THREADS:,}, got {show(text)}: "
            "change or unset it"
        )
    return int(first)


def default_threads() -> int:
    """Return how many threads to use if nobody says: OMP_NUM_THREADS, or one for each processor. Raises UserError."""
    return threads_asked() or processors()


def survive_fork(path: str | os.PathLike[str]) -> None:
    """Let a process that forks use several threads on both sides. path: a library that uses OpenMP, loaded already.

    OpenMP keeps the threads of the last call for the next one. A child of fork() has none of them, and would wait for
    them for ever. So they are ended before each fork, and started again when they are needed.
    """
    if hasattr(os, "register_at_fork"):
        with contextlib.suppress(AttributeError):  # built without OpenMP
            pause = ctypes.CDLL(os.fspath(path)).omp_pause_resource_all
            os.register_at_fork(before=lambda: pause(_PAUSE_HARD))
