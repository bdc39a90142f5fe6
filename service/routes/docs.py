"""The OpenAPI document, and its browser at /docs, whose files come from the fastapi-offline package: the page loads
nothing from elsewhere. Without that package, /docs redirects to the document.

Both are open to everybody: a browser sends no token when it opens a page, and they describe only what the source does.
"""

import base64
import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from service.core import Service
from service.errors import NotFound

FILES = ("swagger-ui-bundle.js", "swagger-ui.css")


def router(service: Service) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/openapi.json")
    def openapi(request: Request) -> Response:
        document = request.app.openapi()
        if root_path := request.scope.get("root_path", ""):  # where a proxy serves us, for "Try it out"
            document = {**document, "servers": [{"url": root_path}]}
        return JSONResponse(document)

    @routes.get("/docs")
    def docs() -> Response:
        if _folder() is None:
            return RedirectResponse("openapi.json")
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title="RNN word model: API",
            swagger_js_url=f"docs/{FILES[0]}",
            swagger_css_url=f"docs/{FILES[1]}",
            swagger_favicon_url="web/icon.svg",
        )
        return HTMLResponse(page.body, headers={"content-security-policy": _policy(bytes(page.body).decode())})

    @routes.get("/docs/{name}")
    def file(name: str) -> Response:
        folder = _folder()
        if folder is None or name not in FILES:
            raise NotFound("there is no such file")
        return FileResponse(folder / name, headers={"cache-control": "max-age=86400"})

    return routes


def _folder() -> Path | None:
    """Return the folder of the files of fastapi-offline (1.7), without importing it; None if it is not installed."""
    spec = find_spec("fastapi_offline")
    return Path(spec.origin).parent / "static" if spec and spec.origin else None


def _policy(page: str) -> str:
    """Return a policy that lets only the page's own script run, the one that starts Swagger."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
