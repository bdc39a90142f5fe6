"""What the tests of the scheduler and of the engines share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from serving import GUARD_SECONDS

from rnnlm.language_model import Sampling
from service.engines import Engine
from service.metrics import Metrics
from service.request import Request
from service.scheduler import Scheduler
from service.sequences import TokenSequence

EOS = 0


def sequence(engine: Engine, *, prompt: Sequence[int] = (EOS,), max_tokens: int = 5, **options: Any) -> TokenSequence:
    return TokenSequence(
        engine, prompt, max_tokens=max_tokens, **{"sampling": Sampling(), "seed": 1, "eos": EOS, **options}
    )


def request_of(*sequences: TokenSequence, seconds: float = GUARD_SECONDS, stream: bool = True) -> Request:
    request = Request(backend="test", inputs=(), max_tokens=0, stream=stream)
    request.begin(sequences, seconds)
    return request


def with_scheduler(
    test: Callable[[Scheduler, Metrics], Coroutine[Any, Any, None]], max_sequences: int = 4, max_waiting: int = 4
) -> None:
    metrics = Metrics()
    scheduler = Scheduler(
        name="test", max_sequences=max_sequences, max_waiting=max_waiting, metrics=metrics.backend("test")
    )
    scheduler.start()

    async def body() -> None:
        try:
            async with asyncio.timeout(GUARD_SECONDS):
                await test(scheduler, metrics)
        finally:
            await asyncio.to_thread(scheduler.close)

    asyncio.run(body())
