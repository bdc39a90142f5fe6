"""A real server process: bodies and uploads that come slowly, or never, or as garbage."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from serving import ADMIN, UPLOAD_HEAD, StartServer, needs_library, read_until, until

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library

JSON = "content-type: application/json\r\n"


def test_half_a_request(start: StartServer, server_folder: Path) -> None:
    server = start(RNN_REQUEST_SECONDS="0.3", RNN_UPLOAD_SECONDS="0.3")
    for path in ("/generate/c", "/score", "/v1/completions"):
        slow = server.connect()
        slow.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\n{JSON}content-length: 100\r\n\r\n{{".encode())
        answer = read_until(slow, b'"slow_request"')
        assert b"HTTP/1.1 408" in answer and (b'{"error": ' in answer) == (path == "/v1/completions")
        slow.close()
    gone = server.connect()
    gone.sendall(f"POST /generate/c HTTP/1.1\r\nhost: x\r\n{JSON}content-length: 100\r\n\r\n{{".encode())
    gone.close()
    assert server.get("/health").status_code == 200


def test_half_an_upload_leaves_nothing(start: StartServer, server_folder: Path) -> None:
    server = start()
    connection = server.connect()
    connection.sendall(UPLOAD_HEAD)
    until(lambda: len(os.listdir(server_folder)) == 2)
    assert len(server.get("/weights").json()["weights"]) == 1  # nobody sees it
    other = server.post("/weights", files={"file": ("x", b"x")}, headers=ADMIN)
    assert other.status_code == 429 and int(other.headers["retry-after"]) > 0
    connection.close()
    until(lambda: os.listdir(server_folder) == ["demo.safetensors"])
    assert 'result="abandoned"} 1.0' in server.get("/metrics").text


def test_a_slow_upload_is_given_up(start: StartServer, server_folder: Path) -> None:
    server = start(RNN_UPLOAD_SECONDS="0.3")
    connection = server.connect()
    connection.sendall(UPLOAD_HEAD)
    assert b"HTTP/1.1 408" in read_until(connection, b"\r\n\r\n")
    connection.close()
    assert os.listdir(server_folder) == ["demo.safetensors"]


def test_a_refusal_reaches_a_client_that_is_still_sending(start: StartServer) -> None:
    server = start(RNN_MAX_UPLOAD_BYTES="100000")
    big = bytes(5 << 20)
    assert server.post("/generate/c", content=big, headers={"content-type": "application/json"}).status_code == 413
    assert server.post("/weights", files={"file": ("x", big)}, headers=ADMIN).status_code == 413
    assert server.post("/weights", files={"file": ("x", big)}).status_code == 401
    expecting = server.connect()
    expecting.sendall(
        f"POST /score HTTP/1.1\r\nhost: x\r\n{JSON}expect: 100-continue\r\ncontent-length: 5000000\r\n\r\n".encode()
    )
    assert b"413" in read_until(expecting, b"\r\n\r\n").splitlines()[0]  # without having asked for the body
    expecting.close()


@pytest.mark.parametrize("path", ["/weights", "/generate/c", "/v1/completions"])
def test_who_has_no_token_is_refused_before_the_body(start: StartServer, path: str) -> None:
    server = start(RNN_API_TOKEN="user-secret")
    connection = server.connect()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong-secret\r\ncontent-length: 5000\r\n\r\n"
    connection.settimeout(1.5)  # less than a client that still sends is heard out
    connection.sendall(head.encode())
    assert b"HTTP/1.1 401" in read_until(connection, b"unauthorized" if path == "/weights" else b"token")
    connection.close()


def test_garbage_does_not_disturb(start: StartServer) -> None:
    server = start()
    for garbage in (
        b"\0\1\2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 1_000_000,
        b"hello\r\n\r\n",
    ):
        connection = server.connect()
        with contextlib.suppress(ConnectionError):  # hung up on, before all was sent
            connection.sendall(garbage)
            assert b" 400 " in connection.recv(65536)
        connection.close()
    assert server.get("/health").status_code == 200
    assert "Traceback" not in server.text()
