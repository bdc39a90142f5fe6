"""Continuous batching: the sequences of all requests to one back end advance together, a token at a time.

One thread for each back end owns the engines. Between two tokens it lets finished, cancelled and overdue sequences go,
and takes in those that wait (Orca, Yu et al. 2022). A request's tokens are kept in its sequences until it is answered,
at most max_tokens of each, so that a slow reader holds nobody back.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable

from service.engines import Engine
from service.errors import Busy, Internal, NoMemory, ServiceError, ShuttingDown, TimeLimit, WeightsUnusable
from service.metrics import BackendMetrics
from service.sequences import Run, TokenSequence

log = logging.getLogger(__name__)

# To wake a reader and to send takes longer than to make a token in company. So where n streams run, each is told of its
# tokens no more often than every n - 1 of these: one stream of each token at once, 32 streams of a few together.
SECONDS_PER_EVENT = 0.0005


class Scheduler:
    """The sequences of one back end, and the thread that advances them."""

    def __init__(self, *, name: str, max_sequences: int, max_waiting: int, metrics: BackendMetrics) -> None:
        self._max_sequences = max_sequences
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._condition = threading.Condition()  # guards the four that follow
        self._waiting: deque[tuple[Run, TokenSequence]] = deque()
        self._running: list[tuple[Run, TokenSequence]] = []
        self._stopping: ServiceError | None = None
        self._closed = False
        self._seconds_per_sequence = 1.0  # a running mean, for Retry-After
        self._to_tell: set[Run] = set()  # these two are the thread's: who has tokens that it was not told of,
        self._told_at = 0.0  # and when all of those were last told
        self._thread = threading.Thread(target=self._work, name=f"scheduler-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Take a run in, whole or not at all. Raises Busy when too many sequences wait, ShuttingDown."""
        with self._condition:
            if self._stopping:
                raise self._stopping
            there = sum(_goes_on(*pair) for pair in (*self._running, *self._waiting))
            if there + len(run.sequences) > self._max_sequences + self._max_waiting:
                raise Busy(
                    f"{len(self._waiting)} sequences wait already (at most {self._max_waiting}): try again later",
                    self._retry_after(),
                )
            self._waiting.extend((run, sequence) for sequence in run.sequences)
            self._condition.notify()

    def _retry_after(self) -> int:
        rounds = 1 + len(self._waiting) / self._max_sequences
        return max(1, min(60, math.ceil(rounds * self._seconds_per_sequence)))

    def cut(self) -> None:
        """End every run with ShuttingDown, and take no more in."""
        with self._condition:
            self._stopping = ShuttingDown()
            runs = {run for run, _ in (*self._waiting, *self._running)}
        self._fail(runs, self._stopping)

    def close(self) -> None:
        """Cut, and end the thread."""
        self.cut()
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    # ---- The thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._condition:
                if not self._running:
                    self._to_tell.clear()  # runs that were cut off, and would keep their model in memory
                while not (self._waiting or self._running or self._closed):
                    self._condition.wait()
                if self._closed and not (self._waiting or self._running):
                    return
            try:
                self._tick()
            except Exception:  # a bug here must not leave every later request waiting
                log.exception("the scheduler failed")
                self._fail({run for run, _ in self._running}, Internal())

    def _tick(self) -> None:
        """Let go, take in, and advance every sequence by one token."""
        now = time.monotonic()
        self._let_go(now)
        ready: dict[Engine, list[tuple[Run, TokenSequence]]] = {}
        for run, sequence in self._running:
            if sequence.started_at is None:
                sequence.started_at = now
            try:
                if sequence.prefill():
                    ready.setdefault(sequence.engine, []).append((run, sequence))
            except Exception as error:
                self._fail({run}, _reason(sequence.engine, error))
        for engine, pairs in ready.items():
            self._advance(engine, pairs)

    def _let_go(self, now: float) -> None:
        with self._condition:
            pairs = (*self._waiting, *self._running)
        for run in {run for run, _ in pairs if now > run.created_at + run.seconds and not run.done}:
            limit = f"{run.seconds:g} seconds"
            self._fail({run}, TimeLimit(f"not finished within {limit}: ask for fewer tokens, or try again later"))
        with self._condition:
            for run, sequence in pairs:
                if sequence.finish_reason and sequence.started_at is not None:
                    self._seconds_per_sequence += 0.1 * (now - sequence.started_at - self._seconds_per_sequence)
                elif run.cancelled:
                    self._metrics.cancelled.inc()
            self._running = [pair for pair in self._running if _goes_on(*pair)]
            self._waiting = deque(pair for pair in self._waiting if _goes_on(*pair))
            while self._waiting and len(self._running) < self._max_sequences:
                self._running.append(self._waiting.popleft())
            self._metrics.running.set(len(self._running))
            self._metrics.waiting.set(len(self._waiting))

    def _advance(self, engine: Engine, pairs: list[tuple[Run, TokenSequence]]) -> None:
        """One token more for each. What fails costs its own run only."""
        feeds, states = zip(*(sequence.feed() for _, sequence in pairs), strict=True)
        try:
            steps, states = engine.step(feeds, states)
            if not engine.intact():
                raise RuntimeError("the weights have changed")
        except Exception as error:
            if len(pairs) > 1 and engine.intact():  # each on its own: the others' states are as they were
                for pair in pairs:
                    self._advance(engine, [pair])
            else:
                self._fail({run for run, _ in pairs}, _reason(engine, error))
            return
        now = time.monotonic()
        at_once = set()
        for (run, sequence), step, state in zip(pairs, steps, states, strict=True):
            if not math.isfinite(step.logprob):
                log.error("a step failed: its log-probability is %s", step.logprob)
                self._fail({run}, Internal())
                continue
            sequence.take(step, state)
            if sequence.last_at is None:
                sequence.first_at = now
                self._metrics.first_token(now - run.created_at)
            else:
                self._metrics.next_token(now - sequence.last_at)
            if sequence.finish_reason or (run.every_token and sequence.last_at is None):
                at_once.add(run)
            elif run.every_token:
                self._to_tell.add(run)
            sequence.last_at = now
        self._metrics.tokens.inc(len(pairs))
        if now - self._told_at >= SECONDS_PER_EVENT * (len(self._to_tell) - 1):
            at_once |= self._to_tell
            self._to_tell.clear()
            self._told_at = now
        self._wake(at_once)

    def _fail(self, runs: Iterable[Run], error: ServiceError) -> None:
        for run in runs:
            run.error = run.error or error
        self._wake(runs)

    def _wake(self, runs: Iterable[Run]) -> None:
        """One call into the event loop for all of these readers. From any thread."""
        runs = tuple(runs)
        if not runs:
            return
        try:
            runs[0].loop.call_soon_threadsafe(_notify, runs)
        except RuntimeError:  # the loop is closed: nobody reads any more
            log.debug("nobody reads: the event loop is closed")


def _reason(engine: Engine, error: Exception) -> ServiceError:
    """What the clients are told whose sequences a failure ends."""
    if not engine.intact():
        log.warning("a weights file was changed in place: requests that ran on it are ended")
        return WeightsUnusable("the weights were changed while the request ran on them: send it again")
    if isinstance(error, MemoryError):
        log.warning("a step or a prompt ran out of memory")
        return NoMemory()
    log.error("a step or a prompt failed", exc_info=error)
    return Internal()


def _goes_on(run: Run, sequence: TokenSequence) -> bool:
    return not (run.cancelled or run.error or sequence.finish_reason)


def _notify(runs: Iterable[Run]) -> None:
    for run in runs:
        run.notify()
