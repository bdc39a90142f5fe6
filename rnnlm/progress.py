"""Shows the progress of long work: a bar on a terminal, elsewhere a plain line every thirty seconds.

It is shown where the log is: only if messages of level INFO are.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)

LINE_SECONDS = 30.0  # between two lines, where there is no terminal
_BAR_SECONDS = 0.2  # between two drawings of a bar, which appears after that time


class Progress:
    """Counts work done and shows it. Several threads may share one."""

    def __init__(self, what: str, total: int, unit: str, done: int, bar: Any) -> None:
        self._what, self._total, self._unit, self._bar = what, total, unit, bar
        self._done = self._first = done
        self._started = self._shown = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more as done. note: what to show beside it."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                if note:
                    self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(count)
            elif (now := time.monotonic()) - self._shown >= LINE_SECONDS:
                self._shown = now
                log.info(self._line(now - self._started, note))

    def _line(self, seconds: float, note: str) -> str:
        """Return the state of the work as a line for the log."""
        rate = (self._done - self._first) / seconds
        parts = [f"{self._what}: {self._done:,} {self._unit}"]
        if self._total:
            parts = [f"{self._what}: {self._done / self._total:.0%} of {self._total:,} {self._unit}"]
        parts.append(f"{rate:,.0f}/s")
        if note:
            parts.append(note)
        if self._total and rate:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0, keep: bool = False) -> Iterator[Progress]:
    """Yield what shows the progress of `what`, which takes `total` units, 0 if nobody knows, of which some are `done`.

    keep: whether the bar stays on the terminal when the work is over.
    """
    with contextlib.ExitStack() as stack:
        bar = _open_bar(stack, what, total, unit, done, keep) if _has_terminal() else None
        yield Progress(what, total, unit, done, bar)


def _has_terminal() -> bool:
    return log.isEnabledFor(logging.INFO) and sys.stderr is not None and sys.stderr.isatty()


def _open_bar(stack: contextlib.ExitStack, what: str, total: int, unit: str, done: int, keep: bool) -> Any:
    try:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm
    except ImportError:  # what serves does not need it
        return None
    stack.enter_context(logging_redirect_tqdm())  # log lines pass above the bar
    return stack.enter_context(
        tqdm(
            desc=what,
            total=total or None,
            initial=done,
            unit=f" {unit}",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=_BAR_SECONDS,
            delay=0.0 if keep else _BAR_SECONDS,
            leave=keep,
            smoothing=0.05,
        )
    )


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 35 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
