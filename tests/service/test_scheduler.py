"""Continuous batching: joining, leaving, cancelling, limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from scheduling import request_of, sequence, with_scheduler
from serving import GUARD_SECONDS

from rnnlm.data.text import EOS as EOS_WORD
from rnnlm.data.text import Vocabulary
from service.engines import Engine, Feed, Step
from service.errors import Busy, ClientGone, Internal, ShuttingDown, TimeLimit
from service.metrics import Metrics
from service.request import Request
from service.scheduler import Scheduler
from service.sequences import PREFILL_TOKENS, TokenSequence
from service.wording import Phrase, Stop, Wording


class CountingEngine(Engine):
    """Writes 1, 2, 3, ...; with `gate`, each step waits until the test lets it."""

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.gate = gate
        self.batches: list[int] = []
        self.prefilled: list[int] = []
        self.fails = False
        self.logprob = -1.0

    def begin(self) -> int:
        return 0

    def prefill(self, tokens: Sequence[int], state: int) -> int:
        self.prefilled.append(len(tokens))
        return state

    def step(self, feeds: Sequence[Feed], states: Sequence[int]) -> tuple[list[Step], Sequence[int]]:
        if self.gate:
            assert self.gate.acquire(timeout=GUARD_SECONDS)
        if self.fails:
            raise RuntimeError("broken")
        self.batches.append(len(feeds))
        return [Step(state + 1, self.logprob, ()) for state in states], [state + 1 for state in states]


def tokens(sequence: TokenSequence) -> list[int]:
    return [step.token for step in sequence.steps[: sequence.visible]]


def test_a_request_is_carried_out() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        request = request_of(sequence(CountingEngine()), stream=False)
        scheduler.submit(request)
        await request.wait()
        assert tokens(request.sequences[0]) == [1, 2, 3, 4, 5]
        assert request.sequences[0].finish_reason == "length"

    with_scheduler(test)


def test_sequences_join_between_tokens_and_leave_when_done() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)
        engine = CountingEngine(gate)
        first, second = request_of(sequence(engine, max_tokens=6)), request_of(sequence(engine, max_tokens=2))
        scheduler.submit(first)
        gate.release()
        async for _ in first.changes():
            if len(first.sequences[0].steps) == 1:
                break
        scheduler.submit(second)
        gate.release(20)
        await second.wait()
        await first.wait()
        assert engine.batches[0] == 1 and engine.batches[-1] == 1
        assert engine.batches.count(2) == 2
        assert tokens(first.sequences[0]) == [1, 2, 3, 4, 5, 6]
        assert tokens(second.sequences[0]) == [1, 2]

    with_scheduler(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_request_makes_at_most_two_more_tokens(stream: bool) -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(3)
        request = request_of(sequence(CountingEngine(gate), max_tokens=1000), stream=stream)
        scheduler.submit(request)
        while len(request.sequences[0].steps) < 3:
            await asyncio.sleep(0.001)
        request.cancel()
        gate.release(500)
        with pytest.raises(ClientGone):
            await request.wait()
        after = request_of(sequence(CountingEngine()))  # once this is done, the thread has been round
        scheduler.submit(after)
        await after.wait()
        assert 3 <= len(request.sequences[0].steps) <= 5
        assert metrics.cancelled.labels("test")._value.get() == 1
        assert metrics.running.labels("test")._value.get() <= 1

    with_scheduler(test)


def test_a_slow_reader_holds_nobody_back() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        engine = CountingEngine()
        unread, other = request_of(sequence(engine, max_tokens=300)), request_of(sequence(engine, max_tokens=300))
        scheduler.submit(unread)
        scheduler.submit(other)
        await other.wait()
        while not unread.done:
            await asyncio.sleep(0.001)
        assert len(unread.sequences[0].steps) == 300  # kept, and no more than that

    with_scheduler(test)


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)
        requests = [request_of(sequence(CountingEngine(gate)), sequence(CountingEngine(gate))) for _ in range(2)]
        for request in requests:
            scheduler.submit(request)
        with pytest.raises(Busy) as refusal:
            scheduler.submit(request_of(sequence(CountingEngine())))
        assert int(refusal.value.headers["retry-after"]) >= 1
        gate.release(100)
        for request in requests:
            await request.wait()
        again = request_of(sequence(CountingEngine()))
        await asyncio.sleep(0.01)
        scheduler.submit(again)
        await again.wait()

    with_scheduler(test, max_sequences=2, max_waiting=2)


def test_who_has_gone_away_takes_no_place_in_the_queue() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)  # no token is made until it opens, so nothing is tidied up between two
        running, waiting = (request_of(sequence(CountingEngine(gate))) for _ in range(2))
        scheduler.submit(running)
        scheduler.submit(waiting)
        waiting.cancel()
        scheduler.submit(request_of(sequence(CountingEngine())))
        gate.release(100)
        await running.wait()

    with_scheduler(test, max_sequences=1, max_waiting=1)


def test_a_request_is_taken_whole_or_not_at_all() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        with pytest.raises(Busy):
            scheduler.submit(request_of(*(sequence(CountingEngine()) for _ in range(5))))
        request = request_of(*(sequence(CountingEngine()) for _ in range(4)))
        scheduler.submit(request)
        await request.wait()

    with_scheduler(test, max_sequences=2, max_waiting=2)


def test_the_time_limit_ends_what_runs_and_what_waits() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)
        running = request_of(sequence(CountingEngine(gate)), seconds=0.05)
        waiting = request_of(sequence(CountingEngine(gate)), seconds=0.05)
        scheduler.submit(running)
        scheduler.submit(waiting)
        await asyncio.sleep(0.1)
        gate.release(2)
        for request in (running, waiting):
            with pytest.raises(TimeLimit, match=r"0\.05 seconds"):
                await request.wait()
        assert waiting.sequences[0].started_at is None

    with_scheduler(test, max_sequences=1)


def test_a_cut_tells_everybody_and_takes_no_more() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)
        request = request_of(sequence(CountingEngine(gate)))
        scheduler.submit(request)
        scheduler.cut()
        with pytest.raises(ShuttingDown):
            await request.wait()
        with pytest.raises(ShuttingDown):
            scheduler.submit(request_of(sequence(CountingEngine())))
        gate.release(10)

    with_scheduler(test)


def test_what_is_done_is_not_taken_back() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        request = request_of(sequence(CountingEngine()))
        scheduler.submit(request)
        while not request.done:
            await asyncio.sleep(0.001)
        scheduler.cut()
        request.error = ShuttingDown()
        request.cancel()
        await request.wait()
        assert tokens(request.sequences[0]) == [1, 2, 3, 4, 5]

    with_scheduler(test)


class PoisonedEngine(CountingEngine):
    """Fails for whoever has come to state 2: the whole step, or only its row."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def step(self, feeds: Sequence[Feed], states: Sequence[int]) -> tuple[list[Step], Sequence[int]]:
        if self.how == "raises" and 2 in states:
            raise RuntimeError("broken")
        steps, following = super().step(feeds, states)
        return [s._replace(logprob=float("nan")) if s.token == 3 else s for s in steps], following


@pytest.mark.parametrize("how", ["raises", "overflows"])
def test_a_step_that_fails_ends_its_own_sequence_only(how: str) -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        engine = PoisonedEngine(how)
        poisoned, short = request_of(sequence(engine)), request_of(sequence(engine, max_tokens=2))
        scheduler.submit(poisoned)
        scheduler.submit(short)
        with pytest.raises(Internal):
            await poisoned.wait()
        await short.wait()
        assert tokens(short.sequences[0]) == [1, 2]

    with_scheduler(test)


def test_neighbours_of_a_failure_go_on() -> None:
    class Sick(CountingEngine):
        def step(self, feeds: Sequence[Feed], states: Sequence[int]) -> tuple[list[Step], Sequence[int]]:
            if any(feed.u < 0.3 for feed in feeds):  # of seed 3 the first uniform, of seed 1 none
                raise RuntimeError("broken")
            return super().step(feeds, states)

    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        engine = Sick()
        well, sick = (
            request_of(sequence(engine, seed=1, max_tokens=1)),
            request_of(sequence(engine, seed=3, max_tokens=1)),
        )
        assert well.sequences[0].feed()[0].u >= 0.3 > sick.sequences[0].feed()[0].u
        scheduler.submit(well)
        scheduler.submit(sick)
        with pytest.raises(Internal):
            await sick.wait()
        await well.wait()
        assert metrics.cancelled.labels("test")._value.get() == 0  # nobody went away

    with_scheduler(test)


def test_only_a_client_that_goes_away_counts_as_cancelled() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(1)
        request = request_of(sequence(CountingEngine(gate)))
        scheduler.submit(request)
        while not request.sequences[0].steps:
            await asyncio.sleep(0.001)
        request.error = Internal()
        request.cancel()  # as its request does whenever it ends
        gate.release(5)
        after = request_of(sequence(CountingEngine()))
        scheduler.submit(after)
        await after.wait()
        assert metrics.cancelled.labels("test")._value.get() == 0

    with_scheduler(test)


def test_closing_from_another_thread_wakes_who_waits() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        asyncio.get_running_loop().set_debug(True)  # call_soon from another thread then raises
        gate = threading.Semaphore(0)
        request = request_of(sequence(CountingEngine(gate)))
        scheduler.submit(request)
        waiting = asyncio.create_task(request.wait())
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(scheduler.close))
        with pytest.raises(ShuttingDown):
            await waiting
        gate.release(10)
        await closing

    with_scheduler(test)


@pytest.mark.parametrize(("count", "seconds", "least", "most"), [(1, 0.0, 20, 20), (1, 1e6, 2, 2), (4, 1e6, 8, 12)])
def test_a_stream_is_told_of_the_first_token_at_once_and_of_the_others_at_intervals(
    monkeypatch: pytest.MonkeyPatch, count: int, seconds: float, least: int, most: int
) -> None:
    monkeypatch.setattr("service.scheduler.SECONDS_PER_EVENT", seconds)

    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        told: list[Request] = []
        wake = scheduler._wake
        monkeypatch.setattr(scheduler, "_wake", lambda requests: (told.extend(requests), wake(requests)))
        gate = threading.Semaphore(0)
        engine = CountingEngine(gate)
        requests = [request_of(sequence(engine, max_tokens=20)) for _ in range(count)]
        for request in requests:
            scheduler.submit(request)
        gate.release(100)
        for request in requests:
            await request.wait()
            assert len(tokens(request.sequences[0])) == 20
        assert least <= len(told) <= most  # of many: the first, the last, and what came before the others had joined

    with_scheduler(test)


def test_a_long_prompt_goes_in_by_parts() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        engine = CountingEngine()
        request = request_of(sequence(engine, prompt=[1] * (2 * PREFILL_TOKENS + 10)))
        scheduler.submit(request)
        await request.wait()
        assert engine.prefilled == [PREFILL_TOKENS, PREFILL_TOKENS, 9]  # the last token is fed by the first step

    with_scheduler(test)


def test_a_stop_phrase_is_cut_off_and_its_start_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.scheduler.SECONDS_PER_EVENT", 0.0)  # each token is shown before the next is made

    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)
        request = request_of(
            sequence(
                CountingEngine(gate),
                max_tokens=9,
                stop=Stop([Phrase.of((3, 4, 5))], [], Wording(Vocabulary((EOS_WORD,)))),
            )
        )
        scheduler.submit(request)
        seen = []
        async for _ in request.changes():
            seen.append(request.sequences[0].visible)
            gate.release()
        assert max(seen) == 2 and request.sequences[0].visible == 2
        assert request.sequences[0].finish_reason == "stop" and request.sequences[0].new_tokens == 5

    with_scheduler(test)


def test_silence_is_told() -> None:
    async def test(scheduler: Scheduler, metrics: Metrics) -> None:
        gate = threading.Semaphore(0)
        request = request_of(sequence(CountingEngine(gate)))
        scheduler.submit(request)
        told = []
        async for changed in request.changes(silence=0.01):
            told.append(changed)
            if told[-3:] == [False] * 3:
                gate.release(10)
        assert told[:4] == [True, False, False, False] and told[-1]

    with_scheduler(test)
