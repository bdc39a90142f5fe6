"""GET /v1/models, /v1/models/{model} and /v1/health. A model is a weights file under a back end."""

import contextlib
from typing import Any

from fastapi import APIRouter

from rnnlm.checkpoint import BACKENDS
from service.core import Service
from service.errors import InvalidRequest, WeightsNotFound
from service.folder import Summary
from service.routes.described import openai_errors
from service.routes.openai.bodies import Bodies
from service.schemas import Status


def add(routes: APIRouter, service: Service, _: Bodies) -> None:
    @routes.get("/models/", include_in_schema=False)
    @routes.get("/models", summary="List the models", responses=openai_errors(401, 503))
    def models() -> Any:
        """Each weights file under each back end, named BACKEND/WEIGHTS."""
        summaries = (version.summary() for version in service.registry.folder.versions())
        usable = [summary for summary in summaries if not summary.problem]
        data = [_model(backend, summary) for summary in usable for backend in service.settings.served_backends]
        return {"object": "list", "data": data}

    @routes.get("/models/{model:path}", summary="Show one model", responses=openai_errors(401, 404, 503))
    def model(model: str) -> Any:
        backend, name = split(model)
        with contextlib.suppress(WeightsNotFound, InvalidRequest):
            summary = service.registry.folder.version(name).summary()
            if not summary.problem and backend in service.settings.served_backends:
                return _model(backend, summary)
        raise _no_such_model(model)

    @routes.get("/health", summary="Check that the service is up", response_model=Status, responses=openai_errors(401))
    async def health() -> Any:
        """The same as GET /health, for clients that know only addresses under /v1."""
        return Status(status="ok")


def split(model: str) -> tuple[str, str]:
    """Return (back end, weights) of a model's name. Raises WeightsNotFound."""
    backend, slash, name = model.partition("/")
    if not slash or backend not in BACKENDS:
        raise _no_such_model(model)
    return backend, name


def _model(backend: str, summary: Summary) -> dict[str, Any]:
    return {
        "id": f"{backend}/{summary.name}",
        "object": "model",
        "created": int(summary.modified),
        "owned_by": "local",
    }


def _no_such_model(model: str) -> WeightsNotFound:
    return WeightsNotFound(
        f"there is no model {model[:100]!r}: a model is BACKEND/WEIGHTS, such as c/demo; GET /v1/models lists them",
        fields=(("model", "does not exist"),),
    )
