"""POST /generate/c, /generate/torch and /score."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest
from pydantic import BaseModel
from starlette.responses import Response

from rnnlm.language_model import perplexity
from service import errors, schemas, sse
from service.core import Service
from service.engines import Step
from service.request import Request
from service.routes.described import BODY, MODEL, problems
from service.wording import Wording

GENERATE_EXAMPLES = {
    "one": {"summary": "one prompt", "value": {"prompt": "The prime minister", "max_tokens": 20, "seed": 7}},
    "probabilities": {
        "summary": "with the five most probable words at each place",
        "value": {"prompt": "The prime minister", "max_tokens": 5, "top_logprobs": 5},
    },
    "several": {
        "summary": "several prompts, several sequences for each",
        "value": {"prompt": ["The prime", "The minister said"], "n": 2, "max_tokens": 10, "temperature": 0.8},
    },
    "stream": {
        "summary": "token by token",
        "value": {"prompt": "The prime minister", "max_tokens": 10, "stop": ["said"], "stream": True},
    },
}
SCORE_EXAMPLES = {"one": {"summary": "one text", "value": {"text": "The prime minister said", "top_logprobs": 2}}}
STREAM_EXAMPLE = 'data: {"index":0,"text":"said","token":{"id":5,"word":"said","logprob":-2.1}}\n\ndata: [DONE]\n\n'


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["generation"])
    silence = service.settings.comment_seconds

    async def written(reply: Callable[[Request], BaseModel], request: Request) -> Response:
        """Return the reply to a finished request."""
        return await asyncio.get_running_loop().run_in_executor(service.writers, lambda: _json(reply(request)))

    @routes.post(
        "/generate/{backend}",
        summary="Continue prompts",
        response_model=schemas.GenerateResponse,
        responses={
            200: {"content": {"text/event-stream": {"example": STREAM_EXAMPLE}}},
            **problems(401, *BODY, *MODEL),
        },
    )
    async def generate(
        backend: schemas.Backend,
        body: Annotated[service.bodies.generate, Body(openapi_examples=GENERATE_EXAMPLES)],
        http: HttpRequest,
    ) -> Any:
        """Continue one prompt or several. `c` samples from the model's distribution and `torch` takes the most probable
        word, unless `temperature` says otherwise.

        With `stream`, each event is a `TokenEvent`; then come a `GenerateEnd` and `[DONE]`. An error on the way is an
        event named `error` whose data is a problem.
        """
        request = Request(
            backend=backend,
            weights=body.weights,
            inputs=body.prompt,
            n=body.n,
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=body.logit_bias,
            seed=body.seed,
            stop=body.stop,
            top=body.top_logprobs,
            ignore_eos=body.ignore_eos,
            stream=body.stream,
        )
        await service.generator.start(request)
        if body.stream:
            return sse.EventStream(
                request,
                news=_Events(request).news,
                end=lambda: sse.event(_end(request).model_dump_json(exclude_unset=True)) + sse.DONE,
                silence=silence,
                on_error=lambda error: sse.event(json.dumps(errors.content(error, http.scope)), name="error"),
            )
        async with sse.cancelling(request, http.receive):
            await request.wait()
        return await written(_reply, request)

    @routes.post(
        "/score",
        summary="Score a text",
        response_model=schemas.ScoreResponse,
        responses=problems(401, *BODY, *MODEL),
    )
    async def score(
        body: Annotated[service.bodies.score, Body(openapi_examples=SCORE_EXAMPLES)], http: HttpRequest
    ) -> Any:
        """The log-probability of each word of a text, given all before it, and the text's perplexity."""
        request = Request(
            backend=body.backend,
            weights=body.weights,
            inputs=(body.text,),
            input_field="text",
            max_tokens=0,
            top=body.top_logprobs,
            scored=True,
        )
        await service.generator.start(request)
        async with sse.cancelling(request, http.receive):
            await request.wait()
        return await written(_score, request)

    return routes


def _json(reply: BaseModel) -> Response:
    return Response(reply.model_dump_json(exclude_unset=True), media_type="application/json")


_written = json.JSONEncoder().encode  # json.dumps looks at its options first, which takes longer


class _Events:
    """A stream's events, each a `TokenEvent`.

    They are formatted by hand: a model object for each would take longer than a token in a batch.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._wordings = [Wording(request.entry.vocabulary) for _ in request.sequences]

    def news(self) -> bytes:
        return "".join(
            [self._event(index, step) for index, steps in self._request.new_steps() for step in steps]
        ).encode()

    def _event(self, index: int, step: Step) -> str:
        text = _written(self._wordings[index].add(step.token))
        return f'data: {{"index":{index},"text":{text},"token":{self._token(step)}}}\n\n'

    def _token(self, step: Step) -> str:
        words = self._request.entry.vocabulary.words

        def word(token: int, logprob: float) -> str:
            return f'{{"id":{token},"word":{_written(words[token])},"logprob":{logprob!r}'

        token = word(step.token, step.logprob)
        if not self._request.top:
            return token + "}"
        top = ",".join([word(token, logprob) + "}" for token, logprob in step.top])
        return f'{token},"top":[{top}]}}'


def _choice_ends(request: Request) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "prompt_index": index // request.n,
            "finish_reason": sequence.finish_reason,
            "seed": sequence.seed,
            "unknown_words": request.prompts[index // request.n].unknown,
        }
        for index, sequence in enumerate(request.sequences)
    ]


def _end(request: Request) -> schemas.GenerateEnd:
    return schemas.GenerateEnd(
        backend=request.backend,
        weights=request.weights_used(),
        prompts=request.read_prompts(),
        choices=[schemas.ChoiceEnd(**end) for end in _choice_ends(request)],
        usage=request.usage(),
        timings=request.timings(),
    )


def _reply(request: Request) -> schemas.GenerateResponse:
    choices = []
    for end, sequence in zip(_choice_ends(request), request.sequences, strict=True):
        steps = sequence.steps[: sequence.visible]
        wording = Wording(request.entry.vocabulary)
        text = "".join(wording.add(step.token) for step in steps)
        choices.append(schemas.Choice(**end, text=text, tokens=[request.token(step) for step in steps]))
    return schemas.GenerateResponse(
        backend=request.backend,
        weights=request.weights_used(),
        prompts=request.read_prompts(),
        choices=choices,
        usage=request.usage(),
        timings=request.timings(),
    )


def _score(request: Request) -> schemas.ScoreResponse:
    steps = request.sequences[0].steps
    loss = -sum(step.logprob for step in steps) / len(steps)
    return schemas.ScoreResponse(
        backend=request.backend,
        weights=request.weights_used(),
        tokens=_scored(request),
        loss=loss,
        perplexity=perplexity(loss),
        unknown_words=request.prompts[0].unknown,
        timings=request.timings(),
    )


def _scored(request: Request) -> list[schemas.ScoredToken]:
    """Pair the pieces of the text with the steps of those that the model read."""
    steps = iter(request.sequences[0].steps)
    tokens = []
    for span in request.prompts[0].spans:
        if span.id is None:
            tokens.append(schemas.ScoredToken(**span._asdict(), logprob=None))
            continue
        step = next(steps)
        top = {"top": request.alternatives(step)} if request.top else {}
        tokens.append(schemas.ScoredToken(**span._asdict(), logprob=step.logprob, **top))
    return tokens
