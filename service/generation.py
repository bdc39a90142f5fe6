"""Starts requests: finds or loads their model, encodes their prompts, and hands their sequences to the scheduler."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rnnlm.data.text import tokens_of
from rnnlm.language_model import MAX_SEED, PromptError, check_seed
from service.engines import Engine
from service.errors import InvalidRequest, TimeLimit
from service.exchange import within
from service.metrics import Metrics
from service.registry import Entry, Registry
from service.request import Prompt, Request
from service.scheduler import Scheduler
from service.sequences import TokenSequence
from service.settings import Settings
from service.validation import nth_item, shown
from service.wording import Phrase, Stop, read_stop

T = TypeVar("T")

ALTERNATIVES = 8  # of a token, in a request with as many tokens as it may have; with fewer tokens, more


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
        await self.with_model(request.backend, request.weights, lambda *model: self._prepare(request, *model))
        self._schedulers[request.backend].submit(request)
        self._metrics.prompt_tokens.labels(request.backend).inc(sum(len(prompt.ids) for prompt in request.prompts))

    async def with_model(self, backend: str, weights: str | None, work: Callable[[Entry, Engine], T]) -> T:
        """Run `work` on a model in a thread, loading the model first if need be. Raises as Registry.engine does."""
        seconds = self._settings.request_seconds
        async with within(seconds, TimeLimit(f"the model was not loaded within {seconds:g} seconds: try again later")):
            done = await asyncio.to_thread(self._with_loaded, backend, weights, work)
            if done is None:
                # This uses the model that was loaded for it, even if the file has been replaced since.
                load = contextvars.copy_context().run  # as asyncio.to_thread does: the log names the request
                model = await asyncio.get_running_loop().run_in_executor(
                    self._loaders[backend], load, self._registry.engine, backend, weights
                )
                done = (await asyncio.to_thread(work, *model),)
        return done[0]

    def _with_loaded(self, backend: str, weights: str | None, work: Callable[[Entry, Engine], T]) -> tuple[T] | None:
        """Run `work` if the model is loaded, and return its result as a tuple; None if it is not loaded."""
        model = self._registry.loaded_engine(backend, weights)
        return (work(*model),) if model else None

    def _prepare(self, request: Request, entry: Entry, engine: Engine) -> None:
        """Do everything that takes time before a request can be submitted."""
        request.entry = entry
        request.prompts = read_prompts(engine, request.inputs, request.input_field)
        self._check_size(request)
        request.begin(_sequences(request, engine), self._settings.request_seconds)

    def _check_size(self, request: Request) -> None:
        sequences, limit = request.n * len(request.prompts), self._settings.max_sequences + self._settings.max_waiting
        if sequences > limit:
            raise InvalidRequest(
                f"this request asks for {sequences:,} sequences, more than the {limit:,} that this service holds: "
                "ask for fewer prompts or choices"
            )
        # Each token is kept, with its alternatives, until the request is answered.
        scored = sum(len(prompt.ids) for prompt in request.prompts) if request.scored else 0
        tokens = request.n * (len(request.prompts) * request.max_tokens + scored)
        limit = self._settings.max_request_tokens
        if tokens > limit and request.max_tokens == 0:  # only scored
            raise InvalidRequest.of(
                request.input_field, f"must have at most {limit:,} tokens, got {tokens:,}: score a shorter text"
            )
        if tokens > limit:
            raise InvalidRequest(
                f"the sequences of this request may have {tokens:,} tokens together, more than {limit:,}: "
                "ask for fewer tokens, choices or prompts"
            )
        alternatives, limit = tokens * request.top, ALTERNATIVES * limit
        if alternatives > limit:
            raise InvalidRequest(
                f"the tokens of this request may have {alternatives:,} alternatives together, more than {limit:,}: "
                "ask for fewer tokens, or fewer alternatives for each"
            )


def _sequences(request: Request, engine: Engine) -> list[TokenSequence]:
    sampling = request.sampling(engine.model.default_temperature)
    first = check_seed(request.seed)
    # A drawn seed differs from sequence to sequence; a given one, for the caller's sake, only from choice to choice.
    count = request.n if request.seed is not None else request.n * len(request.prompts)
    vocabulary = request.entry.vocabulary
    if outside := [token for token in sampling.logit_bias if token >= len(vocabulary)]:
        raise InvalidRequest.of(
            "logit_bias", f"must have token ids from 0 to {len(vocabulary) - 1:,}, got {outside[0]:,}"
        )
    make_stop = _stop_maker(request)
    return [
        TokenSequence(
            engine,
            prompt.ids,
            max_tokens=request.max_tokens,
            sampling=sampling,
            seed=(first + index % count) % (MAX_SEED + 1),
            eos=None if request.ignore_eos else vocabulary.eos,
            stop=make_stop(prompt),
            top=request.top,
            scored=request.scored,
        )
        for index, prompt in enumerate(prompt for prompt in request.prompts for _ in range(request.n))
    ]


def _stop_maker(request: Request) -> Callable[[Prompt], Stop | None]:
    """Return what makes the stop phrases of a sequence that continues a prompt. Raises InvalidRequest."""
    vocabulary = request.entry.vocabulary
    phrases = [read_stop(text, vocabulary) for text in request.stop]
    never = next((phrase for phrase in phrases if phrase.problem), None)
    if never and not request.stop_in_text:
        raise InvalidRequest.of("stop", f"can never match {never.text!r}: {never.problem}")
    of_tokens = [Phrase.of(phrase.ids) for phrase in phrases if phrase.ids]
    of_text = [Phrase.of(phrase.text) for phrase in phrases if not phrase.ids]

    def make(prompt: Prompt) -> Stop | None:
        return Stop(of_tokens, of_text, request.wording(prompt)) if phrases else None

    return make


def read_prompts(
    engine: Engine, inputs: Sequence[str | tuple[int, ...]], field: str, *, instead: str = "send texts instead"
) -> list[Prompt]:
    """Read the prompts of a body's field.   instead: the remedy for the token ids of another model's tokenizer.

    Raises InvalidRequest.
    """
    what = f"the {field}" if field in ("prompt", "input") else "the text"
    prompts = []
    for index, given in enumerate(inputs):
        try:
            is_text = isinstance(given, str)
            prompts.append(_read_text(given, what, engine) if is_text else _read_ids(given, engine, instead))
        except PromptError as error:
            place = f"{nth_item(index, len(inputs))} " if len(inputs) > 1 else ""
            raise InvalidRequest.of(field, f"{place}cannot be used: {error}") from error
    return prompts


def _read_text(text: str, what: str, engine: Engine) -> Prompt:
    spans = engine.model.read(text, what)
    return Prompt(text, [engine.model.vocabulary.eos, *tokens_of(spans)[0]], spans)


def _read_ids(ids: tuple[int, ...], engine: Engine, instead: str) -> Prompt:
    vocabulary = engine.model.vocabulary
    if outside := [token for token in ids if not 0 <= token < len(vocabulary)]:
        raise PromptError(
            f"the token ids must be those of this model, from 0 to {len(vocabulary) - 1:,}, "
            f"got {shown(str(outside[0]))}: {instead}"
        )
    if ids[0] == vocabulary.eos:
        ids = ids[1:]
    return Prompt(vocabulary.decode(ids), [vocabulary.eos, *ids], [])
