"""Watches the other processes of a run: says whom this one waits for, and finds out that one cannot be reached.

A process that dies closes its connections, and the others notice at once. A machine that loses power, or whose cable
is pulled, closes nothing: the others would wait for as long as TCP keeps trying, without a word. So every process
counts in the store that torchrun keeps. Process 0 looks at all counts, the others at that of process 0, and at what
process 0 has found out. Nothing happens while this process works by itself: only waiting comes to an end. A step of
torch counts as waiting, since torch exchanges in the middle of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two counts
SILENCE = 60.0  # a process that has not counted for so long is lost
FIRST = 300.0  # the same for one that has not counted yet: it may still be importing
NOTICE = 30.0  # how often this process says that it is waiting
GLANCE = 1.0  # how often it looks at what it has heard


class Watch:
    """Watches while this process waits. It has two threads: one that counts, and one that the store cannot block."""

    def __init__(self, rank: int, size: int, *, speaks: bool, lost: Callable[[str], None]) -> None:
        """speaks: whether this process is the one that reports on its machine.

        lost: called in a thread of its own, once, with what happened, if another process cannot be reached while this
        one waits for it.
        """
        self.rank, self.size, self.speaks, self.lost = rank, size, speaks, lost
        self._wait: tuple[str, float] | None = None  # what for, and since when
        # Of each process: its count, 0 if it has not come, -1 if it came before that was read; and when it changed.
        watched = range(1, size) if rank == 0 else (0,)
        now = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {peer: (0, now) for peer in watched}
        self._found = 0  # 1 + the rank that process 0 has given up
        self._stopped = threading.Event()
        threading.Thread(target=self._look, daemon=True, name="watch").start()

    def join(self, store: Any) -> None:
        """Start to count. store: a connection to the store of the run's processes, for this object's use only."""
        threading.Thread(target=self._count, args=[store], daemon=True, name="count").start()

    def met(self) -> None:
        """Note that all processes have come: this one has just exchanged with them, whatever it has read of counts."""
        now = time.monotonic()
        self._heard = {peer: (count or -1, now) for peer, (count, _) in self._heard.items()}

    def stop(self) -> None:
        self._stopped.set()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Within this block the process waits for the others. what: ends the line `30 s of waiting for ...`."""
        self._wait = what, time.monotonic()
        try:
            yield
        finally:
            self._wait = None

    def _count(self, store: Any) -> None:
        count = 0
        while not self._stopped.wait(BEAT if count else 0.0):
            try:
                count = store.add(f"alive/{self.rank}", 1)
                for peer in self._heard:
                    heard = store.add(f"alive/{peer}", 0)
                    if heard and heard != self._heard[peer][0]:
                        self._heard[peer] = heard, time.monotonic()
                found = store.add("gone", 0)
                if self._found and not found and self.rank == 0:
                    store.add("gone", self._found)
                self._found = self._found or found
            except RuntimeError:
                return  # the store is gone: all fall silent

    def _look(self) -> None:
        looked = said = time.monotonic()
        while not self._stopped.wait(GLANCE):
            now = time.monotonic()
            # This process, or its machine, was stopped: the others have not been heard since.
            if now - looked > 2 * BEAT:
                self._heard = {peer: (count, now) for peer, (count, _) in self._heard.items()}
            looked = now
            wait = self._wait
            if wait is None:
                continue
            what, since = wait
            gone = self._gone(now)
            if gone is not None:
                self._found = self._found or 1 + gone
                # So that all processes of this machine, and the store, learn of it before torchrun stops the others.
                self._stopped.wait(GLANCE if self.speaks else 2 * BEAT)
                self.lost(f"process {gone} has not been heard of for {round(now - self._heard_at(gone, since)):,} s")
                return
            if self.speaks and now - max(since, said) >= NOTICE:
                said = now
                log.warning("%d s of waiting for %s%s", now - since, what, self._quiet(now))

    def _heard_at(self, peer: int, otherwise: float) -> float:
        return self._heard[peer][1] if peer in self._heard else otherwise

    def _gone(self, now: float) -> int | None:
        """Return the rank of a process that is lost, or None."""
        if self._found:
            return self._found - 1
        for peer, (count, at) in self._heard.items():
            if now - at > (SILENCE if count else FIRST):
                return peer
        return None

    def _quiet(self, now: float) -> str:
        """Name the process that has been quiet for longest, if one has."""
        peer = min(self._heard, key=lambda peer: self._heard[peer][1])
        count, at = self._heard[peer]
        if now - at < 3 * BEAT:
            return ""
        return f"; process {peer} " + (f"was last heard of {round(now - at):,} s ago" if count else "has not come yet")
