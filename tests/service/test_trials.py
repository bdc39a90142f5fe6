"""Uploads in trial, and what is left of those whose process died."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import ROOT, make_checkpoint, no_sanitizer
from serving import needs_library, nothing_left, refused, save_tiny, serving, until, upload
from starlette.requests import Request
from starlette.testclient import TestClient

from service.errors import ClientGone
from service.uploads import PREFIX, Uploader, remove_stale

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def with_number(raw: bytes, value: float) -> bytes:
    by = make_checkpoint(vocab=40, embed=9, hidden=12).weights.by
    changed = by.copy()
    changed[7] = value
    assert by.tobytes() in raw
    return raw.replace(by.tobytes(), changed.tobytes())


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("echo /secret/path >&2; kill -ABRT $$", 422, "invalid_weights"),
        ("echo /secret/path >&2; kill -KILL $$", 503, "trial_interrupted"),
        ("echo /secret/path >&2; kill -TERM $$", 503, "trial_interrupted"),
        ("echo /secret/path >&2; exit 3", 500, "internal"),
        ("echo /secret/path >&2; echo no good; exit 2", 422, "invalid_weights"),
        ('echo "$RNN_ADMIN_TOKEN$RNN_API_TOKEN$RNN_PRELOAD"; exit 2', 422, "invalid_weights"),
    ],
)
def test_a_trial_that_fails(
    empty_client: TestClient, empty_folder: Path, sound: bytes, monkeypatch: Any, script: str, status: int, code: str
) -> None:
    program = empty_folder.parent / "trial"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    for name, value in (("ADMIN_TOKEN", "secret-1"), ("API_TOKEN", "secret-2"), ("PRELOAD", "c")):
        monkeypatch.setenv(f"RNN_{name}", value)
    monkeypatch.setattr("service.uploads.sys.executable", str(program))
    detail = refused(upload(empty_client, sound), status, code)["detail"]
    assert "secret" not in detail
    if script.endswith("exit 2"):
        assert detail == ("new: c" if "$" in script else "new: no good")
    assert nothing_left(empty_folder)


def test_a_trial_without_the_library_is_not_the_files_fault(
    empty_client: TestClient,
    empty_folder: Path,
    sound: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RNNLIB_PATH", "/nosuch/librnn.so")
    refused(upload(empty_client, sound), 500, "internal")
    assert "/nosuch/librnn.so" in caplog.text
    assert nothing_left(empty_folder)
    assert 'rnn_uploads_total{result="failed"} 1.0' in empty_client.get("/metrics").text


def test_a_trial_without_end(
    empty_client: TestClient, empty_folder: Path, sound: bytes, monkeypatch: Any, tmp_path: Path
) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr("service.uploads.sys.executable", str(sleeper))
    monkeypatch.setattr("service.uploads.TRIAL_SECONDS", 0.2)
    response = upload(empty_client, sound)
    assert "0.2 seconds" in refused(response, 503, "trial_interrupted")["detail"]
    assert int(response.headers["retry-after"]) > 0
    assert nothing_left(empty_folder)


def test_a_client_that_goes_away_ends_the_trial(
    empty_folder: Path, sound: bytes, monkeypatch: Any, tmp_path: Path
) -> None:
    """What it sent replaces nothing, and the next upload need not wait."""
    sleeper, begun = tmp_path / "sleeper", tmp_path / "begun"
    sleeper.write_text(f"#!/bin/sh\necho $$ >{begun}.part\nmv {begun}.part {begun}\nexec sleep 20\n")
    sleeper.chmod(0o755)
    empty_folder.mkdir()
    old = save_tiny(empty_folder, "new", seed=5).read_bytes()
    form = httpx2.Request("POST", "http://test/", files={"file": ("new", sound)}, data={"overwrite": "true"})
    scope = {"type": "http", "method": "POST", "headers": form.headers.raw}
    scope["headers"] = [(name.lower(), value) for name, value in scope["headers"]]
    messages = [{"type": "http.request", "body": form.read(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.to_thread(until, begun.exists)
        return {"type": "http.disconnect"}

    async def abandon(uploader: Uploader) -> None:
        with pytest.raises(ClientGone):
            await uploader.receive(Request(scope, receive))
        assert not Path(f"/proc/{begun.read_text().strip()}").exists()

    monkeypatch.setattr("service.uploads.sys.executable", str(sleeper))
    with serving(empty_folder) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        asyncio.run(abandon(Uploader(service.settings, service.registry.folder, service.metrics)))
        assert 'rnn_uploads_total{result="abandoned"} 1.0' in client.get("/metrics").text
    assert os.listdir(empty_folder) == ["new.safetensors"]
    assert (empty_folder / "new.safetensors").read_bytes() == old


def test_what_a_crash_left_is_removed_at_start(empty_folder: Path) -> None:
    empty_folder.mkdir()
    left, new, used = (empty_folder / f".upload-{name}" for name in ("left", "new", "used"))
    for path in (left, new, used):
        path.write_text("x")
    for path in (left, used):
        os.utime(path, (time.time() - 60,) * 2)  # long before its upload would have to be over
    with used.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the process of an upload does
        with serving(empty_folder):
            assert sorted(os.listdir(empty_folder)) == [".upload-new", ".upload-used"]


def test_where_files_cannot_be_locked_age_tells(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_folder.mkdir()
    for name, age in (("old", 601), ("young", 60)):
        (empty_folder / f".upload-{name}").write_text("x")
        os.utime(empty_folder / f".upload-{name}", (time.time() - age,) * 2)
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    with serving(empty_folder, upload_seconds=300):
        assert os.listdir(empty_folder) == [".upload-young"]


def test_an_upload_under_way_is_locked_and_survives_a_start(empty_folder: Path, sound: bytes, monkeypatch: Any) -> None:
    from service import uploads

    seen: list[list[str]] = []
    claim = uploads._claim

    def look(temporary: Path, target: Path) -> None:
        os.utime(temporary, (1, 1))
        with serving(empty_folder):  # another worker starts
            seen.append(os.listdir(empty_folder))
        claim(temporary, target)

    monkeypatch.setattr(uploads, "_claim", look)
    with serving(empty_folder) as client:
        assert upload(client, sound).status_code == 201
    assert len(seen[0]) == 1 and os.listdir(empty_folder) == ["new.safetensors"]


def test_the_trial_runs_the_model_as_the_service_would(
    empty_folder: Path, sound: bytes, tmp_path: Path, monkeypatch: Any
) -> None:
    told = tmp_path / "told"
    program = tmp_path / "trial"
    program.write_text(f'#!/bin/sh\necho "$@" >{told}\n')
    program.chmod(0o755)
    monkeypatch.setattr("service.uploads.sys.executable", str(program))
    with serving(empty_folder, precision="int8", trial_memory_mb=300) as client:
        assert upload(client, sound).status_code == 201
    assert "--precision int8 --memory-mb 300" in told.read_text()


@no_sanitizer
def test_a_model_that_takes_too_much_memory(empty_folder: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path, "large", vocab=17_000, hidden=1000)  # its input projection takes 68 MB
    raw = (tmp_path / "large.safetensors").read_bytes()
    with serving(empty_folder, trial_memory_mb=64) as client:
        assert "64 MB" in refused(upload(client, raw), 507, "no_space")["detail"]
        assert nothing_left(empty_folder)


def test_the_trial_of_torch_takes_one_thread_and_its_bound_of_memory(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    program = """
import resource, sys, torch
from service import trial

before = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
code = trial.main(["--memory-mb", "512", sys.argv[1], "torch"])
grown = resource.getrlimit(resource.RLIMIT_DATA)[0] - before
print(code, torch.get_num_threads(), 512 <= grown / 1e6 < 600)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, env=environment, capture_output=True)
    assert done.stdout.decode().split() == ["0", "1", "True"], done.stderr.decode()


def test_both_back_ends_try_a_file_out(empty_folder: Path, sound: bytes) -> None:
    with serving(empty_folder, backends=("c", "torch")) as client:
        assert upload(client, sound).status_code == 201
        refused(upload(client, with_number(sound, np.nan), "bad"), 422, "invalid_weights")
        reply = client.post("/generate/torch", json={"prompt": "waa", "weights": "new"})
        assert reply.status_code == 200


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_no_stale_upload(tmp_path: Path) -> None:
    """To open a pipe would wait for its other end, and the service would never listen."""
    pipe, link, stale = (tmp_path / f"{PREFIX}{name}" for name in ("pipe", "link", "stale"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    stale.write_bytes(b"half")
    for path in (pipe, stale):
        os.utime(path, (1, 1))
    cleaning = threading.Thread(target=remove_stale, args=(tmp_path, 60.0), daemon=True)
    cleaning.start()
    cleaning.join(10)
    assert not cleaning.is_alive()
    assert pipe.exists() and link.is_symlink() and not stale.exists()
