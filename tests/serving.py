"""What the service's tests share: apps in this process, and real servers in a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import ROOT, make_checkpoint
from starlette.testclient import TestClient

from rnnlm import checkpoint
from rnnlm.library import library_path
from service.app import create_app
from service.settings import Settings

ADMIN = {"authorization": "Bearer admin-secret"}
ENDLESS = 1 << 20
UNLIMITED = {"RNN_MAX_TOKENS": str(ENDLESS), "RNN_MAX_REQUEST_TOKENS": str(ENDLESS)}  # of a real server
ENDLESS_BODY = {"prompt": "waa", "max_tokens": ENDLESS, "ignore_eos": True}
LARGE_BODY = {**ENDLESS_BODY, "max_tokens": 4000, "top_logprobs": 20}  # for some 5 MB, more than a socket's buffers
UPLOAD_HEAD = (  # of an upload that never ends
    b"POST /weights HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin-secret\r\n"
    b"content-type: multipart/form-data; boundary=B\r\ncontent-length: 100000\r\n\r\n"
    b'--B\r\ncontent-disposition: form-data; name="file"; filename="half.safetensors"\r\n\r\nhalf'
)
GOOD = {"/generate/c": {"prompt": "waa"}, "/score": {"text": "waa"}}  # a body for each of our routes
GUARD_SECONDS = 60.0  # no test waits longer for anything; none asserts that something is fast

needs_library = pytest.mark.skipif(not library_path().is_file(), reason="the C library is not built: make lib")


def make_settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a service for tests: the C model only, so that uploads need no torch."""
    return Settings(**{"weights_dir": folder, "admin_token": "admin-secret", "backends": ("c",), **changes})


@contextlib.contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[TestClient]:
    """A client of a service in this process."""
    with TestClient(create_app(make_settings(folder, **changes))) as client:
        yield client


def save_tiny(folder: Path, name: str = "demo", **sizes: int) -> Path:
    """A weights file of words waa, wab, ..."""
    path = folder / f"{name}.safetensors"
    checkpoint.save(path, make_checkpoint(**{"vocab": 40, "embed": 9, "hidden": 12, **sizes}))
    return path


def until(condition: Callable[[], Any]) -> Any:
    """Wait for `condition` to hold, and return what it said."""
    end = time.monotonic() + GUARD_SECONDS
    while not (said := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return said


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def events(text: str) -> list[Any]:
    """The data of server-sent events, parsed; [DONE] as it stands."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def refused(response: Any, status: int, code: str, *, names: object = "") -> dict[str, Any]:
    """Check that a response is a problem of this kind, which shows nothing of the machine. Returns it.

    names: the folder that it may name, and does.
    """
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status and problem["code"] == code and problem["title"] and problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    text = response.text.replace(str(names), "") if names else response.text
    assert "Traceback" not in text and "/tmp" not in text and "line " not in text
    assert str(names) in problem["detail"]
    return problem


def upload(client: TestClient, raw: bytes, filename: str = "new.safetensors", **fields: str) -> Any:
    return client.post("/weights", files={"file": (filename, raw)}, data=fields, headers=ADMIN)


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not os.listdir(folder)


class Server:
    """`uvicorn api:app --http h11` in a process of its own, on a free port, with its log in a file."""

    def __init__(self, folder: Path, log: Path, *options: str, app: str = "api:app", **environment: str) -> None:
        self.log = log
        self._connections: list[socket.socket] = []
        # A connection for each request, so that with several workers each gets some.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._client = httpx2.Client(timeout=GUARD_SECONDS, limits=limits, verify=False)
        variables = {"RNN_WEIGHTS_DIR": str(folder), "RNN_ADMIN_TOKEN": "admin-secret", "RNN_BACKENDS": "c"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RNN_")}
        command = [sys.executable, "-m", "uvicorn", app, "--app-dir", "tests", "--http", "h11", "--port", "0", *options]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=inherited | variables | environment, stdin=subprocess.DEVNULL, stderr=file
            )
        self.port = int(until(self._port))
        self.url = f"http://127.0.0.1:{self.port}"
        until(self._answers)

    def _port(self) -> str | None:
        assert self.process.poll() is None, self.text()
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", self.text())
        return found[1] if found else None

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.text()
        with contextlib.suppress(httpx2.TransportError):
            return self.get("/health").status_code == 200
        return False

    def text(self) -> str:
        return self.log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The log, which is JSON throughout."""
        return [json.loads(line) for line in self.text().splitlines()]

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self._client.get(self.url + path, **options)

    def post(self, path: str, **options: Any) -> httpx2.Response:
        return self._client.post(self.url + path, **options)

    def delete_weights(self, name: str, token: str) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return self._client.delete(f"{self.url}/weights/{name}", headers=headers).status_code

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        rows = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, rows))

    def connect(self, room: int = 0) -> socket.socket:
        """A connection that is closed with the server, if not before.   room: bytes that may wait for it."""
        connection = socket.socket()
        self._connections.append(connection)
        connection.settimeout(GUARD_SECONDS)
        if room:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def send_json(self, path: str, body: dict[str, Any], room: int = 0) -> socket.socket:
        """A request sent by hand, for a client that will not wait for the answer.   room: as in `connect`."""
        raw = json.dumps(body).encode()
        connection = self.connect(room)
        head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + raw)
        return connection

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(GUARD_SECONDS)

    def close(self) -> None:
        for connection in (self._client, *self._connections):
            connection.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


StartServer = Callable[..., Server]
