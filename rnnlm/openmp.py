"""How OpenMP's threads wait for one another, in both back ends."""

import os


def wait_briefly() -> None:
    """Let a thread that waits sleep soon. To be called before libgomp is loaded, which reads the environment then.

    By default it keeps its processor busy for some milliseconds. Where another program wants that processor, the thread
    that is waited for comes last, and a step takes tens of times as long. 1,000 turns, a few microseconds, cost an idle
    machine nothing that can be measured but in the smallest steps (5%). What the user has set holds.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
