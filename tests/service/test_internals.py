"""Reaches into what other libraries do not promise. Each is one function; its test names the version it is for.

If one fails after an upgrade, look at the function that it names.
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from prometheus_client import multiprocess
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from service import metrics
from service.exchange import transport_of


def written_for(package: str, release: str) -> str:
    return f"written for {package} {release}; {version(package)} is installed"


def test_uvicorns_send_leads_to_the_connection() -> None:
    found: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            found.append(transport_of(send))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        server = uvicorn.Server(uvicorn.Config(app, port=0, http="h11", lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        server.should_exit = True
        await serving

    asyncio.run(ask())
    (transport,) = found
    assert isinstance(transport, asyncio.WriteTransport), written_for("uvicorn", "0.54")
    assert transport.get_write_buffer_size() == 0


def test_other_servers_have_no_connection_to_find() -> None:
    async def send(message: Any) -> None:
        raise AssertionError(message)

    assert transport_of(send) is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_prometheus_names_its_files_by_process(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest process id of Linux
    for pid in (os.getpid(), dead):
        (tmp_path / f"gauge_livesum_{pid}.db").touch()
    (tmp_path / f"counter_{dead}.db").touch()
    message = written_for("prometheus_client", "0.26")
    assert metrics._living(str(tmp_path)) == [os.getpid()], message
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"counter_{dead}.db",  # what a dead worker has counted stays
        f"gauge_livesum_{os.getpid()}.db",
    ], message
    assert "livesum" in multiprocess._LIVE_GAUGE_MULTIPROCESS_MODES, message


def test_starlettes_cors_can_be_asked_from_outside() -> None:
    """The edge uses two methods of its middleware, `preflight_response` and `send`."""
    cors = CORSMiddleware(FastAPI(), ["https://example.org"], ["POST"], ["*"])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = Headers({"origin": "https://example.org", "access-control-request-method": "POST"})
    message = written_for("starlette", "1.10")
    assert cors.preflight_response(headers).headers["access-control-allow-origin"] == "https://example.org", message
    asyncio.run(cors.send({"type": "http.response.start", "status": 200, "headers": []}, send, headers))
    assert (b"access-control-allow-origin", b"https://example.org") in sent[0]["headers"], message


def test_fastapi_offline_brings_the_files_of_the_docs() -> None:
    from service.routes import docs

    folder = docs._folder()
    message = written_for("fastapi_offline", "1.7")
    assert folder is not None and all((folder / name).is_file() for name in docs.FILES), message


def test_fastapi_tells_which_route_a_request_took() -> None:
    from starlette.testclient import TestClient

    seen: list[Any] = []
    app = FastAPI()

    @app.get("/things/{name}")
    def thing(name: str) -> None: ...

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        seen.append(scope.get("route"))

    TestClient(outer).get("/things/a")
    assert seen[0].path == "/things/{name}", written_for("fastapi", "0.165")


def test_fastapi_lists_the_routes_of_its_routers() -> None:
    """The edge looks at their addresses and methods before FastAPI does."""
    inner, app = APIRouter(), FastAPI()
    inner.add_api_route("/things/{name}", lambda name: None, methods=["DELETE"])
    app.include_router(inner, prefix="/all")
    routes = [route for route in iter_route_contexts(app.routes) if route.path == "/all/things/{name}"]
    message = written_for("fastapi", "0.165")
    assert [route.methods for route in routes] == [{"DELETE"}], message
    assert routes[0].path_regex.match("/all/things/a") and not routes[0].path_regex.match("/all/things/a/b"), message
