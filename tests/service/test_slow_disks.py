"""Disks that are slow, or fail: who waits for them delays nobody else."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import ADMIN, GUARD_SECONDS, needs_library, refused, save_tiny, serving, until

from service.folder import Summary, Version
from service.registry import Entry

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_files_are_hashed_once_and_only_for_those_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        hashed.append(Path(file.name).stem)
        time.sleep(0.05)  # so that those who ask together meet
        return digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", counted)
    for name in ("demo", "other"):
        save_tiny(tmp_path, name)
    with serving(tmp_path) as client, ThreadPoolExecutor(4) as pool:
        assert client.get("/ready").status_code == 200
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["c/demo", "c/other"]
        assert client.get("/v1/models/c/other").status_code == 200
        assert hashed == []
        assert client.post("/generate/c", json={"prompt": "waa"}).status_code == 200
        assert hashed == ["demo"]
        lists = [pool.submit(client.get, "/weights") for _ in range(4)]
        assert all(len(weights["sha256"]) == 64 for reply in lists for weights in reply.result().json()["weights"])
        assert sorted(hashed) == ["demo", "other"]
        save_tiny(tmp_path, "other", seed=5)
        client.get("/weights")
        assert sorted(hashed) == ["demo", "other", "other"]


def test_a_list_that_takes_too_long_is_given_up_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    hashed: list[str] = []
    digest = hashlib.file_digest

    def slow(file: Any, kind: str) -> Any:
        assert go.wait(GUARD_SECONDS)
        hashed.append(Path(file.name).stem)
        return digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", slow)
    save_tiny(tmp_path)
    with serving(tmp_path, request_seconds=0.2) as client:
        try:
            assert "0.2 seconds" in refused(client.get("/weights"), 504, "time_limit")["detail"]
        finally:
            go.set()
        until(lambda: client.get("/weights").status_code == 200)
        assert hashed == ["demo"]


def test_a_slow_list_holds_nobody_else_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda *about: go.wait(GUARD_SECONDS) and digest(*about))
    save_tiny(tmp_path)
    with serving(tmp_path) as client, ThreadPoolExecutor(46) as pool:
        try:
            lists = [pool.submit(client.get, "/weights") for _ in range(45)]  # more than the framework has threads
            until(lambda: len(client.app.state.service.tasks) == 45)  # type: ignore[attr-defined]
            for path in ("/ready", "/v1/models"):
                assert pool.submit(client.get, path).result(GUARD_SECONDS / 4).status_code == 200
            assert not any(future.done() for future in lists)
        finally:
            go.set()
        assert {future.result(GUARD_SECONDS).status_code for future in lists} == {200}


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EACCES])
def test_a_folder_that_fails_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As a mounted folder does that has lost its other end."""
    save_tiny(tmp_path)
    named, unnamed = {"prompt": "waa", "weights": "demo"}, {"prompt": "waa"}

    def failing(function: Any) -> Any:
        def fails(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(str(tmp_path)):
                raise OSError(number, os.strerror(number), str(path))
            return function(path, *arguments, **options)

        return fails

    with serving(tmp_path) as client:
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        assert client.post("/generate/c", json=named).status_code == 200
        entry = registry.get("demo")
        with monkeypatch.context() as patch:
            for name in ("scandir", "stat", "lstat"):
                patch.setattr(os, name, failing(getattr(os, name)))
            for body in (named, unnamed):
                refused(client.post("/generate/c", json=body), 503, "folder_failed")
            for path in ("/weights", "/ready"):
                refused(client.get(path), 503, "folder_failed")
            refused(client.delete("/weights/demo", headers=ADMIN), 503, "folder_failed")
            for path in ("/v1/models", "/v1/models/c/demo"):
                assert client.get(path).json()["error"]["code"] == "folder_failed"
            registry.prune()
            assert registry.loaded() == [("c", entry)]
        assert registry.get("demo") is entry and client.post("/generate/c", json=unnamed).status_code == 200


def test_a_slow_load_holds_nobody_else_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path)
    go, loading = threading.Event(), threading.Event()
    load = Entry._torch

    def slow(entry: Entry) -> Any:
        loading.set()
        assert go.wait(GUARD_SECONDS)
        return load(entry)

    monkeypatch.setattr(Entry, "_torch", slow)
    body = {"prompt": "waa", "max_tokens": 1}
    with serving(tmp_path, backends=("c", "torch")) as client, ThreadPoolExecutor(13) as pool:
        try:
            waiting = [pool.submit(client.post, "/generate/torch", json=body) for _ in range(12)]
            assert loading.wait(GUARD_SECONDS)
            for _ in range(2):  # C loads meanwhile, and answers
                answer = pool.submit(client.post, "/generate/c", json=body)
                assert answer.result(GUARD_SECONDS).status_code == 200
            assert not any(future.done() for future in waiting)
        finally:
            go.set()
        assert [future.result(GUARD_SECONDS).status_code for future in waiting] == [200] * 12


def test_a_disk_that_times_out_is_not_a_slow_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        monkeypatch.setattr(client.app.state.service.registry, "engine", times_out)  # type: ignore[attr-defined]
        refused(client.post("/generate/c", json={"prompt": "waa"}), 500, "internal")


def test_who_waits_for_the_disk_holds_no_other_token_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path)
    user = {"authorization": "Bearer user-secret"}
    go, reading = threading.Event(), threading.Semaphore(0)
    summary = Version.summary

    def slow(self: Version) -> Summary:
        reading.release()
        assert go.wait(GUARD_SECONDS)
        return summary(self)

    threads = 40  # what the framework has for plain functions
    with serving(tmp_path, api_token="user-secret") as client, ThreadPoolExecutor(threads + 1) as pool:
        body = {"prompt": "waa", "max_tokens": 1}
        assert client.post("/generate/c", json=body, headers=user).status_code == 200
        monkeypatch.setattr(Version, "summary", slow)
        try:
            lists = [pool.submit(client.get, "/v1/models", headers=user) for _ in range(threads)]
            assert all(reading.acquire(timeout=GUARD_SECONDS) for _ in lists)
            answer = pool.submit(client.post, "/generate/c", json=body, headers=user)
            assert answer.result(GUARD_SECONDS).status_code == 200
        finally:
            go.set()
        assert [future.result(GUARD_SECONDS).status_code for future in lists] == [200] * threads
