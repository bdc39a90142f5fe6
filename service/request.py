"""One HTTP request in progress: what it asks for, its sequences, and the wait for them.

The event loop makes a `Request`, awaits it and may cancel it; the scheduler's thread writes to its sequences. Lists
only grow and flags are only set, so neither side needs a lock to read what the other wrote.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rnnlm.data.text import Span, tokens_of
from rnnlm.sampling import Sampling
from service import schemas
from service.engines import Step
from service.errors import ClientGone, ServiceError
from service.sequences import TokenSequence
from service.wording import Wording, gap_after

if TYPE_CHECKING:
    from service.registry import Entry


class Prompt(NamedTuple):
    """A prompt as the model reads it.

    text: the caller's, or the words of the ids that the caller sent.   ids: with <EOS> in front.
    spans: everything in the text; empty if the caller sent ids.
    """

    text: str
    ids: list[int]
    spans: list[Span]

    @property
    def unknown(self) -> list[str]:
        return tokens_of(self.spans)[1]


@dataclass(eq=False, kw_only=True)
class Request:
    """A route makes it from a body, `Generator.start` gives it sequences: number i is choice i % n of prompt i // n.

    inputs: each a text, or token ids without <EOS> in front.   input_field: the body's name for them.
    scored: report the log-probabilities of the prompt's own tokens, too.   stream: wake the reader for new tokens, not
    only at the end.   spaced: a text begins with what separates it from its prompt.   stop_in_text: look for a stop
    phrase that the model cannot generate in the text as written, instead of refusing it.
    created_at: on the clock of time.monotonic.   seconds: the time limit, from then on.   deadline: when it is over.
    """

    backend: str
    weights: str | None = None
    inputs: tuple[str | tuple[int, ...], ...]
    input_field: str = "prompt"
    n: int = 1
    max_tokens: int
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int = 0
    ignore_eos: bool = False
    scored: bool = False
    stream: bool = False
    spaced: bool = False
    stop_in_text: bool = False

    def __post_init__(self) -> None:
        self.entry: Entry  # this and the next four are set by Generator.start
        self.prompts: Sequence[Prompt] = ()
        self.sequences: tuple[TokenSequence, ...] = ()
        self.seconds = 0.0
        self.deadline = 0.0
        self.error: ServiceError | None = None
        self.cancelled = False
        self.created_at = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self._shown: list[int] = []  # steps of each sequence that `new_steps` has returned
        self._notified = False
        self._waiter: asyncio.Future[None] | None = None

    def sampling(self, default_temperature: float) -> Sampling:
        """Return how tokens are drawn.   default_temperature: if the request has none."""
        return Sampling(
            default_temperature if self.temperature is None else self.temperature,
            self.top_k,
            self.top_p,
            self.presence_penalty,
            self.frequency_penalty,
            self.logit_bias,
        )

    def begin(self, sequences: Sequence[TokenSequence], seconds: float) -> None:
        """Set the sequences, before the scheduler gets them."""
        self.sequences = tuple(sequences)
        self.seconds = seconds
        self.deadline = self.created_at + seconds
        self._shown = [0] * len(self.sequences)

    # ---- Waiting ----------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return all(sequence.finish_reason for sequence in self.sequences)

    def cancel(self) -> None:
        """Stop the work before its next token. Does nothing to a request that is finished."""
        if not (self.error or self.done):
            self.cancelled = True
            self.notify()

    def notify(self) -> None:
        """Wake the reader: there may be more to read. Call this on the event loop."""
        self._notified = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for every sequence to finish. Raises the request's error, or ClientGone if it was cancelled."""
        async for _ in self.changes():
            pass

    async def changes(self, silence: float | None = None) -> AsyncIterator[bool]:
        """Yield True when there may be more to read, the last time when everything is there; yield False after
        `silence` seconds without news. Raises as `wait` does."""
        alarm = _Alarm(self.loop, silence, self._wake) if silence is not None else None
        try:
            while True:
                self._notified = False
                done = self.done  # read before the reader reads, so the reader finds at least this much
                if self.cancelled and not done:
                    raise ClientGone
                if self.error and not done:
                    raise self.error
                yield True
                if done:
                    return
                if alarm:
                    alarm.put_off()
                while not self._notified:
                    self._waiter = self.loop.create_future()
                    await self._waiter
                    if not self._notified:
                        yield False
        finally:
            if alarm:
                alarm.stop()

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def new_steps(self) -> list[tuple[int, list[Step]]]:
        """Return (sequence, its steps that can be shown and were not returned before)."""
        found = []
        for index, sequence in enumerate(self.sequences):
            shown, visible = self._shown[index], sequence.visible
            if visible > shown:
                found.append((index, sequence.steps[shown:visible]))
                self._shown[index] = visible
        return found

    def token(self, step: Step) -> schemas.Token:
        top = {"top": self.alternatives(step)} if self.top else {}
        word = self.entry.vocabulary.words[step.token]
        return schemas.Token(id=step.token, word=word, logprob=step.logprob, **top)

    def alternatives(self, step: Step) -> list[schemas.Alternative]:
        words = self.entry.vocabulary.words
        return [schemas.Alternative(id=i, word=words[i], logprob=logprob) for i, logprob in step.top]

    def read_prompts(self) -> list[schemas.ReadPrompt]:
        """Return what the model read of each prompt, for the reply."""
        return [
            schemas.ReadPrompt(tokens=[schemas.ReadToken(**span._asdict()) for span in prompt.spans])
            for prompt in self.prompts
        ]

    def wording(self, prompt: Prompt) -> Wording:
        """Return the wording of a sequence that continues `prompt`."""
        return Wording(self.entry.vocabulary, gap_after(prompt.text) if self.spaced else "")

    def weights_used(self) -> schemas.WeightsUsed:
        return schemas.WeightsUsed(name=self.entry.name, sha256=self.entry.sha256)

    def usage(self) -> schemas.Usage:
        prompt = sum(len(prompt.ids) for prompt in self.prompts)
        completion = sum(sequence.new_tokens for sequence in self.sequences)
        return schemas.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def timings(self) -> schemas.Timings:
        """Return the times of a finished request."""
        created = self.created_at
        started = min(sequence.started_at or created for sequence in self.sequences)
        first = min(sequence.first_at or created for sequence in self.sequences)
        last = max(sequence.last_at or created for sequence in self.sequences)
        steps = sum(len(sequence.steps) for sequence in self.sequences)
        return schemas.Timings(
            queue_ms=_ms(started - created),
            first_token_ms=_ms(first - created),
            total_ms=_ms(last - created),
            tokens_per_second=round(steps / max(last - started, 1e-9), 1),
        )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


class _Alarm:
    """Rings each time that so many seconds have passed without `put_off`.

    `put_off` is called once a token, so it must cost nothing: it leaves the event loop's timer as it is, and the timer
    looks at the clock when it fires.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._ring = ring
        self._due = loop.time() + seconds
        self._timer = loop.call_at(self._due, self._check)

    def put_off(self) -> None:
        self._due = self._loop.time() + self._seconds

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        if self._loop.time() >= self._due:
            self._ring()
            self.put_off()
        self._timer = self._loop.call_at(self._due, self._check)
