"""/health, /ready, /metrics, and the page with its files."""

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from service.core import Service
from service.errors import ShuttingDown
from service.metrics import CONTENT_TYPE
from service.routes.described import problems
from service.schemas import Status

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PLACEHOLDER = """<!doctype html>
<html lang="en">
<title>RNN word model</title>
<h1>RNN word model</h1>
<p>The service is up, without its page. See <a href="docs">its routes</a> and <a href="ready">whether it is ready</a>.
</html>
"""


def router(service: Service, web: Path) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    files = StaticFiles(directory=web, check_dir=False)

    @routes.get("/health", summary="Check that the service is up", response_model=Status, responses=problems())
    async def health() -> Any:
        """The process answers. It may have no weights: see /ready."""
        return Status(status="ok")

    @routes.get("/ready", summary="Check that the service is ready", response_model=Status, responses=problems(503))
    def ready() -> Any:
        """The default weights can be used."""
        if service.stopping:
            raise ShuttingDown
        service.registry.check_ready()
        return Status(status="ready")

    @routes.get(
        "/metrics",
        summary="Read the metrics",
        dependencies=service.guard.users,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401)},
        response_class=Response,
    )
    def metrics() -> Response:
        """Counters and times, in the format of Prometheus."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        index = web / "index.html"
        return FileResponse(index, headers=headers) if index.is_file() else HTMLResponse(_PLACEHOLDER, headers=headers)

    @routes.get("/web/{path:path}", include_in_schema=False)
    async def file(path: str, http: Request) -> Response:
        response = await files.get_response(os.path.normpath(path), http.scope)
        response.headers["cache-control"] = "no-cache"  # a browser may keep a file if it asks whether that has changed
        return response

    return routes
