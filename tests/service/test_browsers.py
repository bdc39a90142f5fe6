"""Pages of other sites (CORS), sub-paths behind a proxy, compressed replies, and /docs in a browser without a token."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from serving import Server, needs_library, refused, serving
from starlette.testclient import TestClient

pytestmark = needs_library
pytest_plugins = ("service_fixtures",)

ORIGIN = "https://example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang",
}
USER = {"authorization": "Bearer user-secret"}


def cors(response: Any) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def test_no_origin_is_allowed_unless_named(client: TestClient) -> None:
    assert client.options("/generate/c", headers=PREFLIGHT).status_code == 405
    assert cors(client.post("/generate/c", json={"prompt": "waa"}, headers={"origin": ORIGIN})) == {}


@pytest.mark.parametrize("allowed", [(ORIGIN, "http://localhost:3000"), ("*",)])
def test_a_preflight_needs_no_token(folder: Path, allowed: tuple[str, ...]) -> None:
    with serving(folder, allowed_origins=allowed, api_token="user-secret") as client:
        for path in ("/generate/c", "/v1/chat/completions", "/weights"):
            response = client.options(path, headers=PREFLIGHT)
            assert response.status_code == 200, response.text
            found = cors(response)
            assert found["access-control-allow-origin"] in (ORIGIN, "*")
            assert "POST" in found["access-control-allow-methods"]
            assert "x-stainless-lang" in found["access-control-allow-headers"]
        assert client.options("/generate/c").status_code == 401  # that is no preflight


def test_replies_and_refusals_can_be_read_by_allowed_origins(folder: Path) -> None:
    with serving(folder, allowed_origins=(ORIGIN,), api_token="user-secret") as client:
        body = {"prompt": "waa", "max_tokens": 2}
        for headers, status in ((USER, 200), ({}, 401)):
            response = client.post("/generate/c", json=body, headers={"origin": ORIGIN, **headers})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert "x-request-id" in response.headers["access-control-expose-headers"]
            assert "Origin" in response.headers["vary"]
        streamed = client.post("/generate/c", json={**body, "stream": True}, headers={"origin": ORIGIN, **USER})
        assert streamed.headers["access-control-allow-origin"] == ORIGIN
        other = client.post("/generate/c", json=body, headers={"origin": "https://evil.example", **USER})
        assert "access-control-allow-origin" not in other.headers
        assert client.options("/score", headers={**PREFLIGHT, "origin": "https://evil.example"}).status_code == 400


def test_json_and_the_page_are_compressed_and_streams_are_not(client: TestClient) -> None:
    wants = {"accept-encoding": "gzip"}
    body = {"prompt": "waa", "max_tokens": 50, "ignore_eos": True, "seed": 1}
    for path in ("/", "/web/js/app.js", "/openapi.json", "/metrics"):
        response = client.get(path, headers=wants)
        assert response.headers["content-encoding"] == "gzip" and "Accept-Encoding" in response.headers["vary"], path
        assert (
            response.content == client.get(path, headers={"accept-encoding": "identity"}).content or path == "/metrics"
        )
    response = client.post("/generate/c", json=body, headers=wants)
    assert response.headers["content-encoding"] == "gzip" and len(response.json()["choices"][0]["tokens"]) == 50
    assert (
        "content-encoding" not in client.post("/generate/c", json=body, headers={"accept-encoding": "identity"}).headers
    )
    assert "content-encoding" not in client.get("/health", headers=wants).headers  # too small
    streamed = client.post("/generate/c", json={**body, "stream": True}, headers=wants)
    assert "content-encoding" not in streamed.headers and "[DONE]" in streamed.text


def test_a_compressed_reply_arrives_whole(folder: Path, tmp_path: Path) -> None:
    server = Server(folder, tmp_path / "log")
    try:
        connection = server.connect()
        connection.sendall(
            b"GET /openapi.json HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n"
        )
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, packed = raw.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length and int(length[1]) == len(packed)
        assert "paths" in json.loads(gzip.decompress(packed))
    finally:
        server.close()


def test_under_a_sub_path(folder: Path, tmp_path: Path) -> None:
    """As behind a proxy that serves us under /rnn and strips that from the address."""
    server = Server(folder, tmp_path / "log", "--root-path", "/rnn", RNN_API_TOKEN="user-secret")
    try:
        assert server.get("/openapi.json").json()["servers"] == [{"url": "/rnn"}]
        page = server.get("/docs").text
        addresses = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url: '([^']*)'", page)
        assert addresses and not [address for address in addresses if address.startswith(("/", "http"))]
        for path in ("/", "/ready", "/web/js/app.js"):
            assert server.get(path).status_code == 200, path
        reply = server.post("/generate/c", json={"prompt": "waa"}, headers=USER)
        assert reply.status_code == 200
        assert server.get("/v1/nothing", headers=USER).json()["error"]["code"] == "not_found"
        assert server.get("/weights").status_code == 401
        until_counted = 'route="/web/{path:path}",status="200"'
        assert until_counted in server.get("/metrics", headers=USER).text
    finally:
        server.close()


def test_the_docs_can_be_used_with_a_token(folder: Path) -> None:
    with serving(folder, api_token="user-secret") as client:
        document = client.get("/openapi.json").json()
        page = client.get("/docs")
        assert page.status_code == 200
        for address in re.findall(r'(?:src|href)="(docs/[^"]*)"', page.text):
            assert client.get(f"/{address}").status_code == 200
        (name,) = document["components"]["securitySchemes"]
        open_to_all = {"/health", "/ready"}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert (operation.get("security") == [{name: []}]) == (path not in open_to_all), (method, path)


def test_without_a_token_only_changes_ask_for_one(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    locked = {
        (method, path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation.get("security")
    }
    assert locked == {("post", "/weights"), ("delete", "/weights/{name}")}


def test_titles_and_summaries_are_for_strangers(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "RNN word model" and "recurrent" in document["info"]["summary"]
    assert {tag["name"] for tag in document["tags"]} == {
        tag
        for operations in document["paths"].values()
        for operation in operations.values()
        for tag in operation["tags"]
    }
    summaries = [operation["summary"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(summaries)) >= len(summaries) - 1  # /health has two addresses
    made_up = {"Generate", "Score", "Show", "Completions", "Upload", "Delete", "Models", "Model", "Metrics"}
    assert not made_up & set(summaries)  # FastAPI's, from the functions' names


def test_a_file_of_the_page_that_is_not_there(client: TestClient) -> None:
    refused(client.get("/web/nothing.js"), 404, "not_found")
    response = client.post("/web/js/app.js", json={})
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"
    assert client.head("/web/js/app.js").status_code == 200
    fresh = client.get("/web/js/app.js")
    assert fresh.headers["cache-control"] == "no-cache"
    again = client.get("/web/js/app.js", headers={"if-none-match": fresh.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
