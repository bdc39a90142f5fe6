"""What runs the service: /health, /ready, /metrics, /docs, and the page."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

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
    users = service.guard.users

    @routes.get("/health", response_model=Status)
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

    @routes.get("/metrics", dependencies=users, responses=problems(401), response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)

    @routes.get("/openapi.json", dependencies=users, include_in_schema=False)
    def openapi(request: Request) -> Response:
        return JSONResponse(request.app.openapi())

    @routes.get("/docs", dependencies=users, include_in_schema=False)
    def docs() -> Response:
        page = get_swagger_ui_html(openapi_url="openapi.json", title="RNN word model")
        return HTMLResponse(page.body, headers={"content-security-policy": _docs_policy(bytes(page.body).decode())})

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        index = web / "index.html"
        return FileResponse(index, headers=headers) if index.is_file() else HTMLResponse(_PLACEHOLDER, headers=headers)

    return routes


def _docs_policy(page: str) -> str:
    """Swagger's files come from their network; of scripts in the page, only the one that starts it may run."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    cdn = "https://cdn.jsdelivr.net"
    return (
        f"default-src 'none'; script-src {cdn} {allowed}; style-src {cdn} 'unsafe-inline'; connect-src 'self'; "
        "img-src data: https://fastapi.tiangolo.com; frame-ancestors 'none'"
    )
