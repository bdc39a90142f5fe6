"""The threats of docs/threats.md, one by one: each row of its table names the test here that covers it."""

from __future__ import annotations

import contextlib
import gzip
import hmac
import json
import os
import pickle
import re
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import ROOT, SOURCES, make_checkpoint
from fuzz_weights import join, sound_file, split
from serving import ADMIN, Server, needs_library, read_until, save_tiny, serving, until
from starlette.testclient import TestClient

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint
from rnnlm.container import MAX_HEADER_BYTES
from rnnlm.data.text import EOS

pytestmark = needs_library

SHORT = {"prompt": "waa", "max_tokens": 2, "seed": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder)
    return folder


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder) as client:
        yield client


def upload(client: Any, raw: bytes, filename: str = "new", headers: Any = ADMIN, **fields: str) -> Any:
    return client.post("/weights", files={"file": (filename, raw)}, data=fields, headers=headers)


def names(client: TestClient) -> list[str]:
    return [summary["name"] for summary in client.get("/weights").json()["weights"]]


# ---- What an upload can carry ---------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def test_pickles_are_never_run(client: TestClient, folder: Path, tmp_path: Path) -> None:
    import torch

    marker, as_torch = tmp_path / "marker", tmp_path / "model.pt"
    torch.save({"weights": Bomb(marker)}, as_torch)
    header, data = split(sound_file())
    inside = join(header, data) + pickle.dumps(Bomb(marker))
    for raw in (pickle.dumps(Bomb(marker)), as_torch.read_bytes(), inside):
        assert upload(client, raw).status_code == 422
        (folder / "planted.safetensors").write_bytes(raw)  # as if copied into the folder directly
        assert client.post("/generate/c", json={**SHORT, "weights": "planted"}).status_code == 503
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(folder / "planted.safetensors")
    assert not marker.exists()
    loose = re.compile(
        r"^\s*(import|from) pickle\b|allow_pickle=True|weights_only=False|torch\.load\(|\w+Vectors\.load\("
        r"|(?<![.\w])(eval|exec)\(",
        re.MULTILINE,
    )
    # gensim_files.py has an unpickler that calls nothing: tests/data/test_gensim_files.py
    assert [path.name for path in SOURCES if loose.search(path.read_text())] == ["gensim_files.py"]


@pytest.mark.parametrize(
    "name",
    ["../demo", "..%2fdemo", "%2e%2e%2fdemo", "..\\demo", "/etc/passwd", "demo/../demo", "demo\0", "CON:", "~root"],
)
def test_names_lead_nowhere_else(client: TestClient, folder: Path, name: str) -> None:
    outside = folder.parent / "demo.safetensors"
    outside.write_bytes(b"not yours")
    for reply in (
        upload(client, sound_file(), name, overwrite="true"),
        upload(client, sound_file(), "good", name=name, overwrite="true"),
        client.post("/generate/c", json={**SHORT, "weights": name}),
        client.post("/v1/completions", json={"model": f"c/{name}", "prompt": "waa"}),
        client.delete(f"/weights/{quote(name, safe='')}", headers=ADMIN),
    ):
        assert reply.status_code in (400, 404, 405, 422), (name, reply.text)
    for path in (
        f"/weights/{quote(name)}",
        f"/web/{quote(name)}.safetensors",
        f"/web/{quote(name, safe='')}",
        "/web/..%2fapi.py",
    ):
        assert client.get(path).status_code in (404, 405)
    assert outside.read_bytes() == b"not yours" and names(client) == ["demo"]


def test_links_lead_nowhere_else(client: TestClient, folder: Path, tmp_path: Path) -> None:
    secret = save_tiny(tmp_path, "secret", seed=3)
    raw = secret.read_bytes()
    (folder / "link.safetensors").symlink_to(secret)
    (folder / "broken.safetensors").symlink_to(tmp_path / "nothing")
    (folder / "round.safetensors").symlink_to(folder / "round.safetensors")
    assert names(client) == ["demo"]
    for name in ("link", "broken", "round"):
        assert client.post("/generate/c", json={**SHORT, "weights": name}).status_code == 404
        reply = upload(client, sound_file(), name, overwrite="true")  # may replace the link, but never follow it
        assert reply.status_code in (201, 409)
        assert client.delete(f"/weights/{name}", headers=ADMIN).status_code in (204, 404)
    assert secret.read_bytes() == raw and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
def test_compressed_bodies_are_not_unpacked(client: TestClient, coding: str) -> None:
    packed = gzip.compress(bytes(20 << 20)) if coding != "deflate" else zlib.compress(bytes(20 << 20))
    assert len(packed) < 64 << 10
    tracemalloc.start()
    try:
        headers = {"content-encoding": coding, "content-type": "application/json"}
        assert client.post("/generate/c", content=packed, headers=headers).status_code in (400, 415, 422)
        headers = {**ADMIN, "content-encoding": coding, "content-type": "multipart/form-data; boundary=B"}
        assert client.post("/weights", content=packed, headers=headers).status_code in (400, 415, 422)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


HEADER_BOMBS = {
    "a length of 2^63": (2**63).to_bytes(8, "little"),
    "all brackets": join(b"[" * (1 << 20), b""),
    "all objects": join(b'{"a":' * (1 << 19), b""),
    "many tensors": join(
        {f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(50_000)}, bytes(50_000)
    ),
    "a shape of many sizes": join({"t": {"dtype": "U8", "shape": [1] * 500_000, "data_offsets": [0, 1]}}, b"x"),
    "a number of many digits": join(b'{"t":' + b"9" * (1 << 20) + b"}", b""),
    "more than the limit": join(b" " * (MAX_HEADER_BYTES + 1), b""),
}


@pytest.mark.parametrize("what", HEADER_BOMBS)
def test_header_bombs_cost_little(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(HEADER_BOMBS[what])
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 20  # most of it for the tracing


@pytest.mark.parametrize(
    ("v", "e", "h"), [(2**62, 4, 1), (2**32, 2**32, 1), (2**31, 2, 6), (2**63, 2, 2), (2**64, 1, 1), (13, 2**61, 8)]
)
def test_shapes_that_overflow_are_refused(client: TestClient, v: int, e: int, h: int) -> None:
    header, data = split(sound_file())
    for name, shape in {"embeddings": [v, e], "Wxh": [e, h], "Whh": [h, h], "bh": [h], "Why": [h, v]}.items():
        header[name]["shape"] = shape
    assert upload(client, join(header, data)).status_code == 422
    size = 4  # offsets that agree with the product modulo 2^64
    header["embeddings"]["data_offsets"] = [0, v * e * size % 2**64]
    assert upload(client, join(header, data)).status_code == 422


# ---- What a file can contain ----------------------------------------------------------------------------------------

MARKUP = '<script>alert(1)</script><img/src=x onerror="alert(1)">'.replace(" ", "")


def test_markup_in_words_stays_text(folder: Path) -> None:
    source = make_checkpoint(vocab=3)
    config = {"corpus": MARKUP, "preset": "</script>"}
    words = (EOS, MARKUP, "waa")
    checkpoint.save(folder / "html.safetensors", Checkpoint(source.weights, words, "plain", "c", config, [{"x": 1}]))
    with serving(folder) as client:
        body = {**SHORT, "weights": "html", "top_logprobs": 3, "ignore_eos": True, "max_tokens": 20}
        replies = [client.post("/generate/c", json=body), client.get("/weights")]
        streamed = client.post("/generate/c", json={**body, "stream": True})
        assert MARKUP in {each["config"].get("corpus") for each in replies[1].json()["weights"]}
        assert MARKUP in {each["word"] for each in replies[0].json()["choices"][0]["tokens"][0]["top"]}
        for reply in (*replies, streamed):
            assert reply.status_code == 200, reply.text
            kind = reply.headers["content-type"].split(";")[0]
            assert kind in ("application/json", "text/event-stream")  # no browser shows these as a page
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in reply.headers["content-security-policy"]
    page = [path.read_text() for path in (ROOT / "service" / "web").glob("**/*.js")]
    assert page and not [
        text for text in page if re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text)
    ]


@pytest.mark.parametrize("word", ["a\x1b[2J", "a\u202eb", "a\nb", "a\r", "a\0", "\ud800", "a\u2028b", "\x9b31m"])
def test_words_that_a_terminal_would_obey_are_refused(tmp_path: Path, word: str) -> None:
    source = make_checkpoint(vocab=2)
    with pytest.raises((checkpoint.VocabularyError, UnicodeEncodeError)):
        Checkpoint(source.weights, (EOS, word), "plain", "c", {}, [])


def test_nothing_of_a_request_breaks_a_line_of_the_log(folder: Path, tmp_path: Path) -> None:
    server = Server(folder, tmp_path / "log", RNN_API_TOKEN="user-secret")
    try:
        headers = {
            "authorization": "Bearer user-secret",
            "user-agent": 'x"}\t{"severity":"FORGED',
            "x-request-id": "a b",
        }
        server.get("/weights%0A%7B%22forged%22:1%7D?token=hidden", headers=headers)
        upload(server, b"no", "bad\nname", headers={"authorization": "Bearer admin-secret"})
        server.get("/weights", headers={"authorization": "Bearer wrong-secret"})
        lines = server.lines()  # each is a JSON object of its own
        assert not [line for line in lines if "forged" in line or line["severity"] == "FORGED"]
        assert not re.search("user-secret|admin-secret|wrong-secret|hidden", server.text())
    finally:
        server.close()


# ---- What each token opens ------------------------------------------------------------------------------------------

USER = {"authorization": "Bearer user-secret"}
MESSAGES = [{"role": "user", "content": "waa"}]
ROUTES = [  # method, path, body; the statuses with no token, the API token, the admin token
    ("GET", "/", None, (200, 200, 200)),
    ("GET", "/health", None, (200, 200, 200)),
    ("GET", "/ready", None, (200, 200, 200)),
    ("GET", "/metrics", None, (401, 200, 200)),
    ("GET", "/docs", None, (200, 200, 200)),
    ("GET", "/openapi.json", None, (200, 200, 200)),
    ("GET", "/weights", None, (401, 200, 200)),
    ("GET", "/v1/models", None, (401, 200, 200)),
    ("GET", "/v1/models/c/demo", None, (401, 200, 200)),
    ("GET", "/v1/health", None, (401, 200, 200)),
    ("GET", "/nowhere", None, (401, 404, 404)),
    ("POST", "/generate/c", SHORT, (401, 200, 200)),
    ("POST", "/score", {"text": "waa wab"}, (401, 200, 200)),
    ("POST", "/inspect", {"text": "waa wab"}, (401, 200, 200)),
    ("POST", "/candidates", {"text": "waa wab"}, (401, 200, 200)),
    ("GET", "/weights/demo/spectrum", None, (401, 200, 200)),
    ("GET", "/weights/demo/units/1", None, (401, 200, 200)),
    ("GET", "/weights/demo/neighbours?word=waa", None, (401, 200, 200)),
    ("POST", "/v1/completions", {"model": "c/demo", "prompt": "waa"}, (401, 200, 200)),
    ("POST", "/v1/chat/completions", {"model": "c/demo", "messages": MESSAGES}, (401, 200, 200)),
    ("POST", "/v1/embeddings", {"model": "c/demo", "input": "waa"}, (401, 200, 200)),
    ("POST", "/weights", None, (401, 403, 400)),
    ("DELETE", "/weights/nothing", None, (401, 403, 404)),
]


@pytest.mark.parametrize(("method", "path", "body", "statuses"), ROUTES)
def test_what_each_token_opens(folder: Path, method: str, path: str, body: Any, statuses: tuple[int, int, int]) -> None:
    with serving(folder, api_token="user-secret") as client:
        for headers, status in zip(({}, USER, ADMIN), statuses, strict=True):
            assert client.request(method, path, json=body, headers=headers).status_code == status
        assert client.request(method, path, json=body, headers={"authorization": "Bearer "}).status_code == statuses[0]


def test_every_route_is_in_the_table_of_tokens(client: TestClient) -> None:
    tried = {(method, path.split("?")[0]) for method, path, _, _ in ROUTES}
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path.replace("{model}", "c/demo"))
        for method in methods:
            assert any(m == method.upper() and re.fullmatch(pattern, p) for m, p in tried), (method, path)


def test_tokens_are_compared_in_constant_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    with serving(folder, api_token="user-secret") as client:
        for wrong in ("x", "user-secreX", "Xser-secret", "user-secret-and-more", "admin-secre", "\xff"):
            compared.clear()
            headers = {b"authorization": b"Bearer " + wrong.encode("latin-1")}
            assert client.get("/weights", headers=headers).status_code == 401
            assert compared and all(b in (b"user-secret", b"admin-secret") for _, b in compared)
    source = (ROOT / "service" / "auth.py").read_text()
    assert not re.search(r"(credentials|token)\s*[!=]=", source)  # never compared directly


# ---- Floods, and clients that take their time -----------------------------------------------------------------------


def test_floods_of_headers_are_cut_off(folder: Path, tmp_path: Path) -> None:
    server = Server(folder, tmp_path / "log")
    try:
        flood = b"".join(b"x-%d: y\r\n" % i for i in range(200_000))
        for head in (flood, b"x: " + b"y" * (4 << 20), b"cookie: " + b"a=b; " * 500_000):
            connection = server.connect()
            answer = b""
            with contextlib.suppress(ConnectionError):  # the server hung up before everything was sent
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + head)
                answer = connection.recv(4096)
            assert b" 200 " not in answer
            connection.close()
        memory = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096
        assert memory < 400 << 20 and server.get("/health").status_code == 200
    finally:
        server.close()


def test_inspections_of_clients_that_went_away_are_not_made(folder: Path, tmp_path: Path) -> None:
    """But for the two that are being made: otherwise a flood of them, each hung up on, would keep others waiting."""
    save_tiny(folder, "large", vocab=600, embed=100, hidden=300)
    server = Server(folder, tmp_path / "log")
    try:
        body = {"text": "waa wab " * 900, "weights": "large"}
        assert server.post("/inspect", json=body).status_code == 200
        connections = [server.send_json("/inspect", body) for _ in range(30)]
        until(lambda: server.metric("rnn_requests_in_flight") > 10)
        for connection in connections:
            connection.close()
        until(lambda: server.metric("rnn_requests_in_flight") == 1)
        statuses = [line["message"].split()[-1] for line in server.lines() if "POST /inspect" in line["message"]]
        assert len(statuses) == 31 and statuses.count("499") > 15, statuses
    finally:
        server.close()


def test_slow_bodies_are_given_up(folder: Path, tmp_path: Path) -> None:
    server = Server(folder, tmp_path / "log", RNN_REQUEST_SECONDS="0.5", RNN_UPLOAD_SECONDS="0.5")
    try:
        for path in ("/generate/c", "/weights", "/score"):
            slow = server.connect()
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin-secret\r\n"
            kind = "multipart/form-data; boundary=B" if path == "/weights" else "application/json"
            slow.sendall(f"{head}content-type: {kind}\r\ncontent-length: 999\r\n\r\n-".encode())
            started = time.monotonic()
            assert b" 408 " in read_until(slow, b"\r\n\r\n")
            assert time.monotonic() - started > 0.3
            slow.close()
        assert server.get("/health").status_code == 200
    finally:
        server.close()


# ---- The page -------------------------------------------------------------------------------------------------------

POLICY = ("default-src 'none'", "frame-ancestors 'none'")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/web/js/app.js", 200),
        ("GET", "/docs", 200),
        ("GET", "/nothing", 404),
        ("POST", "/generate/c", 422),
        ("POST", "/weights", 401),
        ("PUT", "/health", 405),
    ],
)
def test_every_answer_has_security_headers(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path, **({"json": {}} if method == "POST" else {}))
    assert reply.status_code == status
    policy = reply.headers["content-security-policy"]
    assert all(part in policy for part in POLICY)
    scripts = re.search("script-src ([^;]*)", policy)
    assert not scripts or not re.search(r"unsafe-(inline|eval)|\*|http:", scripts[1])
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in reply.headers and "set-cookie" not in reply.headers


def test_other_sites_pages_can_start_nothing(client: TestClient) -> None:
    """A browser lets other sites send forms and plain text, but no JSON without asking, and never a token."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=B"):
        reply = client.post("/generate/c", content=json.dumps(SHORT), headers={"content-type": kind})
        assert reply.status_code in (400, 415, 422), kind
    asks = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/generate/c", headers=asks).headers
    assert upload(client, sound_file(), headers={"origin": "https://elsewhere.example"}).status_code == 401
