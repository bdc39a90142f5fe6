"""POST /inspect and /candidates, and GET /weights/{name}/spectrum, /units/{unit} and
/neighbours: a look inside a model."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, create_model
from pydantic import Field as PydanticField
from starlette.responses import Response

from rnnlm.inspection import MAX_HIDDEN, MAX_WORDS, TOP, InspectionError
from rnnlm.language_model import LanguageModel, PromptError
from service import inspections
from service.core import Service
from service.errors import InvalidRequest, TimeLimit
from service.exchange import unless_gone, within
from service.routes.described import BODY, MODEL, problems
from service.schemas import Backend, WeightsUsed

EXAMPLES = {
    "next": {"summary": "why the next word", "value": {"text": "The prime minister said"}},
    "word": {
        "summary": "why a word of the text, and the hidden states",
        "value": {"text": "The prime minister said", "target": 3, "state": True},
    },
}


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["inspection"], dependencies=service.guard.users)
    chars = service.settings.max_prompt_chars
    text = Annotated[str, PydanticField(min_length=1, max_length=chars)]
    body_class = create_model(
        "InspectRequest",
        __base__=inspections.InspectRequest,
        text=(Annotated[text, PydanticField(examples=["The prime minister said"])], ...),
        other=(text | None, inspections.InspectRequest.model_fields["other"]),
    )
    candidates_class = create_model(
        "CandidatesRequest",
        __base__=inspections.CandidatesRequest,
        text=(Annotated[text, PydanticField(examples=["The prime minister said"])], ...),
    )
    count = Annotated[int, Query(ge=1, le=MAX_WORDS, description="words in each list")]
    hidden_unit = Annotated[int, Path(ge=0, lt=MAX_HIDDEN)]
    computing = Annotated[Backend, Query(description="the back end that computes; both give the same numbers")]

    # Each may take a processor for a second, and some 100 MB. So no more than two run at once, and not in asyncio's own
    # threads, where everything else would wait for them. One that waits when its client goes away is dropped.
    inspectors = ThreadPoolExecutor(2, "inspect")
    seconds = service.settings.request_seconds

    async def ask(
        http: HttpRequest, backend: Backend, name: str | None, work: Callable[[LanguageModel, WeightsUsed], BaseModel]
    ) -> Response:
        """Run `work` on a model, in a thread. Raises InvalidRequest for what the model refuses."""

        def run() -> str:
            entry, engine = service.registry.engine(backend, name)
            try:
                return work(engine.model, WeightsUsed(name=entry.name, sha256=entry.sha256)).model_dump_json()
            except (PromptError, InspectionError) as error:
                raise InvalidRequest(str(error)) from error

        late = TimeLimit(f"the model was not inspected within {seconds:g} seconds: try a shorter text, or again later")
        async with within(seconds, late):
            logged = contextvars.copy_context().run  # as asyncio.to_thread does: the log names the request
            made = asyncio.get_running_loop().run_in_executor(inspectors, logged, run)
            body = await unless_gone(made, http.receive)
        return Response(body, media_type="application/json")

    @routes.post(
        "/inspect",
        summary="Inspect a prediction",
        response_model=inspections.InspectResponse,
        responses=problems(401, *BODY, *MODEL),
    )
    async def inspect(body: Annotated[body_class, Body(openapi_examples=EXAMPLES)], http: HttpRequest) -> Any:
        """Why a word is predicted: for each of the last 24 tokens before it, how the prediction changes if the token is
        left out, and the gradients; and how long the hidden state feels that a word was replaced."""

        def work(model: LanguageModel, weights: WeightsUsed) -> BaseModel:
            made = model.inspect(body.text, target=body.target, other=body.other, states=body.state)
            spans, hidden = model.read(body.text), len(model.matrices().bh)
            spectrum = model.spectrum(body.text) if body.spectrum else None
            return inspections.of_text(made, spans, body.backend, weights, hidden, spectrum)

        return await ask(http, body.backend, body.weights, work)

    @routes.post(
        "/candidates",
        summary="List the words that may come next",
        response_model=inspections.CandidatesResponse,
        responses=problems(401, *BODY, *MODEL),
    )
    async def candidates(body: Annotated[candidates_class, Body()], http: HttpRequest) -> Any:
        """The most probable words after a text, each with its probability under the model and with that which
        temperature, top-k and top-p make of it."""

        def work(model: LanguageModel, weights: WeightsUsed) -> BaseModel:
            rule = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p}
            return inspections.of_candidates(model.candidates(body.text, k=body.k, **rule), body.backend, weights)

        return await ask(http, body.backend, body.weights, work)

    @routes.get(
        "/weights/{name}/spectrum",
        summary="Eigenvalues of the recurrence",
        response_model=inspections.SpectrumResponse,
        responses=problems(401, *MODEL),
    )
    async def spectrum(
        http: HttpRequest,
        name: str,
        text: Annotated[
            str | None, Query(min_length=1, max_length=chars, description="over which tanh's slope is averaged")
        ] = None,
        backend: computing = "c",
    ) -> Any:
        """The eigenvalues of Whh: those near the unit circle let the network remember. With a text, also those
        of diag(1 - h^2) Whh averaged over its tokens, which is what tanh leaves of the recurrence there.

        Proxies log addresses, and so this text: POST /inspect takes it in a body, with `spectrum`."""
        return await ask(http, backend, name, lambda model, used: inspections.of_spectrum(model.spectrum(text), used))

    @routes.get(
        "/weights/{name}/units/{unit}",
        summary="The words around a hidden unit",
        response_model=inspections.UnitResponse,
        responses=problems(401, *MODEL),
    )
    async def unit(http: HttpRequest, name: str, unit: hidden_unit, k: count = TOP, backend: computing = "c") -> Any:
        """The words that drive a hidden unit up and down most, and those whose logits it raises and lowers most."""
        return await ask(http, backend, name, lambda model, used: inspections.of_unit(model.unit(unit, k), used))

    @routes.get(
        "/weights/{name}/neighbours",
        summary="The words nearest to a word",
        response_model=inspections.NeighboursResponse,
        responses=problems(401, *MODEL),
    )
    async def neighbours(
        http: HttpRequest,
        name: str,
        word: Annotated[str, Query(min_length=1, max_length=200, description="a word of the model")],
        k: count = TOP,
        backend: computing = "c",
    ) -> Any:
        """The words whose input vectors, and whose output vectors, have the largest cosine with those of a word."""
        return await ask(
            http, backend, name, lambda model, used: inspections.of_neighbours(model.neighbours(word, k), used)
        )

    return routes
