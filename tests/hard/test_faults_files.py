"""Weights files that change while they are served: in place, against the rules, or by renaming."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SOURCES
from serving import GUARD_SECONDS, Server, needs_library, read_until, save_tiny, serving

from rnnlm import binding, library

pytestmark = needs_library
posix = pytest.mark.skipif(os.name != "posix", reason="Windows does not truncate a mapped file")

# Big enough for a file of many pages, and a request that runs for seconds.
SIZES = {"vocab": 650, "embed": 20, "hidden": 300}
LONG = {"prompt": "waa", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
LIMITS = {"RNN_MAX_TOKENS": "100000", "RNN_MAX_REQUEST_TOKENS": "100000"}
SHORT = {"prompt": "waa", "max_tokens": 3, "seed": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tiny(folder, **SIZES)
    return folder


@pytest.fixture(params=["map", "read"])
def server(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(folder, tmp_path / "log", RNN_WEIGHTS_MODE=request.param, RNN_BACKENDS="c,torch", **LIMITS)
    server.mode = request.param
    yield server
    server.close()


# ---- A server whose file changes ------------------------------------------------------------------------------------


def truncate(path: Path, folder: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path, folder: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def copy_over(path: Path, folder: Path) -> None:
    shutil.copyfile(save_tiny(folder.parent, "other", seed=5, **SIZES), path)


def write_into(path: Path, folder: Path) -> None:
    """Write another model's bytes over this one's; the file never gets shorter."""
    with path.open("r+b") as file:
        file.write(save_tiny(folder.parent, "other", seed=5, **SIZES).read_bytes())


@posix
@pytest.mark.parametrize("backend", ["c", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_file_changed_in_place(server: Server, folder: Path, backend: str) -> None:
    path = folder / "demo.safetensors"
    sha256 = server.post(f"/generate/{backend}", json=SHORT).json()["weights"]["sha256"]
    for harm, afterwards in ((truncate, 503), (cut, 503), (copy_over, 200), (write_into, 200)):
        streamed = server.send_json(f"/generate/{backend}", LONG)
        read_until(streamed, b"data: ")
        harm(path, folder)
        if server.mode == "map":  # its requests end with an error: no word comes from other weights
            end = read_until(streamed, b"weights_unusable")
            assert b"event: error" in end and b"[DONE]" not in end
        streamed.close()
        reply = server.post(f"/generate/{backend}", json=SHORT)
        assert reply.status_code == afterwards, reply.text
        if afterwards == 200:
            assert reply.json()["weights"]["sha256"] != sha256
        else:
            assert reply.json()["code"] == "weights_unusable" and "cannot be used" in reply.json()["detail"]
        os.replace(save_tiny(folder.parent, "sound", **SIZES), path)
        reply = server.post(f"/generate/{backend}", json=SHORT)
        assert reply.status_code == 200 and reply.json()["weights"]["sha256"] == sha256
    assert "Traceback" not in server.text()


def test_a_file_replaced_or_deleted_disturbs_nobody(server: Server, folder: Path) -> None:
    path = folder / "demo.safetensors"
    for harm in ("replace", "delete"):
        before = server.post("/generate/c", json=SHORT).json()["weights"]["sha256"]
        streamed = server.send_json("/generate/c", {**LONG, "max_tokens": 3000})
        read_until(streamed, b"data: ")
        if harm == "replace":
            os.replace(save_tiny(folder.parent, "other", seed=5, **SIZES), path)
        else:
            path.unlink()
        after = server.post("/generate/c", json=SHORT)
        end = read_until(streamed, b"[DONE]")
        assert before.encode() in end  # the weights that it started with
        streamed.close()
        if harm == "replace":
            assert after.status_code == 200 and after.json()["weights"]["sha256"] != before
        else:
            assert after.status_code == 503 and after.json()["code"] == "not_ready"


def test_an_entry_whose_pages_are_lost_is_loaded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a disk failure, which changes neither the size nor the time of the file."""
    with serving(folder) as client:
        assert client.post("/generate/c", json=SHORT).status_code == 200
        registry = client.app.state.service.registry
        entry = registry.get("demo")
        entry.intact = entry.engine("c").intact = lambda: False
        work = client.post("/generate/c", json=SHORT)
        assert work.status_code == 200 and registry.get("demo") is not entry


def test_weights_replaced_as_soon_as_they_are_loaded_serve_the_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder) as client:
        registry = client.app.state.service.registry
        load = registry.engine

        def and_replaced(*arguments: Any) -> Any:
            loaded = load(*arguments)
            os.replace(save_tiny(folder.parent, "other", seed=5, **SIZES), folder / "demo.safetensors")
            return loaded

        monkeypatch.setattr(registry, "engine", and_replaced)
        assert client.post("/generate/c", json=SHORT).status_code == 200


def test_memory_that_was_short_is_no_lasting_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mmap.mmap

    def short(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    with serving(folder) as client:
        monkeypatch.setattr("mmap.mmap", short)
        reply = client.post("/generate/c", json=SHORT)
        assert reply.status_code == 503 and "Cannot allocate memory" in reply.json()["detail"]
        assert client.get("/ready").status_code == 503
        monkeypatch.setattr("mmap.mmap", real)
        assert client.get("/ready").status_code == 200
        assert client.post("/generate/c", json=SHORT).status_code == 200


# ---- The guard ------------------------------------------------------------------------------------------------------

GUARD = """
import os, signal, sys
import numpy as np
from rnnlm import binding, library

path, what = sys.argv[1:]
page = os.sysconf("SC_PAGE_SIZE")
def mapped(name):
    with open(name, "wb") as file:
        file.write(b"x" * (8 * page))
    return np.memmap(name, np.uint8, "r")

first, second = mapped(path), mapped(path + "2")
lost, also_lost = binding.guard(first), binding.guard(second)
assert not lost() and first[-1] == ord("x")
if what == "guarded":
    os.truncate(path, 3 * page + 5)
    assert first[2 * page] == ord("x") and not lost()
    assert first[7 * page] == 0 and lost() and not also_lost()
    assert first[3 * page] == ord("x") and first[3 * page + 5] == 0 and first[4 * page] == 0  # a signal here, too
    os.truncate(path + "2", 0)
    assert second.sum() == 0 and also_lost()
    print("lived")
elif what == "removed":
    address = first.ctypes.data
    del first
    third = np.memmap(path, np.uint8, "r")
    os.truncate(path, 0)
    print(third[0])
elif what == "other":
    other = mapped(path + "3")
    os.truncate(path + "3", 0)
    print(other[0])
elif what == "sent":
    os.kill(os.getpid(), signal.SIGBUS)
elif what == "handler":  # the earlier handler gets the signals that are not ours
    signal.signal(signal.SIGBUS, lambda *_: print("asked"))
    binding.guard(mapped(path + "4"))
    os.kill(os.getpid(), signal.SIGBUS)
    print("lived")
"""


@posix
@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("guarded", 0, "lived"),
        ("removed", -signal.SIGBUS, ""),
        ("other", -signal.SIGBUS, ""),
        ("sent", -signal.SIGBUS, ""),
        ("handler", 0, "asked\nlived"),
    ],
)
def test_the_guard(tmp_path: Path, what: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARD, str(tmp_path / "file"), what],
        cwd=ROOT,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0"},
        capture_output=True,
        text=True,
        timeout=GUARD_SECONDS,
    )
    assert (done.returncode, done.stdout.strip()) == (code, said), done.stderr


@posix
def test_the_guard_refuses(tmp_path: Path) -> None:
    mapping = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    lib = library.library()
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    assert lib.rnn_guard_add(None, 5) == -1
    assert lib.rnn_guard_add(address, 0) == -2
    assert lib.rnn_guard_add(address, 2**64 - 1) == -2
    assert lib.rnn_guard_add(address + 8, 5) == -6
    lib.rnn_guard_remove(None)
    assert lib.rnn_guard_lost(address) == 0
    added = 0
    while added <= 4096 and lib.rnn_guard_add(address, mmap.PAGESIZE) == 0:
        added += 1
    assert 4000 < added <= 4096 and lib.rnn_guard_add(address, mmap.PAGESIZE) == -4
    for _ in range(added):
        lib.rnn_guard_remove(address)
    assert lib.rnn_guard_add(address, mmap.PAGESIZE) == 0
    lib.rnn_guard_remove(address)


@posix
def test_many_threads_lose_their_pages_at_once(tmp_path: Path) -> None:
    def lose(index: int) -> None:
        path = tmp_path / str(index)
        for _ in range(50):
            path.write_bytes(b"x" * 100_000)
            mapping = np.memmap(path, np.uint8, "r")
            lost = binding.guard(mapping)
            os.truncate(path, 0)
            sums[index] += int(mapping.sum()) + (not lost())

    sums = [0] * 4
    threads = [threading.Thread(target=lose, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [0] * 4


def test_durations_are_measured_by_the_monotonic_clock() -> None:
    """Wall clocks are read only for people, or to compare with the times of files."""
    allowed = {
        ("files.py", "st_mtime"),
        ("uploads.py", "st_mtime"),
        ("runfiles.py", "st_mtime"),
        ("frames.py", '"created"'),
        ("tensorboard.py", "wall_time"),
    }
    found = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for line in path.read_text().splitlines():
            asks = any(call in line for call in ("time.time(", "datetime.now(", "utcnow("))
            if asks and not any(name.endswith(where) and word in line for where, word in allowed):
                found.append(f"{name}: {line.strip()}")
    assert not found
