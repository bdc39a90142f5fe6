"""A request's work from its body to its tokens, for both protocols."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from rnnlm.language_model import MAX_SEED, PromptError, Sampling, check_seed
from service import schemas
from service.engines import Engine, Step
from service.errors import InvalidRequest, TimeLimit
from service.limits import within
from service.metrics import Metrics
from service.registry import Entry, Registry
from service.scheduler import Scheduler
from service.sequences import Run, TokenSequence
from service.settings import Settings
from service.wording import parse_stop


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for. scored: tell the log-probabilities of the prompt's own tokens, too."""

    backend: str
    weights: str | None
    prompts: tuple[str, ...]
    n: int = 1
    max_tokens: int
    temperature: float | None = None
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int = 0
    ignore_eos: bool = False
    scored: bool = False
    stream: bool = False


class Prompt(NamedTuple):
    ids: list[int]
    unknown: tuple[str, ...]


class Work:
    """An order that is being carried out: sequence i is choice i % n of prompt i // n."""

    def __init__(self, order: Order, entry: Entry, prompts: list[Prompt], run: Run) -> None:
        self.order = order
        self.entry = entry
        self.prompts = prompts
        self.run = run
        self._told = [0] * len(run.sequences)

    def news(self) -> list[tuple[int, list[Step]]]:
        """(sequence, steps that can be shown and were not told of before)."""
        news = []
        for index, sequence in enumerate(self.run.sequences):
            told, visible = self._told[index], sequence.visible
            if visible > told:
                news.append((index, sequence.steps[told:visible]))
                self._told[index] = visible
        return news

    def token(self, step: Step) -> schemas.Token:
        words = self.entry.vocabulary.words
        top = [schemas.Alternative(id=i, word=words[i], logprob=logprob) for i, logprob in step.top]
        return schemas.Token(
            id=step.token, word=words[step.token], logprob=step.logprob, top=top if self.order.top else None
        )

    @property
    def weights(self) -> schemas.WeightsUsed:
        return schemas.WeightsUsed(name=self.entry.name, sha256=self.entry.sha256)

    def usage(self) -> schemas.Usage:
        prompt = sum(len(prompt.ids) for prompt in self.prompts)
        completion = sum(sequence.new_tokens for sequence in self.run.sequences)
        return schemas.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def timings(self) -> schemas.Timings:
        """Of work that is done."""
        sequences, created = self.run.sequences, self.run.created_at
        started = min(sequence.started_at or created for sequence in sequences)
        first = min(sequence.first_at or created for sequence in sequences)
        last = max(sequence.last_at or created for sequence in sequences)
        steps = sum(len(sequence.steps) for sequence in sequences)
        return schemas.Timings(
            queue_ms=_ms(started - created),
            first_token_ms=_ms(first - created),
            total_ms=_ms(last - created),
            tokens_per_second=round(steps / max(last - started, 1e-9), 1),
        )


class Generator:
    """Takes orders in."""

    def __init__(
        self, settings: Settings, registry: Registry, schedulers: Mapping[str, Scheduler], metrics: Metrics
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._schedulers = schedulers
        self._metrics = metrics
        # Loads may be slow. In asyncio's own threads, those who wait for one would leave none to anybody else.
        self._loaders = {backend: ThreadPoolExecutor(1, f"load-{backend}") for backend in schedulers}

    async def start(self, order: Order) -> Work:
        """Raises the ServiceErrors of a request that cannot be served, before any token is made."""
        arrived = time.monotonic()
        seconds = self._settings.request_seconds
        async with within(seconds, TimeLimit(f"the model was not loaded within {seconds:g} seconds: try again later")):
            prepared = await asyncio.to_thread(self._prepare, order, None)
            if prepared is None:
                # What was loaded is what the request came for, though it were replaced again since.
                prepared = await asyncio.to_thread(self._prepare, order, await self._load(order))
        assert prepared is not None
        entry, prompts, sequences = prepared
        run = Run(sequences, created_at=arrived, seconds=seconds, every_token=order.stream)
        self._schedulers[order.backend].submit(run)
        self._metrics.prompt_tokens.labels(order.backend).inc(sum(len(prompt.ids) for prompt in prompts))
        return Work(order, entry, prompts, run)

    def _prepare(
        self, order: Order, found: tuple[Entry, Engine] | None
    ) -> tuple[Entry, list[Prompt], list[TokenSequence]] | None:
        """All that takes time; None where a model must be loaded first, and then `found`."""
        found = found or self._registry.loaded_engine(order.backend, order.weights)
        if found is None:
            return None
        entry, engine = found
        prompts = _encode(engine, order.prompts)
        self._check_size(order, prompts)
        return entry, prompts, self._sequences(order, entry, engine, prompts)

    async def _load(self, order: Order) -> tuple[Entry, Engine]:
        load = contextvars.copy_context().run  # as asyncio.to_thread does: the log names the request
        return await asyncio.get_running_loop().run_in_executor(
            self._loaders[order.backend], load, self._registry.engine, order.backend, order.weights
        )

    def _check_size(self, order: Order, prompts: list[Prompt]) -> None:
        # Each token is kept, with its alternatives, until the request is answered.
        scored = sum(len(prompt.ids) for prompt in prompts) if order.scored else 0
        tokens = order.n * (len(prompts) * order.max_tokens + scored)
        limit = self._settings.max_request_tokens
        if tokens > limit:
            raise InvalidRequest(
                f"the sequences of this request may make {tokens:,} tokens together, more than {limit:,}: "
                "ask for fewer tokens, choices or prompts"
            )

    def _sequences(self, order: Order, entry: Entry, engine: Engine, prompts: list[Prompt]) -> list[TokenSequence]:
        temperature = engine.model.default_temperature if order.temperature is None else order.temperature
        sampling = Sampling(temperature, order.top_k)
        seed = check_seed(order.seed)
        stop = parse_stop(order.stop, entry.vocabulary)
        return [
            TokenSequence(
                engine,
                prompt.ids,
                max_tokens=order.max_tokens,
                sampling=sampling,
                seed=(seed + choice) % (MAX_SEED + 1),
                eos=None if order.ignore_eos else entry.vocabulary.eos,
                stop=stop,
                top=order.top,
                scored=order.scored,
            )
            for prompt in prompts
            for choice in range(order.n)
        ]


def _encode(engine: Engine, texts: tuple[str, ...]) -> list[Prompt]:
    prompts = []
    for index, text in enumerate(texts):
        try:
            prompts.append(Prompt(*engine.model.encode(text)))
        except PromptError as error:
            where = f"prompt {index}: " if len(texts) > 1 else ""
            raise InvalidRequest(f"{where}{error}") from error
    return prompts


def as_tuple(value: str | list[str] | None) -> tuple[str, ...]:
    """One text, several or none, as the bodies have them."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
