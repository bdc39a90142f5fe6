"""A real server process: what SIGTERM does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from serving import (
    ENDLESS_BODY,
    GUARD_SECONDS,
    LARGE_BODY,
    UNLIMITED,
    UPLOAD_HEAD,
    StartServer,
    needs_library,
    read_all,
    read_until,
    until,
)

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_sigterm_lets_requests_finish(start: StartServer) -> None:
    server = start(RNN_MAX_TOKENS="5000", RNN_MAX_REQUEST_TOKENS="5000")
    connection = server.send_json("/generate/c", {**ENDLESS_BODY, "max_tokens": 5000, "stream": True})
    read_until(connection, b"data: ")
    server.process.send_signal(signal.SIGTERM)
    assert b"[DONE]" in read_until(connection, b"[DONE]")
    connection.close()
    assert server.process.wait(GUARD_SECONDS) == 0
    assert all(line["severity"] in ("INFO", "WARNING") for line in server.lines())


def test_sigterm_cuts_what_does_not_finish(start: StartServer, server_folder: Path) -> None:
    server = start(RNN_SHUTDOWN_SECONDS="0.5", **UNLIMITED)
    streamed = server.send_json("/generate/c", {**ENDLESS_BODY, "stream": True})
    whole = server.send_json("/generate/c", ENDLESS_BODY)
    upload = server.connect()
    upload.sendall(UPLOAD_HEAD)
    until(lambda: server.metric("rnn_sequences_running") == 2)
    until(lambda: server.metric("rnn_requests_in_flight") == 4)  # the upload has arrived, too; the last one asks
    read_until(streamed, b"data: ")
    server.process.send_signal(signal.SIGTERM)
    cut = read_all(streamed)
    assert b"event: error" in cut and b"shutting_down" in cut
    for connection in (whole, upload):
        answer = read_all(connection)
        assert b"HTTP/1.1 503" in answer and b"retry-after" in answer
    for connection in (streamed, whole, upload):
        connection.close()
    assert server.process.wait(GUARD_SECONDS) == 0
    assert not [name for name in os.listdir(server_folder) if name.startswith(".")]


def test_sigterm_does_not_wait_for_a_client_that_does_not_read(start: StartServer) -> None:
    server = start(RNN_SHUTDOWN_SECONDS="0.2", **UNLIMITED)
    connection = server.send_json("/generate/c", {**LARGE_BODY, "stream": True})
    until(lambda: server.metric("rnn_tokens_total") == 4000)
    assert server.terminate() == 0
    connection.close()


def test_an_idle_server_stops_at_once(start: StartServer) -> None:
    server = start()
    assert server.terminate() == 0


def test_sigterm_while_weights_are_preloaded(server_folder: Path) -> None:
    program = """
import os, signal, time
import uvicorn
import api

registry = api.app.state.service.registry
load = registry.engine

def engine(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    return load(*arguments)

registry.engine = engine
uvicorn.run(api.app, port=0)
"""
    environment = {**os.environ, "RNN_WEIGHTS_DIR": str(server_folder), "RNN_BACKENDS": "c", "RNN_PRELOAD": "c"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, timeout=GUARD_SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"loaded demo for c" in done.stderr and b"stopping" in done.stderr
