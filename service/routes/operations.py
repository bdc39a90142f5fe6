"""What runs the service: /health, /ready, /metrics, and the page."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

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
<p>The service is up. <a href="docs">What it can be asked</a>, <a href="weights">its weights</a>,
<a href="ready">whether it is ready</a>.
</html>
"""


def router(service: Service, web: Path) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/health", response_model=Status, responses=problems())
    async def health() -> Any:
        """The process is up."""
        return Status(status="ok")

    @routes.get("/ready", response_model=Status, responses=problems(503))
    def ready() -> Any:
        """There are weights to answer with."""
        if service.stopping:
            raise ShuttingDown
        service.registry.check_ready()
        return Status(status="ready")

    @routes.get(
        "/metrics",
        dependencies=service.guard.users,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(401)},
        response_class=Response,
    )
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        index = web / "index.html"
        return FileResponse(index, headers=headers) if index.is_file() else HTMLResponse(_PLACEHOLDER, headers=headers)

    return routes
