"""Puts the service together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from rnnlm.version import VERSION
from service import errors, lifecycle
from service.core import Service
from service.middleware import Edge
from service.routes import completions, described, docs, generate, inspect, operations, weights
from service.settings import ROOT, Settings

DESCRIPTION = """An Elman recurrent word model, in C and in torch, behind one interface.

Errors are RFC 9457 problems; under /v1 they have OpenAI's shape."""


class _Page(StaticFiles):
    """The page's files, which a browser may keep as long as it asks whether they have changed."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


class _App(FastAPI):
    """The framework's application with our `edge` around all of it, its own outermost layer included."""

    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.edge(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            described.complete(super().openapi())
        assert self.openapi_schema
        return self.openapi_schema


def create_app(settings: Settings) -> FastAPI:
    """A service of its own, with its own state."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with lifecycle.running(service):
            yield

    app = _App(
        title="RNN word model",
        description=DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        exception_handlers=errors.HANDLERS,
        docs_url=None,  # these three are in routes/docs.py, where they can be guarded
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # an address with a slash too many is not there, on every method alike
    )
    app.state.service = service
    app.edge = Edge(super(_App, app).__call__, service)
    web = ROOT / "service" / "web"
    app.include_router(generate.router(service), dependencies=service.guard.users)
    app.include_router(completions.router(service), dependencies=service.guard.users)
    app.include_router(inspect.router(service))
    app.include_router(weights.router(service))
    app.include_router(operations.router(service, web))
    app.include_router(docs.router(service))
    if web.is_dir():
        app.mount("/web", _Page(directory=web))
    return app
