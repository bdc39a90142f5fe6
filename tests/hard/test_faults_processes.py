"""Killed servers, full disks, no memory, clocks that jump, clients that hang.

Each fault strikes at a few random moments in `make test-slow`, and at 50 in `make faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running import options, run
from serving import ADMIN, Server, needs_library, save_tiny, serving, until

pytestmark = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and Linux's mounts"),
]

SHORT = {"prompt": "waa", "max_tokens": 3, "seed": 1}
LIMITS = {"RNN_MAX_TOKENS": "100000", "RNN_MAX_REQUEST_TOKENS": "100000"}
LONG = {"prompt": "waa", "max_tokens": 1000, "ignore_eos": True, "stream": True}


# ---- kill -9 of the server during an upload --------------------------------------------------------------------------


def test_a_server_killed_in_uploads_serves_what_was_whole(tmp_path: Path, moments: int) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    files = [save_tiny(tmp_path, f"version{seed}", vocab=600, hidden=200, seed=seed).read_bytes() for seed in (1, 2)]
    known = {hashlib.sha256(raw).hexdigest() for raw in files}
    (folder / "demo.safetensors").write_bytes(files[0])
    generator = random.Random(1)
    seen = set()
    for moment in range(moments):
        server = Server(folder, tmp_path / "log", RNN_UPLOAD_SECONDS="0.5")
        listed = server.get("/weights").json()["weights"]
        assert [(each["name"], each["problem"]) for each in listed] == [("demo", None)]
        reply = server.post("/generate/c", json=SHORT)
        assert reply.status_code == 200 and reply.json()["weights"]["sha256"] in known
        seen.add(reply.json()["weights"]["sha256"])

        def upload(server: Server = server, raw: bytes = files[(moment + 1) % 2]) -> None:
            with contextlib.suppress(httpx2.TransportError):
                server.post("/weights", files={"file": ("demo", raw)}, data={"overwrite": "true"}, headers=ADMIN)

        client = threading.Thread(target=upload)
        client.start()
        time.sleep(generator.uniform(0, 0.7))
        server.process.kill()
        client.join()
        server.close()
    assert hashlib.sha256((folder / "demo.safetensors").read_bytes()).hexdigest() in known
    for path in folder.glob(".*"):
        os.utime(path, (1, 1))
    server = Server(folder, tmp_path / "log")
    assert os.listdir(folder) == ["demo.safetensors"]  # the next start removes unfinished uploads
    server.close()


# ---- Disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    gc.collect()
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_in_training(disk: Path, text: Path) -> None:
    out = disk / "model.safetensors"
    assert run("c", *options(text, out)).returncode == 0
    before = out.read_bytes()
    fill(disk)
    done = run("c", *options(text, out, epochs=4, seed=9), "--overwrite")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "No space left" in done.stderr.splitlines()[-1]
    assert out.read_bytes() == before
    assert not list(disk.glob(".*"))


def test_a_full_disk_at_an_upload(disk: Path, tmp_path: Path) -> None:
    raw = save_tiny(tmp_path, "new", vocab=600, hidden=60).read_bytes()
    save_tiny(disk)
    with serving(disk) as client:
        filler = fill(disk)
        reply = client.post("/weights", files={"file": ("new", raw)}, headers=ADMIN)
        assert (reply.status_code, reply.json()["code"]) == (507, "no_space")
        assert sorted(os.listdir(disk)) == ["demo.safetensors", "filler"]
        assert client.post("/generate/c", json=SHORT).status_code == 200
        filler.unlink()
        assert client.post("/weights", files={"file": ("new", raw)}, headers=ADMIN).status_code == 201


def test_a_folder_that_is_read_only(disk: Path, text: Path, tmp_path: Path) -> None:
    raw = save_tiny(disk).read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # refuses even root
    with serving(disk) as client:
        assert client.post("/generate/c", json=SHORT).status_code == 200
        upload = client.post("/weights", files={"file": ("new", raw)}, headers=ADMIN)
        delete = client.delete("/weights/demo", headers=ADMIN)
        for reply in (upload, delete):
            assert (reply.status_code, reply.json()["code"]) == (507, "no_space"), reply.text
            assert "not writable" in reply.json()["detail"]
        assert client.get("/ready").status_code == 200
    done = run("c", *options(text, disk / "model.safetensors"))
    assert done.returncode == 1 and "Read-only" in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


# ---- Memory ---------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_is_an_error_of_that_request(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder)
    save_tiny(folder, "large", vocab=650, embed=2000, hidden=4000)
    server = Server(folder, tmp_path / "log", RNN_WEIGHTS_MODE="read", RNN_LOG_LEVEL="warning")
    try:
        assert server.post("/generate/c", json=SHORT).status_code == 200
        size = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size + (40 << 20), resource.RLIM_INFINITY))
        for _ in range(3):
            reply = server.post("/generate/c", json={**SHORT, "weights": "large"})
            assert (reply.status_code, reply.json()["code"]) == (503, "weights_unusable"), reply.text
            assert "memory" in reply.json()["detail"]
            assert server.post("/generate/c", json=SHORT).status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert server.post("/generate/c", json={**SHORT, "weights": "large"}).status_code == 200
    finally:
        server.close()


def test_a_step_without_memory_is_an_error_of_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder)
    with serving(folder) as client:
        assert client.post("/generate/c", json=SHORT).status_code == 200
        engine = client.app.state.service.registry.get("demo").engine("c")

        def fails(*_: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(engine, "step", fails)
            reply = client.post("/generate/c", json=SHORT)
            assert (reply.status_code, reply.json()["code"]) == (503, "no_memory")
        assert client.post("/generate/c", json=SHORT).status_code == 200


# ---- Clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["+1d", "-1d"])
def test_a_clock_that_jumps_disturbs_nobody(tmp_path: Path, step: str) -> None:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    folder, clock = tmp_path / "weights", tmp_path / "clock"
    folder.mkdir()
    save_tiny(folder, vocab=600, hidden=40)
    clock.write_text("+0")
    fake = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    server = Server(folder, tmp_path / "log", LD_PRELOAD=str(found[0]), RNN_REQUEST_SECONDS="60", **LIMITS, **fake)
    try:
        streamed = server.send_json("/generate/c", {**LONG, "max_tokens": 100_000})
        received = streamed.recv(1000)
        (tmp_path / "stepped").write_text(step)
        (tmp_path / "stepped").replace(clock)  # at once: the library reads it whenever it is asked for the time
        while received.count(b"data:") < 300:
            piece = streamed.recv(65536)
            assert piece, received[-500:]
            received += piece
        assert b"event: error" not in received
        streamed.close()
        before = time.monotonic()
        reply = server.post("/generate/c", json=SHORT)
        assert reply.status_code == 200 and 0 <= reply.json()["timings"]["total_ms"] < 60_000
        assert time.monotonic() - before < 60
        assert "rnn_request_duration" in server.get("/metrics").text
        days = {line["time"][:10] for line in server.lines()}
        assert len(days) == 2, days  # the log's clock did jump
        assert server.terminate() == 0
    finally:
        server.close()


# ---- Clients --------------------------------------------------------------------------------------------------------


def processes(server: Server) -> Path:
    return Path(f"/proc/{server.process.pid}")


def resident(server: Server) -> int:
    return int((processes(server) / "statm").read_text().split()[1]) * resource.getpagesize()


def files_open(server: Server) -> int:
    return len(os.listdir(processes(server) / "fd"))


def idle(server: Server) -> bool:
    """Return whether nothing runs or waits but this request."""
    names = ("rnn_sequences_running", "rnn_sequences_waiting")
    return server.metric("rnn_requests_in_flight") == 1 and not any(server.metric(name) for name in names)


async def ask(server: Server, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    head = f"POST /generate/c HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}"
    writer.write(head.encode() + b"\r\n\r\n" + raw)
    await writer.drain()
    return reader, writer


def close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.transport.abort()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder, vocab=600, hidden=40)
    server = Server(folder, tmp_path / "log", RNN_LOG_LEVEL="warning")
    assert server.post("/generate/c", json=SHORT).status_code == 200
    yield server
    server.close()


def test_clients_that_read_a_byte_a_second(server: Server, moments: int) -> None:
    count, seconds = (200, 30) if moments >= 50 else (40, 2)

    async def slow(readers: list[asyncio.StreamReader]) -> None:
        reader, writer = await ask(server, {**LONG, "top_logprobs": 20})
        readers.append(reader)
        for _ in range(seconds):
            assert len(await reader.read(1)) == 1
            await asyncio.sleep(1)
        close(writer)

    async def clients() -> None:
        readers: list[asyncio.StreamReader] = []
        tasks = [asyncio.create_task(slow(readers)) for _ in range(count)]
        until_all = time.monotonic() + 30
        while len(readers) < count and time.monotonic() < until_all:
            await asyncio.sleep(0.05)
        for _ in range(5):  # an ordinary client
            reply = await asyncio.to_thread(server.post, "/score", json={"text": "waa wab wac"})
            assert reply.status_code in (200, 429)
            health = await asyncio.to_thread(server.get, "/health")
            assert health.status_code == 200
            await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)

    before = files_open(server)
    asyncio.run(clients())
    until(lambda: idle(server))
    until(lambda: files_open(server) <= before)
    assert server.post("/generate/c", json=SHORT).status_code == 200
    assert "Traceback" not in server.text()


def test_clients_that_hang_up_at_random(server: Server, moments: int) -> None:
    count = 100 * moments
    generator = random.Random(2)
    statuses: list[int] = []

    async def one(gate: asyncio.Semaphore) -> None:
        async with gate:
            body = {**LONG, "max_tokens": 30, "stream": generator.random() < 0.5, "seed": generator.randrange(1000)}
            reader, writer = await ask(server, body)
            if generator.random() < 0.3:
                await asyncio.sleep(generator.uniform(0, 0.2))
            else:
                status = await reader.readline()
                statuses.append(int(status.split()[1]))
                with contextlib.suppress(asyncio.TimeoutError):
                    while await asyncio.wait_for(reader.read(4096), 0.2):
                        pass
            close(writer)

    async def clients(count: int) -> None:
        gate = asyncio.Semaphore(24)
        await asyncio.gather(*(one(gate) for _ in range(count)))

    asyncio.run(clients(100))  # let the allocator and the caches take their one-time memory
    until(lambda: idle(server))
    memory, files = resident(server), files_open(server)
    asyncio.run(clients(count))
    until(lambda: idle(server))
    until(lambda: files_open(server) <= files)
    assert set(statuses) <= {200, 429} and statuses.count(200) > count // 3
    assert resident(server) < 1.05 * memory + (2 << 20)
    assert "Traceback" not in server.text()


def test_a_server_out_of_files_comes_back(server: Server) -> None:
    """With more connections than it may open, it serves those that have one, and the rest once there is room."""
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files_open(server) + 12, 4096))
    connections = [server.connect() for _ in range(40)]
    time.sleep(0.3)
    for connection in connections:
        connection.close()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    assert until(lambda: server.post("/generate/c", json=SHORT).status_code == 200)
    until(lambda: idle(server))
