"""Continuous batching: the sequences of all requests to one back end advance together, one token at a time.

One thread for each back end owns the engines. Between two tokens it drops finished, cancelled and overdue sequences and
admits waiting ones (Orca, Yu et al. 2022). A request's tokens stay in its sequences until it is answered, at most
max_tokens of each, so a slow reader delays nobody.
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
from service.request import Request
from service.sequences import TokenSequence

log = logging.getLogger(__name__)

# Waking a reader and sending takes 60 microseconds: a third of a token's time, and in a batch more than all of it. So
# with n streams, each is woken at most once in n + 3 of these intervals, for all tokens since then: a single stream
# once in 2 milliseconds, 32 streams once in 17. The first token of a sequence, and its end, are sent at once.
SECONDS_PER_EVENT = 0.0005


class Scheduler:
    """The sequences of one back end, and the thread that advances them."""

    def __init__(self, *, name: str, max_sequences: int, max_waiting: int, metrics: BackendMetrics) -> None:
        self._max_sequences = max_sequences
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._condition = threading.Condition()  # guards the four that follow
        self._waiting: deque[tuple[Request, TokenSequence]] = deque()
        self._running: list[tuple[Request, TokenSequence]] = []
        self._stopping: ServiceError | None = None
        self._closed = False
        self._seconds_per_sequence = 1.0  # a running mean, for Retry-After
        self._unread: set[Request] = set()  # the thread's own: the streams that have tokens to send,
        self._woken_at = 0.0  # and when all of them were last woken
        self._thread = threading.Thread(target=self._advance_all, name=f"scheduler-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue all sequences of a request, or none. Raises Busy when too many are waiting, and ShuttingDown."""
        with self._condition:
            if self._stopping:
                raise self._stopping
            present = sum(_is_active(*pair) for pair in (*self._running, *self._waiting))
            if present + len(request.sequences) > self._max_sequences + self._max_waiting:
                raise Busy(
                    f"{len(self._waiting):,} of at most {self._max_waiting:,} sequences are waiting: try again later",
                    self._retry_after(),
                )
            self._waiting.extend((request, sequence) for sequence in request.sequences)
            self._condition.notify()

    def _retry_after(self) -> int:
        rounds = 1 + len(self._waiting) / self._max_sequences
        return max(1, min(60, math.ceil(rounds * self._seconds_per_sequence)))

    def cut(self) -> None:
        """End every request with ShuttingDown, and accept no more."""
        with self._condition:
            self._stopping = ShuttingDown()
            requests = {request for request, _ in (*self._waiting, *self._running)}
        self._fail(requests, self._stopping)

    def close(self) -> None:
        """Cut, then end the thread."""
        self.cut()
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    # ---- The thread -------------------------------------------------------------------------------------------------

    def _advance_all(self) -> None:
        while True:
            with self._condition:
                if not self._running:
                    self._unread.clear()  # requests that were cut off would keep their model in memory
                while not (self._waiting or self._running or self._closed):
                    self._condition.wait()
                if self._closed and not (self._waiting or self._running):
                    return
            try:
                self._tick()
            except Exception:  # a bug here must not leave every later request waiting
                log.exception("the scheduler failed")
                self._fail({request for request, _ in self._running}, Internal())

    def _tick(self) -> None:
        """Drop what has ended, admit what waits, and advance every sequence by one token."""
        now = time.monotonic()
        self._drop_and_admit(now)
        ready: dict[Engine, list[tuple[Request, TokenSequence]]] = {}
        for request, sequence in self._running:
            if sequence.started_at is None:
                sequence.started_at = now
            try:
                if sequence.prefill():
                    ready.setdefault(sequence.engine, []).append((request, sequence))
            except Exception as error:
                self._fail({request}, _reason(sequence.engine, error))
        for engine, pairs in ready.items():
            self._advance(engine, pairs)

    def _drop_and_admit(self, now: float) -> None:
        with self._condition:
            pairs = (*self._waiting, *self._running)
        for request in {request for request, _ in pairs if now > request.deadline and not request.done}:
            limit = f"{request.seconds:g} second{'s' * (request.seconds != 1)}"
            self._fail({request}, TimeLimit(f"not finished within {limit}: ask for fewer tokens, or try again later"))
        with self._condition:
            if ended := {pair for pair in pairs if not _is_active(*pair)}:
                self._drop(ended, now)
            while self._waiting and len(self._running) < self._max_sequences:
                self._running.append(self._waiting.popleft())
            self._metrics.running.set(len(self._running))
            self._metrics.waiting.set(len(self._waiting))

    def _drop(self, ended: set[tuple[Request, TokenSequence]], now: float) -> None:
        for request, sequence in ended:
            if sequence.finish_reason and sequence.started_at is not None:
                self._seconds_per_sequence += 0.1 * (now - sequence.started_at - self._seconds_per_sequence)
            elif request.cancelled:
                self._metrics.cancelled.inc()
        self._running = [pair for pair in self._running if pair not in ended]
        self._waiting = deque(pair for pair in self._waiting if pair not in ended)

    def _advance(self, engine: Engine, pairs: list[tuple[Request, TokenSequence]]) -> None:
        """Make one token for each. A failure ends only its own request."""
        feeds, states = zip(*(sequence.feed() for _, sequence in pairs), strict=True)
        try:
            steps, states = engine.step(feeds, states)
            if not engine.intact():
                raise RuntimeError("the weights file was changed in place")
        except Exception as error:
            if len(pairs) > 1 and engine.intact():  # one by one: the states are still as they were
                for pair in pairs:
                    self._advance(engine, [pair])
            else:
                self._fail({request for request, _ in pairs}, _reason(engine, error))
            return
        self._metrics.tokens.inc(len(pairs))  # first: once a request is done, its tokens are counted
        now = time.monotonic()
        at_once = set()
        for (request, sequence), step, state in zip(pairs, steps, states, strict=True):
            if not math.isfinite(step.logprob):
                log.error("a step failed: its log-probability is %s", step.logprob)
                self._fail({request}, Internal())
                continue
            sequence.take(step, state)
            if sequence.last_at is None:
                sequence.first_at = now
                self._metrics.first_token(now - request.created_at)
            else:
                self._metrics.next_token(now - sequence.last_at)
            if sequence.finish_reason or (request.stream and sequence.last_at is None):
                at_once.add(request)
            elif request.stream:
                self._unread.add(request)
            sequence.last_at = now
        if now - self._woken_at >= SECONDS_PER_EVENT * (len(self._unread) + 3):
            at_once |= self._unread
            self._unread.clear()
            self._woken_at = now
        self._wake(at_once)

    def _fail(self, requests: Iterable[Request], error: ServiceError) -> None:
        for request in requests:
            request.error = request.error or error
        self._wake(requests)

    def _wake(self, requests: Iterable[Request]) -> None:
        """Wake the readers of these requests, in one call into the event loop. Any thread may call this."""
        requests = tuple(requests)
        if not requests:
            return
        try:
            requests[0].loop.call_soon_threadsafe(_notify, requests)
        except RuntimeError:  # the loop is closed: there are no readers left
            log.debug("the event loop is closed: there are no readers left")


def _reason(engine: Engine, error: Exception) -> ServiceError:
    """Return the error for the clients whose sequences a failure ends."""
    if not engine.intact():
        log.warning("a weights file was changed in place: the requests that used it end with an error")
        return WeightsUnusable("the weights file was changed while this request was using it: send the request again")
    if isinstance(error, MemoryError):
        log.warning("a step or a prompt ran out of memory")
        return NoMemory()
    log.error("a step or a prompt failed", exc_info=error)
    return Internal()


def _is_active(request: Request, sequence: TokenSequence) -> bool:
    return not (request.cancelled or request.error or sequence.finish_reason)


def _notify(requests: Iterable[Request]) -> None:
    for request in requests:
        request.notify()
