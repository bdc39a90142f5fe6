"""Puts the service together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from rnnlm.version import VERSION
from service import errors, lifecycle
from service.core import Service
from service.middleware import Edge
from service.routes import described, docs, generate, inspect, openai, operations, weights
from service.settings import ROOT, Settings

TITLE = "RNN word model"
SUMMARY = "Generate and score text with a recurrent word model, and look inside it"
DESCRIPTION = """A small language model of words, an Elman recurrent network, runs here twice, from the same weights:
in C (`c`) and in PyTorch (`torch`). It continues texts word by word, and says how probable each word of a text is.

Errors are RFC 9457 problems with a `code` for programs and a `detail` for people.
Under /v1 they have OpenAI's shape."""

TAGS = [
    {"name": "generation", "description": "Continue prompts, and score texts."},
    {"name": "OpenAI's protocol", "description": "The same for OpenAI's clients; a model is named BACKEND/WEIGHTS."},
    {"name": "inspection", "description": "Why a word is predicted, what is remembered, what the weights hold."},
    {"name": "weights", "description": "The files that the models are loaded from."},
    {"name": "operations", "description": "Is the service up, is it ready, what does it do."},
]


class _App(FastAPI):
    """FastAPI's application with our `edge` around all of it, its own outermost layer included."""

    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.edge(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            described.complete(super().openapi())
        assert self.openapi_schema
        return self.openapi_schema


def create_app(settings: Settings) -> FastAPI:
    """Make a service of its own, with its own state."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with lifecycle.running(service):
            yield

    app = _App(
        title=TITLE,
        summary=SUMMARY,
        description=DESCRIPTION,
        version=VERSION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        exception_handlers=errors.HANDLERS,
        docs_url=None,  # these three are in routes/docs.py
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # an address with a slash too many does not exist, for every method alike
    )
    app.state.service = service
    app.edge = Edge(super(_App, app).__call__, app, service)
    web = ROOT / "service" / "web"
    app.include_router(generate.router(service), dependencies=service.guard.users)
    app.include_router(openai.router(service), dependencies=service.guard.users)
    app.include_router(inspect.router(service))
    app.include_router(weights.router(service))
    app.include_router(operations.router(service, web))
    app.include_router(docs.router(service))
    return app
