"""A real server process: streaming as it happens, clients that go away, signals, workers, and what a start loads."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import ROOT
from serving import ADMIN, GUARD_SECONDS, Server, needs_library, read_all, read_until, save_tiny, until

from service.settings import Settings, SettingsError, table, variable

pytestmark = needs_library

ENDLESS = 1 << 20
UNLIMITED = {"RNN_MAX_TOKENS": str(ENDLESS), "RNN_MAX_REQUEST_TOKENS": str(ENDLESS)}
BODY = {"prompt": "waa", "max_tokens": ENDLESS, "ignore_eos": True}

StartServer = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder, vocab=600, hidden=40)
    return folder


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(*options: str, **environment: str) -> Server:
        servers.append(Server(folder, tmp_path / f"log{len(servers)}", *options, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# ---- Streams and clients that go away -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "stream"),
    [("c", False), ("c", True), ("torch", True), pytest.param("torch", False, marks=pytest.mark.slow)],
)
def test_a_client_that_goes_away_stops_its_work(start: StartServer, backend: str, stream: bool) -> None:
    server = start(RNN_BACKENDS="c,torch", RNN_PRELOAD=backend, **UNLIMITED)
    connection = server.send_json(f"/generate/{backend}", {**BODY, "stream": stream})
    until(lambda: server.metric("rnn_tokens_total") > 3)
    if stream:
        read_until(connection, b"data: ")
    connection.close()
    until(lambda: server.metric("rnn_sequences_running") == 0)
    assert server.metric("rnn_sequences_cancelled_total") == 1
    made = server.metric("rnn_tokens_total")
    assert made < ENDLESS
    time.sleep(0.1)
    assert server.metric("rnn_tokens_total") == made
    line = until(lambda: [line for line in server.lines() if "generate" in line["message"]])[0]
    assert line["httpRequest"]["status"] == (200 if stream else 499) and line["severity"] == "INFO"


def test_tokens_come_as_they_are_made_and_comments_in_silence(start: StartServer) -> None:
    server = start(RNN_MAX_SEQUENCES="1", RNN_MAX_WAITING="64", RNN_COMMENT_SECONDS="0.05", **UNLIMITED)
    first = server.send_json("/generate/c", {**BODY, "stream": True})
    head = read_until(first, b"data: ")  # long before its last token
    assert b"HTTP/1.1 200" in head and b"content-type: text/event-stream" in head
    second = server.send_json("/generate/c", {**BODY, "max_tokens": 2, "stream": True})
    waiting = read_until(second, b": still working")
    assert b"data:" not in waiting
    first.close()
    assert b"[DONE]" in read_until(second, b"[DONE]")
    second.close()


def test_a_slow_reader_holds_nobody_back(start: StartServer) -> None:
    server = start(**UNLIMITED)
    # Some 5 MB, which is more than the system takes in for a connection; and it does not read.
    slow = server.send_json("/generate/c", {**BODY, "max_tokens": 4000, "top_logprobs": 20, "stream": True})
    reply = server.post("/generate/c", json={**BODY, "max_tokens": 50, "seed": 1})
    assert reply.status_code == 200 and len(reply.json()["choices"][0]["tokens"]) == 50
    until(lambda: server.metric("rnn_sequences_running") == 0)  # the slow one's tokens are made, and wait for it
    text = read_until(slow, b"[DONE]")
    slow.close()
    assert text.count(b'"token":') == 4000


def test_who_never_reads_keeps_no_connection(start: StartServer) -> None:
    server = start(RNN_REQUEST_SECONDS="5", **UNLIMITED)

    def open_sockets() -> int:
        return sum("socket:" in os.readlink(link) for link in Path(f"/proc/{server.process.pid}/fd").iterdir())

    until(lambda: server.metric("rnn_requests_in_flight") == 1)  # only the one that asks
    before = open_sockets()
    # Each some MB, which is more than the system takes in for a connection.
    big = {**BODY, "top_logprobs": 20}
    whole = server.send_json("/generate/c", {**big, "max_tokens": 3000})
    read_until(whole, b"HTTP/1.1 200")
    streamed = server.send_json("/generate/c", {**big, "stream": True})
    read_until(streamed, b"data: ")
    assert open_sockets() > before
    until(lambda: server.metric("rnn_requests_in_flight") == 1)
    until(lambda: open_sockets() <= before)
    assert server.metric("rnn_sequences_running") == 0
    assert not [line for line in server.lines() if line["severity"] == "ERROR"]
    streamed.close()
    whole.close()


def test_a_large_reply_arrives_whole(start: StartServer) -> None:
    server = start(RNN_REQUEST_SECONDS="60", **UNLIMITED)
    reply = server.post("/generate/c", json={**BODY, "max_tokens": 3000, "top_logprobs": 20, "seed": 1})
    assert len(reply.content) > 1_000_000 and int(reply.headers["content-length"]) == len(reply.content)
    assert len(reply.json()["choices"][0]["tokens"]) == 3000


def test_many_streams_at_once_each_get_their_own_text(start: StartServer) -> None:
    server = start(RNN_MAX_SEQUENCES="8")
    bodies = [{"prompt": "waa", "max_tokens": 30, "seed": seed, "ignore_eos": True} for seed in range(24)]
    alone = [server.post("/generate/c", json=body).json()["choices"][0]["text"] for body in bodies]
    together: dict[int, str] = {}

    def ask(index: int) -> None:
        together[index] = server.post("/generate/c", json=bodies[index]).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(24)] == alone


# ---- Bodies and uploads that come slowly, or not at all -------------------------------------------------------------


def test_half_a_request(start: StartServer, folder: Path) -> None:
    server = start(RNN_REQUEST_SECONDS="0.3", RNN_UPLOAD_SECONDS="0.3")
    for path in ("/generate/c", "/score", "/v1/completions"):
        slow = server.connect()
        slow.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
        answer = read_until(slow, b'"slow_request"')
        assert b"HTTP/1.1 408" in answer and (b'{"error": ' in answer) == (path == "/v1/completions")
        slow.close()
    gone = server.connect()
    gone.sendall(b"POST /generate/c HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    gone.close()
    assert server.get("/health").status_code == 200


UPLOAD_HEAD = (
    b"POST /weights HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin-secret\r\n"
    b"content-type: multipart/form-data; boundary=B\r\ncontent-length: 100000\r\n\r\n"
    b'--B\r\ncontent-disposition: form-data; name="file"; filename="half.safetensors"\r\n\r\nhalf'
)


def test_half_an_upload_leaves_nothing(start: StartServer, folder: Path) -> None:
    server = start()
    connection = server.connect()
    connection.sendall(UPLOAD_HEAD)
    until(lambda: len(os.listdir(folder)) == 2)
    assert len(server.get("/weights").json()["weights"]) == 1  # nobody sees it
    other = server.post("/weights", files={"file": ("x", b"x")}, headers=ADMIN)
    assert other.status_code == 429 and int(other.headers["retry-after"]) > 0
    connection.close()
    until(lambda: os.listdir(folder) == ["demo.safetensors"])
    assert 'result="abandoned"} 1.0' in server.get("/metrics").text


def test_a_slow_upload_is_given_up(start: StartServer, folder: Path) -> None:
    server = start(RNN_UPLOAD_SECONDS="0.3")
    connection = server.connect()
    connection.sendall(UPLOAD_HEAD)
    assert b"HTTP/1.1 408" in read_until(connection, b"\r\n\r\n")
    connection.close()
    assert os.listdir(folder) == ["demo.safetensors"]


def test_a_refusal_reaches_a_client_that_is_still_sending(start: StartServer) -> None:
    server = start(RNN_MAX_UPLOAD_BYTES="100000")
    big = bytes(5 << 20)
    assert server.post("/generate/c", content=big).status_code == 413
    assert server.post("/weights", files={"file": ("x", big)}, headers=ADMIN).status_code == 413
    assert server.post("/weights", files={"file": ("x", big)}).status_code == 401
    expecting = server.connect()
    expecting.sendall(
        b"POST /generate/c HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5000000\r\n\r\n"
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


SCHEMATHESIS = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 413, 422, 429]
"""


@pytest.mark.slow
@pytest.mark.parametrize("token", ["user-secret", "admin-secret"])
def test_every_answer_is_what_the_openapi_document_says(start: StartServer, tmp_path: Path, token: str) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    if not program.is_file():
        pytest.skip("schemathesis is not installed: make test installs it")
    server = start(RNN_BACKENDS="c,torch", RNN_API_TOKEN="user-secret", RNN_PRELOAD="torch")
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    command = [program, "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {token}", "--no-color"]
    # Not this one: a prompt of words that no vocabulary has keeps to the schema, too.
    limits = ["--exclude-checks", "positive_data_acceptance", "--max-examples", "40", "--continue-on-failure"]
    done = subprocess.run([*command, *limits], cwd=tmp_path, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout.decode()
    assert not [line for line in server.lines() if "stack_trace" in line]


# ---- Stopping -------------------------------------------------------------------------------------------------------


def test_sigterm_lets_requests_finish(start: StartServer) -> None:
    server = start(RNN_MAX_TOKENS="5000", RNN_MAX_REQUEST_TOKENS="5000")
    connection = server.send_json("/generate/c", {**BODY, "max_tokens": 5000, "stream": True})
    read_until(connection, b"data: ")
    server.process.send_signal(signal.SIGTERM)
    assert b"[DONE]" in read_until(connection, b"[DONE]")
    connection.close()
    assert server.process.wait(GUARD_SECONDS) == 0
    assert all(line["severity"] in ("INFO", "WARNING") for line in server.lines())


def test_sigterm_cuts_what_does_not_finish(start: StartServer, folder: Path) -> None:
    server = start(RNN_SHUTDOWN_SECONDS="0.5", **UNLIMITED)
    streamed = server.send_json("/generate/c", {**BODY, "stream": True})
    whole = server.send_json("/generate/c", BODY)
    upload = server.connect()
    upload.sendall(UPLOAD_HEAD)
    until(lambda: server.metric("rnn_sequences_running") == 2)
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
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_sigterm_does_not_wait_for_a_client_that_does_not_read(start: StartServer) -> None:
    server = start(RNN_SHUTDOWN_SECONDS="0.2", **UNLIMITED)
    # Some 5 MB, which is more than the system takes in for a connection.
    connection = server.send_json("/generate/c", {**BODY, "max_tokens": 4000, "top_logprobs": 20, "stream": True})
    until(lambda: server.metric("rnn_tokens_total") == 4000)
    assert server.terminate() == 0
    connection.close()


def test_an_idle_server_stops_at_once(start: StartServer) -> None:
    server = start()
    assert server.terminate() == 0


def test_sigterm_while_weights_are_preloaded(folder: Path) -> None:
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
    environment = {**os.environ, "RNN_WEIGHTS_DIR": str(folder), "RNN_BACKENDS": "c", "RNN_PRELOAD": "c"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, timeout=GUARD_SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"loaded demo for c" in done.stderr and b"stopping" in done.stderr


# ---- Starting -------------------------------------------------------------------------------------------------------


HEAVY = ("gensim", "datasets", "matplotlib", "pandas", "scipy", "openai")


@pytest.mark.parametrize(
    ("backend", "heavy"),
    [
        ("c", ("torch", "rnnlm.training", "rnnlm.data.corpus", "rnnlm.data.embeddings", *HEAVY)),
        # Torch's compiler takes a second, 70 MB and a folder to write to, which a read-only container lacks.
        ("torch", ("torch._dynamo", "torch._inductor", *HEAVY)),
    ],
)
def test_serving_loads_nothing_heavy(folder: Path, backend: str, heavy: Sequence[str]) -> None:
    program = """
import asyncio, json, sys
import api
from service.request import Request

async def main():
    async with api.app.router.lifespan_context(api.app):
        generator = api.app.state.service.generator
        request = Request(backend=sys.argv[1], texts=("waa",), max_tokens=3)
        await generator.start(request)
        await request.wait()
        assert request.sequences[0].steps

asyncio.run(main())
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""
    environment = {**os.environ, "RNN_WEIGHTS_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", program, backend, *heavy],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=GUARD_SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == []


@pytest.mark.slow
def test_the_start_is_light(start: StartServer) -> None:
    """The first token of the C model within a second of processor time and 120 MB, as bench/load.py prints them. The
    least of three, for the caches may be others' at a time."""
    seconds, megabytes = [], []
    for _ in range(3):
        server = start()
        assert server.post("/generate/c", json={"prompt": "waa", "max_tokens": 1}).status_code == 200
        used = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds.append((int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK"))
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        megabytes.append(
            sum(int(kb) for kb in re.findall(r"^(?:RssAnon|RssShmem):\s+(\d+)", status, re.MULTILINE)) / 1024
        )
        server.terminate()
    assert min(seconds) < 1.0 and max(megabytes) < 120, (seconds, megabytes)


@pytest.mark.slow
def test_make_serve_is_all_it_takes(tmp_path: Path) -> None:
    """The target of the Makefile as it stands, with its trainer and its server, in a copy without weights."""
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "weights", "__pycache__", "results"))
    (copy / "weights").mkdir()
    (copy / ".venv").symlink_to((ROOT / ".venv").resolve())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RNN_")}
    serve = subprocess.Popen(
        ["make", "serve", f"PORT={port}", "-o", ".venv/.run"],
        cwd=copy,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=GUARD_SECONDS) as client:

            def ready() -> bool:
                assert serve.poll() is None, serve.stderr and serve.stderr.read().decode()
                with contextlib.suppress(httpx2.TransportError):
                    return client.get("/ready").status_code == 200
                return False

            for _ in range(20):  # it trains first
                with contextlib.suppress(AssertionError):
                    if until(ready):
                        break
            body = {"prompt": "The prime minister", "max_tokens": 5, "seed": 1}
            for backend in ("c", "torch"):
                assert client.post(f"/generate/{backend}", json=body).json()["weights"]["name"] == "demo"
    finally:
        os.killpg(serve.pid, signal.SIGTERM)
        serve.communicate(timeout=GUARD_SECONDS)


@pytest.mark.slow
def test_torch_can_be_loaded_at_start(start: StartServer) -> None:
    server = start(RNN_BACKENDS="c,torch", RNN_PRELOAD="torch")
    assert any("loaded demo for torch" in line["message"] for line in server.lines())
    assert not any("loaded demo for c" in line["message"] for line in server.lines())


def test_nothing_to_preload_is_no_reason_not_to_start(start: StartServer, folder: Path) -> None:
    (folder / "demo.safetensors").unlink()
    server = start(RNN_PRELOAD="c")
    assert server.get("/health").status_code == 200 and server.get("/ready").status_code == 503


def test_two_workers_share_weights_token_and_uploads(start: StartServer, folder: Path) -> None:
    server = start("--workers", "2", RNN_ADMIN_TOKEN="")
    said = until(
        lambda: (found := re.findall("admin token is ([0-9a-f]{64})", server.text())) and len(found) == 2 and found
    )
    assert said[0] == said[1]
    raw = (folder / "demo.safetensors").read_bytes()
    answered = set()
    for index in range(12):  # each on a connection of its own: both workers get some
        headers = {"authorization": f"Bearer {said[0]}"}
        name = f"new{index}"
        assert server.post("/weights", files={"file": (name, raw)}, headers=headers).status_code == 201
        for _ in range(3):
            reply = server.post("/generate/c", json={"prompt": "waa", "weights": name, "max_tokens": 2, "seed": 1})
            assert reply.status_code == 200
            answered.add(reply.json()["choices"][0]["text"])
        if len({line for line in server.text().splitlines() if '"loaded new' in line}) >= 4:
            break
    assert len(answered) == 1
    assert server.delete_weights("new0", said[0]) == 204
    assert all(
        server.post("/generate/c", json={"prompt": "waa", "weights": "new0"}).status_code == 404 for _ in range(6)
    )
    assert server.terminate() == 0


def test_two_workers_let_go_of_a_deleted_file_and_tell_of_each_other(
    start: StartServer, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "metrics").mkdir()
    server = start(
        *("--workers", "2", "--log-config", "service/logging.json"),
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "metrics"),
        RNN_WATCH_SECONDS="0.2",
        RNN_PRELOAD="c",
    )
    path = folder / "demo.safetensors"

    def workers() -> set[int]:
        return {line["process"] for line in server.lines() if "loaded demo" in line["message"]}

    def mapping() -> set[int]:
        return {pid for pid in workers() if str(path) in Path(f"/proc/{pid}/maps").read_text()}

    def told() -> set[int]:
        text = server.get("/metrics").text
        return set(map(int, re.findall(r'process_resident_memory_bytes{pid="(\d+)"}', text)))

    assert len(until(lambda: len(workers()) == 2 and workers())) == 2
    assert mapping() == workers() == until(lambda: told() == workers() and told())
    for _ in range(4):
        assert (
            server.post("/generate/c", json={"prompt": "waa", "max_tokens": 5, "ignore_eos": True}).status_code == 200
        )
    assert server.metric("rnn_tokens_total") == 20  # whichever workers wrote them
    path.unlink()
    until(lambda: not mapping())
    killed = next(iter(workers()))
    os.kill(killed, signal.SIGKILL)  # with its gauges as they are
    until(lambda: killed not in told() and len(told()) == 2)
    assert not list((tmp_path / "metrics").glob(f"gauge_live*_{killed}.db"))
    assert server.metric("rnn_requests_in_flight") == 1
    assert server.terminate() == 0
    assert not list((tmp_path / "metrics").glob("gauge_live*.db"))


@pytest.mark.parametrize("options", [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_a_setting_out_of_range_is_told_in_one_line(folder: Path, options: tuple[str, ...]) -> None:
    environment = {**os.environ, "RNN_MAX_TOKENS": "many"}
    command = [sys.executable, "-m", "uvicorn", "api:app", "--port", "0", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=GUARD_SECONDS)
    assert "api.py: RNN_MAX_TOKENS must be an integer, got 'many'" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert options or done.returncode == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "0"),
        ("max_tokens", "1.5"),
        ("request_seconds", "nan"),
        ("request_seconds", "-1"),
        ("max_body_bytes", "10"),
        ("backends", "c,jax"),
        ("backends", ","),
        ("preload", "torch2"),
        ("precision", "float8"),
        ("weights_mode", "copy"),
        ("log_level", "loud"),
        ("api_token", "short"),
        ("admin_token", "with a space"),
        ("max_sequences", "2"),
    ],
)
def test_settings_out_of_range(name: str, value: str) -> None:
    environment = {variable(name): value, **({"RNN_MAX_WAITING": "0"} if name == "max_sequences" else {})}
    with pytest.raises(SettingsError, match=variable(name)) as caught:
        Settings.from_environment(environment)
    assert "\n" not in str(caught.value)


def test_settings_from_the_environment() -> None:
    environment = {"RNN_PRELOAD": "c, torch", "RNN_MAX_TOKENS": "7", "RNN_REQUEST_SECONDS": "2.5", "RNN_API_TOKEN": ""}
    settings = Settings.from_environment(environment)
    assert (settings.preload, settings.max_tokens, settings.request_seconds) == (("c", "torch"), 7, 2.5)
    assert settings.api_token == "" and settings.weights_dir == Path("weights")


def test_the_table_names_every_setting() -> None:
    from dataclasses import fields

    assert all(f"| `{variable(spec.name)}` |" in table() for spec in fields(Settings))


def test_a_slip_of_the_pen_is_told(start: StartServer) -> None:
    server = start(RNN_MAX_TOKNES="5", RNN_QWERTZ="1", RNN_CACHE_DIR="/tmp")
    said = [line["message"] for line in server.lines() if line["logger"] == "api"]
    assert said == [
        "RNN_MAX_TOKNES is not a setting: is RNN_MAX_TOKENS meant?",
        "RNN_QWERTZ is not a setting, and changes nothing",
    ]


def test_no_log_level_hides_the_token_and_nothing_else_shows_one(start: StartServer) -> None:
    server = start(RNN_ADMIN_TOKEN="", RNN_API_TOKEN="user-secret", RNN_LOG_LEVEL="error")
    (line,) = (line for line in server.lines() if "admin token is" in line["message"])
    token = line["message"].rsplit(" ", 1)[1]
    assert len(token) == 64 and line["severity"] == "WARNING"
    for secret in (token, "user-secret"):
        server.get(f"/weights?token={secret}", headers={"authorization": f"Bearer {secret}"})
        server.post("/generate/c", content=b"{", headers={"authorization": f"Bearer {secret}"})
    assert server.text().count(token) == 1 and "user-secret" not in server.text()
    assert "secret" not in repr(Settings(api_token="user-secret", admin_token="admin-secret"))


def test_the_log_is_what_cloud_logging_reads(start: StartServer) -> None:
    server = start(GOOGLE_CLOUD_PROJECT="my-project")
    trace = "105445aa7843bc8bf206b12000100000"
    server.get("/health?secret=1", headers={"x-cloud-trace-context": f"{trace}/1;o=1", "x-request-id": "mine"})
    line: dict[str, Any] = until(lambda: [line for line in server.lines() if line.get("request_id") == "mine"])[0]
    assert line["severity"] == "INFO" and line["message"] == "GET /health 200"
    assert line["httpRequest"]["status"] == 200 and re.fullmatch(r"\d+\.\d+s", line["httpRequest"]["latency"])
    assert line["logging.googleapis.com/trace"] == f"projects/my-project/traces/{trace}"
    assert "secret" not in server.text()
