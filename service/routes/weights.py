"""GET and POST /weights, DELETE /weights/{name}."""

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request, Response

from service import schemas
from service.capacity import Capacity
from service.core import Service
from service.errors import TimeLimit
from service.exchange import within
from service.folder import Version
from service.routes.described import BODY, problems
from service.uploads import Uploader

_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "a weights file"},
        "name": {
            "type": "string",
            "description": "its name here; default: the file's own, spaces and brackets replaced",
        },
        "sha256": {"type": "string", "description": "refuse the file unless this is its SHA-256, in hexadecimal"},
        "overwrite": {"type": "string", "enum": ["true", "false"], "default": "false"},
    },
}


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/weights", tags=["weights"])
    guard = service.guard
    uploader = Uploader(service.settings, service.registry.folder, service.metrics)
    # The first list hashes every file. In the shared threads, requests that wait for it would leave none for others.
    lister = ThreadPoolExecutor(1, "list-weights")

    @routes.get(
        "",
        summary="List the weights",
        response_model=schemas.WeightsList,
        dependencies=guard.users,
        responses=problems(401, 503, 504),
    )
    async def show() -> Response:
        """All weights files with the history of their training, and how large a model fits here."""
        seconds = service.settings.request_seconds
        late = TimeLimit(
            f"the weights files were not hashed within {seconds:g} seconds: try again, the finished ones are kept"
        )
        async with within(seconds, late):
            listing = contextvars.copy_context().run  # as asyncio.to_thread does: the log names the request
            body = await asyncio.get_running_loop().run_in_executor(lister, listing, _list, service)
        return Response(body, media_type="application/json")

    @routes.post(
        "",
        summary="Upload weights",
        status_code=201,
        response_model=schemas.Uploaded,
        dependencies=guard.admins,
        responses=problems(401, 403, *BODY, 409, 422, 503, 507),
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
    )
    async def upload(request: Request) -> Any:
        """Add a weights file. It is checked as a whole and tried on each back end before anybody can use it."""
        return await uploader.receive(request)

    @routes.delete(
        "/{name}",
        summary="Delete weights",
        status_code=204,
        dependencies=guard.admins,
        responses=problems(401, 403, 404, 422, 503, 507),
    )
    async def delete(name: str) -> Response:
        """Remove a weights file. Requests that use it are not disturbed."""
        await asyncio.to_thread(service.registry.delete, name)
        return Response(status_code=204)

    return routes


def _list(service: Service) -> str:
    """Return the list as JSON. Long histories take long to write, too."""
    versions = service.registry.folder.versions()
    capacity = Capacity.of(service.settings)
    weights = [schemas.WeightsSummary(**vars(version.summary()), sha256=_sha256(version)) for version in versions]
    return schemas.WeightsList(
        default=service.registry.default() if versions else None,
        weights=weights,
        capacity=schemas.Capacity(
            memory=capacity.memory,
            max_upload_bytes=service.settings.max_upload_bytes,
            largest_vocabulary=capacity.table(),
        ),
    ).model_dump_json()


def _sha256(version: Version) -> str | None:
    try:
        return version.sha256()
    except OSError:  # the file is being replaced, or cannot be read: the summary says so
        return None
