"""How many threads OpenMP uses, and how they wait for each other, in both back ends."""

import os


def wait_briefly() -> None:
    """Make waiting threads sleep soon. Call this before libgomp is loaded, which reads the environment only then.

    By default a waiting thread spins for some milliseconds. If another program wants its processor, the thread that
    everyone waits for runs last, and a step takes tens of times as long. 1,000 spins take a few microseconds; on an
    idle machine they slow down only the smallest steps (by 5%). Values that the user has set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def processors() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return how many threads to use if nobody says: OMP_NUM_THREADS, or one for each processor."""
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has a number for each level
    return int(wish) if wish.isdecimal() and int(wish) > 0 else processors()
