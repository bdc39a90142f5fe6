"""Continuous batching: the sequences of all requests to one back end advance together, a token at a time.

One thread for each back end owns the engines. Between two tokens it lets finished, cancelled and overdue sequences go,
and takes in those that wait (Orca, Yu et al. 2022). A request's tokens are kept in its sequences until it is answered,
at most max_tokens of each, so that a slow reader holds nobody back.

A `Run` is the work of one request. The event loop makes it, awaits it and may cancel it; the thread writes to it.
Lists only grow, flags are only set, so that neither side needs a lock to read what the other wrote.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np

from language_model import Sampling
from service.engines import Engine, Feed, Step
from service.errors import Busy, ClientGone, Internal, ServiceError, ShuttingDown, TimeLimit, WeightsUnusable
from service.metrics import BackendMetrics
from service.wording import Phrase, ends_with, held_back

log = logging.getLogger(__name__)

PREFILL_TOKENS = 64  # of a prompt at a time, so that a long one does not hold the others' next token up for long


class TokenSequence:
    """One prompt and what is written after it.

    prompt: ids; at least one.   eos: the id that ends it; None to go on after the end of a sentence.
    scored: its prompt's tokens but the first are steps too, which tell how probable they are.
    max_tokens: may be 0 when it is scored.   uniforms: (max_tokens,) draw its tokens: its own, whatever its company.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling,
        seed: int,
        eos: int | None,
        stop: Sequence[Phrase] = (),
        top: int = 0,
        scored: bool = False,
    ) -> None:
        self.engine = engine
        self.prompt = tuple(prompt)
        self.max_tokens = max_tokens
        self.seed = seed
        self.prompt_steps = len(self.prompt) - 1 if scored else 0
        self.steps: list[Step] = []  # the prompt's, then the new ones
        self.visible = 0  # how many of them can be shown: the rest may be the start of a stop phrase
        self.finish_reason: str | None = None  # "eos", "stop" or "length"
        self.started_at: float | None = None  # this and the next two on the clock of time.monotonic
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._sampling = sampling
        self._uniforms = np.random.default_rng(seed).random(max_tokens).tolist()
        self._eos = eos
        self._stop = stop
        self._top = top
        self._new: list[int] = []
        self._prefilled = 0
        self._state: Any = None

    @property
    def new_tokens(self) -> int:
        """Tokens written, those of a stop phrase included."""
        return len(self._new)

    # What follows is the thread's.

    def prefill(self) -> bool:
        """Let the next part of the prompt through the hidden layer. Returns whether the first step can be taken."""
        if self._state is None:
            self._state = self.engine.begin()
        end = 0 if self.prompt_steps else len(self.prompt) - 1  # a scored prompt is fed step by step
        if self._prefilled < end:
            part = self.prompt[self._prefilled : min(self._prefilled + PREFILL_TOKENS, end)]
            self._state = self.engine.prefill(part, self._state)
            self._prefilled += len(part)
        return self._prefilled >= end

    def feed(self) -> tuple[Feed, Any]:
        """What the next step needs."""
        done = len(self.steps)
        if done < self.prompt_steps:
            return Feed(self.prompt[done], 0.0, self._sampling, self._top, self.prompt[done + 1]), self._state
        token = self._new[-1] if self._new else self.prompt[-1]
        return Feed(token, self._uniforms[len(self._new)], self._sampling, self._top, None), self._state

    def take(self, step: Step, state: Any) -> None:
        """Add a token, and see whether it is the last."""
        self._state = state
        if not math.isfinite(step.logprob):
            raise FloatingPointError(f"log-probability {step.logprob}")
        self.steps.append(step)
        if len(self.steps) > self.prompt_steps:
            self._new.append(step.token)
            stopped = ends_with(self._new, self._stop)
            if stopped:
                self._finish("stop", len(self.steps) - stopped)
                return
            if step.token == self._eos:
                self._finish("eos", len(self.steps))
                return
        if len(self._new) >= self.max_tokens and len(self.steps) >= self.prompt_steps:
            self._finish("length", len(self.steps))
        else:
            self.visible = len(self.steps) - held_back(self._new, self._stop)

    def _finish(self, reason: str, visible: int) -> None:
        self.visible = visible
        self.finish_reason = reason  # last: the reader takes `visible` for final once it sees this


class Run:
    """The sequences of one request. Made on the event loop that awaits it.

    created_at: when the request came, on the clock of time.monotonic.   seconds: its time limit, from then on.
    every_token: wake the reader for each token, not only at the end.
    """

    def __init__(
        self, sequences: Sequence[TokenSequence], *, created_at: float, seconds: float, every_token: bool
    ) -> None:
        self.sequences = tuple(sequences)
        self.created_at = created_at
        self.seconds = seconds
        self.every_token = every_token
        self.error: ServiceError | None = None
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()

    @property
    def done(self) -> bool:
        return all(sequence.finish_reason for sequence in self.sequences)

    def cancel(self) -> None:
        """Stop the work before its next token. Without effect on a run that is over."""
        self.cancelled = True
        self.changed.set()

    async def wait(self) -> None:
        """Until every sequence is finished. Raises the run's error; ClientGone when it was cancelled."""
        async for _ in self.changes():
            pass

    async def changes(self, silence: float | None = None) -> AsyncIterator[bool]:
        """Yields True when there may be more to read, the last time when all is there; False after `silence` seconds
        without. Raises as `wait`."""
        while True:
            self.changed.clear()
            done = self.done  # read before the reader reads: what it then finds is at least that
            if self.cancelled and not done:
                raise ClientGone
            if self.error and not done:
                raise self.error
            yield True
            if done:
                return
            while not self.changed.is_set():
                try:
                    async with asyncio.timeout(silence):
                        await self.changed.wait()
                except TimeoutError:
                    yield False


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
        self._thread = threading.Thread(target=self._work, name=f"scheduler-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Run) -> None:
        """Take a run in, whole or not at all. Raises Busy when too many sequences wait, ShuttingDown."""
        with self._condition:
            if self._stopping:
                raise self._stopping
            there = len(self._running) + len(self._waiting)
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
        for run in runs:
            run.error = run.error or self._stopping
            run.changed.set()

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
            try:
                self._advance(engine, pairs)
            except Exception as error:  # not the service's end, but that of the sequences that were in the call
                self._fail({run for run, _ in pairs}, _reason(engine, error))

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
        feeds, states = zip(*(sequence.feed() for _, sequence in pairs), strict=True)
        steps, states = engine.step(feeds, states)
        if not engine.intact():
            raise RuntimeError("the weights have changed")
        now = time.monotonic()
        touched = set()
        for (run, sequence), step, state in zip(pairs, steps, states, strict=True):
            self._metrics.token(since=sequence.last_at, created=run.created_at, now=now)
            sequence.first_at = sequence.first_at or now
            sequence.last_at = now
            sequence.take(step, state)
            if run.every_token or sequence.finish_reason:
                touched.add(run)
        self._wake(touched)

    def _fail(self, runs: Iterable[Run], error: ServiceError) -> None:
        for run in runs:
            run.error = run.error or error
        self._wake(runs)

    def _wake(self, runs: Iterable[Run]) -> None:
        """One call into the event loop for all readers of a token."""
        runs = tuple(runs)
        if not runs:
            return
        try:
            runs[0].loop.call_soon_threadsafe(_set_changed, runs)
        except RuntimeError:  # the loop is closed: nobody reads any more
            log.debug("nobody reads: the event loop is closed")


def _reason(engine: Engine, error: Exception) -> ServiceError:
    """What the clients are told whose sequences a failure ends."""
    if not engine.intact():
        log.warning("a weights file was changed in place: requests that ran on it are ended")
        return WeightsUnusable("the weights were changed while the request ran on them: send it again")
    log.error("a step or a prompt failed", exc_info=error)
    return Internal()


def _goes_on(run: Run, sequence: TokenSequence) -> bool:
    return not (run.cancelled or run.error or sequence.finish_reason)


def _set_changed(runs: Iterable[Run]) -> None:
    for run in runs:
        run.changed.set()
