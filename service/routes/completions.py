"""OpenAI's protocol: POST /v1/completions, GET /v1/models.

https://platform.openai.com/docs/api-reference/completions; errors are in OpenAI's shape (service/errors.py).
"""

import asyncio
import contextlib
import json
import re
import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse

from service import errors, sse
from service.core import Service
from service.engines import Step
from service.errors import InvalidRequest, WeightsNotFound
from service.folder import Summary
from service.generation import as_tuple
from service.request import Request
from service.routes.described import BODY, MODEL, openai_errors
from service.schemas import CompletionRequest
from service.wording import Wording

EXAMPLES = {
    "one": {
        "summary": "one prompt",
        "value": {"model": "c/demo", "prompt": "The prime minister", "max_tokens": 20, "seed": 7},
    },
    "scored": {
        "summary": "score a prompt, write nothing",
        "value": {"model": "c/demo", "prompt": "The prime minister", "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}

_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|[\r\n]")  # data/text.py's
_LETTERS = re.compile("[A-Za-z]+")  # an unknown word

_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI's protocol"])

    @routes.post(
        "/completions",
        responses={
            200: {"content": {"text/event-stream": {"example": "data: [DONE]\n\n"}}},
            **openai_errors(401, *BODY, *MODEL),
        },
    )
    async def completions(
        body: Annotated[service.bodies.completion, Body(openapi_examples=EXAMPLES)], http: HttpRequest
    ) -> Any:
        """Continue a prompt, as OpenAI's `completions.create` asks for it."""
        request = _request(body, service.settings.max_tokens)
        await service.generator.start(request)
        completion = _Completion(body, request)
        if body.stream:
            return sse.EventStream(
                request,
                news=completion.news,
                end=completion.end,
                silence=service.settings.comment_seconds,
                on_error=lambda error: sse.event(json.dumps(errors.content(error, http.scope))),
            )
        async with sse.cancelling(request, http.receive):
            await request.wait()
        return await asyncio.to_thread(lambda: JSONResponse(completion.reply()))  # thousands of tokens take long

    @routes.get("/models", responses=openai_errors(401, 503))
    def models() -> Any:
        """Each weights file under each back end."""
        summaries = (version.summary() for version in service.registry.folder.versions())
        usable = [summary for summary in summaries if not summary.problem]
        data = [_model(backend, summary) for summary in usable for backend in service.settings.served_backends]
        return {"object": "list", "data": data}

    @routes.get("/models/{model:path}", responses=openai_errors(401, 404, 503))
    def model(model: str) -> Any:
        """One of them."""
        backend, name = _split(model)
        with contextlib.suppress(WeightsNotFound, InvalidRequest):
            summary = service.registry.folder.version(name).summary()
            if not summary.problem and backend in service.settings.served_backends:
                return _model(backend, summary)
        raise _no_such_model()

    return routes


def _model(backend: str, summary: Summary) -> dict[str, Any]:
    return {
        "id": f"{backend}/{summary.name}",
        "object": "model",
        "created": int(summary.modified),
        "owned_by": "local",
    }


def _no_such_model() -> WeightsNotFound:
    return WeightsNotFound("there is no such model: GET /v1/models lists them, such as c/demo and torch/demo")


def _split(model: str) -> tuple[str, str]:
    backend, slash, name = model.partition("/")
    if not slash or backend not in ("c", "torch"):
        raise _no_such_model()
    return backend, name


def _request(body: CompletionRequest, most: int) -> Request:
    n = body.n or 1
    max_tokens = min(16, most) if body.max_tokens is None else body.max_tokens  # OpenAI's default
    if max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens may be 0 only together with echo")
    if body.best_of not in (None, n):
        raise InvalidRequest(f"best_of must be equal to n, {n}, or left out, got {body.best_of}")
    backend, name = _split(body.model)
    return Request(
        backend=backend,
        weights=name,
        texts=as_tuple(body.prompt),
        n=n,
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        seed=body.seed,
        stop=as_tuple(body.stop),
        top=body.logprobs or 0,
        ignore_eos=body.ignore_eos,
        scored=bool(body.echo) and (body.logprobs is not None or max_tokens == 0),
        stream=bool(body.stream),
    )


class _Text:
    """The text and the log-probabilities of one choice as they grow. With echo it starts with the prompt.

    Its tokens make up the text, those of a scored prompt included: what the model does not see of the prompt
    (punctuation, a word that the vocabulary lacks) goes with the token that follows, at the end with the last one.
    """

    def __init__(self, request: Request, index: int, echo: bool) -> None:
        sequence = request.sequences[index]
        prompt = request.texts[index // request.n] if echo else ""
        self._vocabulary = request.entry.vocabulary
        self._prompt = prompt
        self._prompt_steps = sequence.prompt_steps
        self._prompt_wording = Wording(self._vocabulary)
        self._wording = Wording(self._vocabulary, "" if not prompt or prompt[-1].isspace() else " ")
        self._found = 0  # where in the prompt its next token begins
        self._length = 0  # of the text told so far
        self._taken = 0

    def add(self, steps: list[Step]) -> tuple[str, dict[str, Any]]:
        """(text, logprobs) of the next steps; the first call brings the prompt with it."""
        told = self._length
        text = "" if told else self._prompt
        logprobs: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            self._taken += 1
            scored = self._taken <= self._prompt_steps
            wording = self._prompt_wording if scored else self._wording
            others = [wording.piece(token) for token, _ in step.top]
            offset = self._found if scored else told + len(text)
            piece = wording.add(step.token)
            if scored:
                piece = self._next_of_prompt(step.token)
            else:
                text += piece
            top = {
                piece if token == step.token else other: value
                for other, (token, value) in zip(others, step.top, strict=True)
            }
            logprobs["tokens"].append(piece)
            logprobs["token_logprobs"].append(step.logprob)
            logprobs["top_logprobs"].append(top or None)
            logprobs["text_offset"].append(offset)
        self._length += len(text)
        return text, logprobs

    def _next_of_prompt(self, token: int) -> str:
        """The prompt from where its last token ended to where this one does.

        That is the first place that it may be at. So it never lies behind the real one, and the next is found, too.
        """
        start = self._found
        if self._taken == self._prompt_steps:
            self._found = len(self._prompt)
        elif token in (self._vocabulary.eos, self._vocabulary.unk):
            found = (_SENTENCE_END if token == self._vocabulary.eos else _LETTERS).search(self._prompt, start)
            assert found is not None
            self._found = found.end()
        else:
            word = self._vocabulary.words[token]
            self._found = self._prompt.index(word, start) + len(word)
        return self._prompt[start : self._found]


class _Completion:
    """A completion object, whole or in chunks."""

    def __init__(self, body: CompletionRequest, request: Request) -> None:
        self._body = body
        self._request = request
        self._frame = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": request.entry.sha256[:16],
        }
        self._opening = json.dumps(self._frame)[:-1]  # the same for each event
        self._texts = [_Text(request, index, bool(body.echo)) for index in range(len(request.sequences))]

    def reply(self) -> dict[str, Any]:
        choices = []
        for index, sequence in enumerate(self._request.sequences):
            choices.append(self._choice(index, sequence.steps[: sequence.visible], sequence.finish_reason))
        return {**self._frame, "choices": choices, "usage": self._request.usage().model_dump()}

    def news(self) -> bytes:
        """The events of what was not told yet, one for each token."""
        return b"".join(
            [
                self._event(self._choice(index, [step], None))
                for index, steps in self._request.new_steps()
                for step in steps
            ]
        )

    def end(self) -> bytes:
        """The last events: why each choice ended, and the usage if that was asked for."""
        sequences = enumerate(self._request.sequences)
        end = [self._event(self._choice(index, [], sequence.finish_reason)) for index, sequence in sequences]
        if self._body.stream_options and self._body.stream_options.include_usage:
            end.append(
                sse.event(json.dumps({**self._frame, "choices": [], "usage": self._request.usage().model_dump()}))
            )
        return b"".join(end) + sse.DONE

    def _choice(self, index: int, steps: list[Step], reason: str | None) -> dict[str, Any]:
        text, logprobs = self._texts[index].add(steps)
        return {
            "index": index,
            "text": text,
            "logprobs": None if self._body.logprobs is None else logprobs,
            "finish_reason": _FINISH[reason] if reason else None,
        }

    def _event(self, choice: dict[str, Any]) -> bytes:
        return sse.event(f'{self._opening}, "choices": [{json.dumps(choice)}]}}')
