"""Starts requests: finds or loads their model, encodes their prompts, and hands their sequences to the scheduler."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from rnnlm.language_model import MAX_SEED, PromptError, Sampling, check_seed
from service.engines import Engine
from service.errors import InvalidRequest, TimeLimit
from service.exchange import within
from service.metrics import Metrics
from service.registry import Entry, Registry
from service.request import Prompt, Request
from service.scheduler import Scheduler
from service.sequences import TokenSequence
from service.settings import Settings
from service.wording import parse_stop


class Generator:
    """Starts the requests of one service."""

    def __init__(
        self, settings: Settings, registry: Registry, schedulers: Mapping[str, Scheduler], metrics: Metrics
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._schedulers = schedulers
        self._metrics = metrics
        # Loading may be slow. In asyncio's own threads, requests that wait for a load would leave none for the others.
        self._loaders = {backend: ThreadPoolExecutor(1, f"load-{backend}") for backend in schedulers}

    async def start(self, request: Request) -> None:
        """Give a request its sequences and submit it.

        Raises the ServiceErrors of a request that cannot be served, before any token is made.
        """
        seconds = self._settings.request_seconds
        async with within(seconds, TimeLimit(f"the model was not loaded within {seconds:g} seconds: try again later")):
            if not await asyncio.to_thread(self._prepare, request, None):
                # The request uses the model that was loaded for it, even if the file has been replaced since.
                await asyncio.to_thread(self._prepare, request, await self._load(request))
        self._schedulers[request.backend].submit(request)
        self._metrics.prompt_tokens.labels(request.backend).inc(sum(len(prompt.ids) for prompt in request.prompts))

    def _prepare(self, request: Request, found: tuple[Entry, Engine] | None) -> bool:
        """Do everything that takes time. Returns False if a model must be loaded first; call again with that model."""
        found = found or self._registry.loaded_engine(request.backend, request.weights)
        if found is None:
            return False
        request.entry, engine = found
        request.prompts = _encode(engine, request.texts)
        self._check_size(request)
        request.begin(_sequences(request, engine), self._settings.request_seconds)
        return True

    async def _load(self, request: Request) -> tuple[Entry, Engine]:
        load = contextvars.copy_context().run  # as asyncio.to_thread does: the log names the request
        return await asyncio.get_running_loop().run_in_executor(
            self._loaders[request.backend], load, self._registry.engine, request.backend, request.weights
        )

    def _check_size(self, request: Request) -> None:
        # Each token is kept, with its alternatives, until the request is answered.
        scored = sum(len(prompt.ids) for prompt in request.prompts) if request.scored else 0
        tokens = request.n * (len(request.prompts) * request.max_tokens + scored)
        limit = self._settings.max_request_tokens
        if tokens > limit:
            raise InvalidRequest(
                f"the sequences of this request may make {tokens:,} tokens together, more than {limit:,}: "
                "ask for fewer tokens, choices or prompts"
            )


def _sequences(request: Request, engine: Engine) -> list[TokenSequence]:
    temperature = engine.model.default_temperature if request.temperature is None else request.temperature
    sampling = Sampling(temperature, request.top_k)
    seed = check_seed(request.seed)
    vocabulary = request.entry.vocabulary
    stop = parse_stop(request.stop, vocabulary)
    return [
        TokenSequence(
            engine,
            prompt.ids,
            max_tokens=request.max_tokens,
            sampling=sampling,
            seed=(seed + choice) % (MAX_SEED + 1),
            eos=None if request.ignore_eos else vocabulary.eos,
            stop=stop,
            top=request.top,
            scored=request.scored,
        )
        for prompt in request.prompts
        for choice in range(request.n)
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
    """Return the one text, the several or none that a body's field holds."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
