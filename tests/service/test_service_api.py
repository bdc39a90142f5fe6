"""The routes outside /v1, in this process: replies, limits, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_checkpoint
from serving import ADMIN, GUARD_SECONDS, needs_library, save_tiny, serving, until
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

import rnn
from rnnlm import checkpoint
from service import schemas
from service.folder import Summary, Version
from service.registry import Entry
from service.request import Request

pytestmark = needs_library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving(
        folder, max_tokens=50, max_prompt_chars=200, max_top_logprobs=5, backends=("c", "torch"), max_request_tokens=400
    ) as client:
        yield client


def events(text: str) -> list[Any]:
    """The data of server-sent events, parsed; [DONE] as it stands."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def refused(response: Any, status: int, code: str) -> dict[str, Any]:
    """Check that a response is a problem of this kind, which tells nothing of the machine. Returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status and problem["code"] == code and problem["title"] and problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text and "/tmp" not in response.text and "line " not in response.text
    return problem


# ---- Generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_generation_says_all_that_is_known(client: TestClient, folder: Path, backend: str) -> None:
    body = {"prompt": "waa zebra wab", "max_tokens": 7, "seed": 3, "temperature": 1.0, "top_logprobs": 2}
    reply = client.post(f"/generate/{backend}", json=body).json()
    (choice,) = reply["choices"]
    expected = rnn.RNN.load(folder / "demo.safetensors").generate("waa zebra wab", max_tokens=7, seed=3)
    assert choice["text"] == expected.text
    assert [token["id"] for token in choice["tokens"]] == [token.id for token in expected.tokens]
    assert [token["logprob"] for token in choice["tokens"]] == pytest.approx(
        [token.logprob for token in expected.tokens], abs=1e-4
    )
    assert all(len(token["top"]) == 2 for token in choice["tokens"])
    assert choice["finish_reason"] == expected.finish_reason and choice["seed"] == 3
    assert choice["unknown_words"] == ["zebra"]
    assert reply["backend"] == backend and reply["weights"]["name"] == "demo"
    with (folder / "demo.safetensors").open("rb") as file:
        assert reply["weights"]["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    assert reply["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": len(choice["tokens"]),
        "total_tokens": 3 + len(choice["tokens"]),
    }
    assert reply["timings"]["total_ms"] >= reply["timings"]["first_token_ms"] >= reply["timings"]["queue_ms"] >= 0


def test_each_back_end_has_its_own_way(client: TestClient) -> None:
    def texts(backend: str) -> set[str]:
        bodies = ({"prompt": "waa", "max_tokens": 12, "ignore_eos": True, "seed": seed} for seed in range(3))
        return {client.post(f"/generate/{backend}", json=body).json()["choices"][0]["text"] for body in bodies}

    assert len(texts("c")) == 3  # samples
    assert len(texts("torch")) == 1  # takes the most probable word


def test_several_prompts_and_choices(client: TestClient) -> None:
    body = {"prompt": ["waa", "wab wac"], "n": 3, "max_tokens": 6, "seed": 11}
    reply = client.post("/generate/c", json=body).json()
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert [choice["prompt_index"] for choice in reply["choices"]] == [0, 0, 0, 1, 1, 1]
    assert [choice["seed"] for choice in reply["choices"]] == [11, 12, 13] * 2
    fifth = reply["choices"][4]
    alone = client.post("/generate/c", json={"prompt": "wab wac", "max_tokens": 6, "seed": 12}).json()["choices"][0]
    assert (alone["text"], alone["tokens"]) == (fifth["text"], fifth["tokens"])


def test_a_seed_is_made_up_and_told(client: TestClient) -> None:
    first = client.post("/generate/c", json={"prompt": "waa", "max_tokens": 9}).json()["choices"][0]
    again = client.post("/generate/c", json={"prompt": "waa", "max_tokens": 9, "seed": first["seed"]}).json()
    assert again["choices"][0]["text"] == first["text"]


def test_the_largest_seed_wraps_around(client: TestClient) -> None:
    reply = client.post("/generate/c", json={"prompt": "waa", "max_tokens": 2, "seed": 2**63 - 1, "n": 2}).json()
    assert [choice["seed"] for choice in reply["choices"]] == [2**63 - 1, 0]


def test_stop_words(client: TestClient) -> None:
    body = {"prompt": "waa", "max_tokens": 40, "seed": 4, "ignore_eos": True}
    words = client.post("/generate/c", json=body).json()["choices"][0]["text"].split()
    stop = f"{words[5]} {words[6]}"
    reply = client.post("/generate/c", json={**body, "stop": [stop, "zebra"]}).json()
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"].split() == words[: len(choice["text"].split())] and stop not in choice["text"]
    assert reply["usage"]["completion_tokens"] == len(choice["tokens"]) + 2


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("extra", [{}, {"n": 3}, {"stop": "wab"}, {"ignore_eos": True, "top_logprobs": 3}])
def test_the_stream_is_the_reply(client: TestClient, backend: str, extra: dict[str, Any]) -> None:
    body = {"prompt": "waa", "max_tokens": 20, "seed": 8, "temperature": 1.0, **extra}
    whole = client.post(f"/generate/{backend}", json=body).json()
    streamed = client.post(f"/generate/{backend}", json={**body, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *tokens, end, done = events(streamed.text)
    assert done == "[DONE]"
    for choice in whole["choices"]:
        own = [event for event in tokens if event["index"] == choice["index"]]
        assert "".join(event["text"] for event in own) == choice["text"]
        assert [event["token"] for event in own] == choice["tokens"]
        told = end["choices"][choice["index"]]
        assert told == {key: value for key, value in choice.items() if key not in ("text", "tokens")}
    assert end["usage"] == whole["usage"] and end["weights"] == whole["weights"]


def test_a_score_is_the_models(client: TestClient, folder: Path) -> None:
    expected = rnn.RNN.load(folder / "demo.safetensors").score("waa wab zebra. wac")
    for backend in ("c", "torch"):
        reply = client.post("/score", json={"text": "waa wab zebra. wac", "backend": backend, "top_logprobs": 3}).json()
        assert [token["word"] for token in reply["tokens"]] == [token.word for token in expected.tokens]
        assert reply["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        assert reply["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert reply["unknown_words"] == ["zebra"]
        assert all(len(token["top"]) == 3 for token in reply["tokens"])


# ---- Bad requests ---------------------------------------------------------------------------------------------------

GOOD = {"/generate/c": {"prompt": "waa"}, "/score": {"text": "waa"}}


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"{", 400, "malformed_request"),
        (b"\xff\xfe", 400, "malformed_request"),
        (b"[" * 30_000, 400, "malformed_request"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400, "malformed_request"),
        (b"[]", 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
        (b'"text"', 422, "invalid_request"),
        (b'{"prompt": "waa", "text": "waa", "\\ud800": 1}', 422, "invalid_request"),
        (b'{"prompt": "\\ud800", "text": "\\ud800"}', 422, "invalid_request"),
        (b'{"prompt": "waa", "text": "waa", "top_logprobs": NaN}', 422, "invalid_request"),
        (b'{"prompt": "waa", "text": "waa", "top_logprobs": 1e400}', 422, "invalid_request"),
    ],
)
def test_bodies_that_are_no_request(client: TestClient, path: str, raw: bytes, status: int, code: str) -> None:
    refused(client.post(path, content=raw, headers={"content-type": "application/json"}), status, code)


@pytest.mark.parametrize("path", GOOD)
def test_another_content_type(client: TestClient, path: str) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        response = client.post(path, content=json.dumps(GOOD[path]), headers={"content-type": content_type})
        refused(response, 422, "invalid_request")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", 7),
        ("prompt", None),
        ("prompt", "w" * 201),
        ("prompt", []),
        ("prompt", ["waa", 1]),
        ("prompt", ["waa", ""]),
        ("prompt", ["waa"] * 9),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 51),
        ("max_tokens", 10**30),
        ("max_tokens", "5"),
        ("max_tokens", 5.5),
        ("max_tokens", True),
        ("max_tokens", None),
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("temperature", "warm"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 2**40),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "7"),
        ("n", 0),
        ("n", 9),
        ("stop", 3),
        ("stop", ""),
        ("stop", ["a"] * 9),
        ("stop", ["a" * 201]),
        ("top_logprobs", -1),
        ("top_logprobs", 6),
        ("ignore_eos", "yes"),
        ("stream", 1),
        ("weights", ""),
        ("weights", 1),
        ("weights", "../demo"),
        ("weights", "/etc/passwd"),
        ("weights", "a/b"),
        ("weights", ".hidden"),
        ("weights", "a..b"),
        ("weights", "w" * 65),
        ("weights", "demo\n"),
        ("weights", "demo\x00"),
        ("surprise", 1),
    ],
)
def test_fields_out_of_range(client: TestClient, field: str, value: Any) -> None:
    body = json.dumps({**GOOD["/generate/c"], field: value})
    for stream in ("false", "true"):
        raw = body if field == "stream" else f'{body[:-1]}, "stream": {stream}}}'
        problem = refused(
            client.post("/generate/c", content=raw, headers={"content-type": "application/json"}),
            422,
            "invalid_request",
        )
        if field != "weights" or value in ("", 1):
            assert any(field in complaint["field"] for complaint in problem["errors"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("text", ""), ("text", ["waa"]), ("text", "w" * 201), ("backend", "jax"), ("top_logprobs", 6), ("max_tokens", 1)],
)
def test_score_fields_out_of_range(client: TestClient, field: str, value: Any) -> None:
    refused(client.post("/score", json={"text": "waa", field: value}), 422, "invalid_request")


@pytest.mark.parametrize("prompt", ["...", " \n ", "zebra", ["waa", "123"]])
def test_prompts_without_a_known_word(client: TestClient, prompt: Any) -> None:
    problem = refused(client.post("/generate/c", json={"prompt": prompt}), 422, "invalid_request")
    assert "prompt" in problem["detail"]
    if isinstance(prompt, str):
        refused(client.post("/score", json={"text": prompt}), 422, "invalid_request")


def test_more_tokens_than_a_request_may_make(client: TestClient) -> None:
    body = {"prompt": "waa", "n": 8, "max_tokens": 50}
    assert client.post("/generate/c", json=body).status_code == 200
    problem = refused(client.post("/generate/c", json={**body, "prompt": ["waa"] * 2}), 422, "invalid_request")
    assert "800" in problem["detail"] and "400" in problem["detail"]


def test_a_body_too_large(client: TestClient) -> None:
    raw = json.dumps({"prompt": "w" * (64 << 10)}).encode()
    headers = {"content-type": "application/json"}
    for path in ("/generate/c", "/score", "/nowhere"):
        refused(client.post(path, content=raw, headers=headers), 413, "body_too_large")

    def pieces() -> Iterator[bytes]:  # without a content length
        yield from (raw[i : i + 1000] for i in range(0, len(raw), 1000))

    refused(client.post("/generate/c", content=pieces(), headers=headers), 413, "body_too_large")


def test_weights_that_are_not_there(client: TestClient) -> None:
    for path, body in GOOD.items():
        refused(client.post(path, json={**body, "weights": "nosuch"}), 404, "weights_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/generate/jax", 422, "invalid_request"),
        ("GET", "/generate/c", 405, "method_not_allowed"),
        ("PUT", "/weights", 405, "method_not_allowed"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/weights/%2e%2e%2fdemo", 404, "not_found"),
    ],
)
def test_addresses_that_do_not_exist(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    refused(client.request(method, path, json={"prompt": "waa"}), status, code)


def test_the_allowed_methods_are_told(client: TestClient) -> None:
    for path, allowed in (
        ("/weights", "GET, HEAD, POST"),
        ("/weights/demo", "DELETE"),
        ("/score", "POST"),
        ("/ready", "GET, HEAD"),
    ):
        assert client.patch(path).headers["allow"] == allowed


def test_head_is_get_without_a_body(client: TestClient) -> None:
    for path in ("/", "/health", "/ready", "/weights", "/metrics", "/openapi.json", "/docs", "/v1/models"):
        head, whole = client.head(path), client.get(path)
        assert head.status_code == 200 and head.content == b"", path
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert client.head("/nowhere").status_code == 404 and client.head("/score").status_code == 405


def test_an_address_with_a_slash_too_many_is_not_there(client: TestClient) -> None:
    for path in ("/weights/", "/score/", "/health/", "/v1/models/"):
        assert client.get(path, follow_redirects=False).status_code == 404, path


# ---- Weights --------------------------------------------------------------------------------------------------------


def test_without_weights_the_service_says_what_to_do(tmp_path: Path) -> None:
    with serving(tmp_path / "none") as client:
        assert client.get("/health").json() == {"status": "ok"}
        for response in (client.get("/ready"), client.post("/generate/c", json={"prompt": "waa"})):
            assert "make train" in refused(response, 503, "not_ready")["detail"]
        listed = client.get("/weights").json()
        assert (listed["default"], listed["weights"]) == (None, [])
        (tmp_path / "none").mkdir()
        save_tiny(tmp_path / "none", "other")
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.post("/generate/c", json={"prompt": "waa"}).json()["weights"]["name"] == "other"


def test_the_list_shows_the_history(tmp_path: Path) -> None:
    source = make_checkpoint(vocab=20)
    history = [{"epoch": 1, "validation_loss": 5.5}]
    checkpoint.save(
        tmp_path / "b.safetensors",
        checkpoint.Checkpoint(source.weights, source.vocabulary, "plain", "torch", {"epochs": 1}, history),
    )
    (tmp_path / "a.safetensors").write_bytes(b"not weights")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".upload-x.safetensors").write_text("x")
    (tmp_path / "folder.safetensors").mkdir()
    with serving(tmp_path, default_weights="b") as client:
        listed = client.get("/weights").json()
        assert listed["default"] == "b"
        broken, sound = listed["weights"]
        assert broken["name"] == "a" and "safetensors" in broken["problem"] and str(tmp_path) not in broken["problem"]
        assert sound["history"] == history and sound["config"] == {"epochs": 1} and sound["problem"] is None
        assert (sound["vocabulary"], sound["embedding_size"], sound["hidden_size"]) == (20, 9, 6)
        assert sound["trained_by"] == "torch" and len(sound["sha256"]) == 64
        problem = refused(client.post("/generate/c", json={"prompt": "waa", "weights": "a"}), 503, "weights_unusable")
        assert str(tmp_path) not in problem["detail"]
        assert client.get("/ready").status_code == 200


def test_not_ready_when_the_default_is_broken(tmp_path: Path) -> None:
    (tmp_path / "demo.safetensors").write_bytes(b"not weights")
    with serving(tmp_path) as client:
        refused(client.get("/ready"), 503, "not_ready")
        save_tiny(tmp_path, "other")
        assert "demo" in refused(client.get("/ready"), 503, "not_ready")["detail"]


@pytest.mark.parametrize("backend", ["c", "torch"])
def test_weights_that_are_not_finite(tmp_path: Path, backend: str) -> None:
    path = save_tiny(tmp_path)
    biases = checkpoint.load(path).weights.by
    broken = biases.copy()
    broken[3] = np.nan
    raw = path.read_bytes().replace(biases.tobytes(), broken.tobytes())
    path.unlink()
    path.write_bytes(raw)
    with serving(tmp_path, backends=("c", "torch")) as client:
        refused(client.post(f"/generate/{backend}", json={"prompt": "waa"}), 503, "weights_unusable")


@pytest.mark.parametrize("mode", ["map", "read"])
def test_a_replaced_file_is_seen_and_the_old_one_lives_on(tmp_path: Path, mode: str) -> None:
    path = save_tiny(tmp_path)
    with serving(tmp_path, weights_mode=mode, cached_weights=1) as client:
        body = {"prompt": "waa", "seed": 1, "max_tokens": 30, "ignore_eos": True}
        before = client.post("/generate/c", json=body).json()
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        running = registry.get("demo")
        save_tiny(tmp_path, "demo", seed=9)
        after = client.post("/generate/c", json=body).json()
        assert after["weights"]["sha256"] != before["weights"]["sha256"]
        assert after["choices"][0]["text"] != before["choices"][0]["text"]
        assert running.sha256 == before["weights"]["sha256"]
        expected = [token["id"] for token in before["choices"][0]["tokens"]]
        old = running.engine("c").model.generate("waa", seed=1, max_tokens=30, ignore_eos=True)
        assert [token.id for token in old.tokens] == expected
        path.unlink()
        refused(client.post("/generate/c", json={**body, "weights": "demo"}), 404, "weights_not_found")


def test_weights_are_loaded_once_and_shared(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, backends=("c", "torch"), cached_weights=2) as client:
        registry = client.app.state.service.registry  # type: ignore[attr-defined]
        client.post("/generate/c", json={"prompt": "waa", "max_tokens": 1})
        entry = registry.get("demo")
        engine = entry.engine("c")
        for backend in ("c", "torch", "c"):
            client.post(f"/generate/{backend}", json={"prompt": "waa", "max_tokens": 1})
        assert registry.get(None) is entry and entry.engine("c") is engine
        mapped = entry._source.weights
        torch_model = entry.engine("torch").model
        for name, (tensor, _) in torch_model._matrices().items():
            assert tensor.data_ptr() == getattr(mapped, name).ctypes.data, name  # the same pages, not a copy
        for name in ("b", "c", "d"):
            shutil.copy(tmp_path / "demo.safetensors", tmp_path / f"{name}.safetensors")
            registry.get(name)
        assert len(registry._entries) == 2


def test_nobody_sees_a_model_before_it_knows_whether_its_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        entry = client.app.state.service.registry.get("demo")  # type: ignore[attr-defined]
        seen: list[tuple[str, ...]] = []

        class Watched:
            def __setattr__(self, name: str, value: Any) -> None:
                seen.append(entry.loaded)

        monkeypatch.setattr(Entry, "_c", lambda entry: Watched())
        entry.engine("c")
        assert seen == [()] and entry.loaded == ("c",)


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


def test_ready_looks_at_the_default_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = checkpoint.load
    monkeypatch.setattr(
        "rnnlm.checkpoint.load", lambda path, **options: loaded.append(path.stem) or load(path, **options)
    )
    for name in ("demo", "other", "third"):
        save_tiny(tmp_path, name)
    with serving(tmp_path) as client:
        for _ in range(3):
            assert client.get("/ready").status_code == 200
    assert loaded == ["demo"]


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


def test_links_are_followed_within_the_folder_only(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    save_tiny(folder)
    (folder / "inside.safetensors").symlink_to("demo.safetensors")
    (folder / "outside.safetensors").symlink_to(save_tiny(elsewhere, "secret"))
    (folder / "broken.safetensors").symlink_to("nowhere")
    (folder / "circle.safetensors").symlink_to("circle.safetensors")
    with serving(folder) as client:
        assert [weights["name"] for weights in client.get("/weights").json()["weights"]] == ["demo", "inside"]
        assert client.post("/generate/c", json={"prompt": "waa", "weights": "inside"}).status_code == 200
        for name in ("outside", "broken", "circle"):
            response = client.post("/generate/c", json={"prompt": "waa", "weights": name})
            refused(response, 404, "weights_not_found")
            refused(client.delete(f"/weights/{name}", headers=ADMIN), 404, "weights_not_found")
        assert client.delete("/weights/inside", headers=ADMIN).status_code == 204
        assert (folder / "demo.safetensors").exists()


def test_what_cannot_be_asked_for_is_not_listed(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    save_tiny(tmp_path, "x.safetensors")
    with serving(tmp_path) as client:
        assert [weights["name"] for weights in client.get("/weights").json()["weights"]] == ["demo"]
        refused(
            client.post("/generate/c", json={"prompt": "waa", "weights": "x.safetensors.safetensors"}),
            422,
            "invalid_request",
        )


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_models_of_files_that_are_gone_are_let_go(tmp_path: Path, how: str) -> None:
    path = save_tiny(tmp_path)
    save_tiny(tmp_path, "other")

    def mapped() -> bool:
        return f"{path} (deleted)" in Path("/proc/self/maps").read_text()

    def infos(client: TestClient) -> int:
        return client.get("/metrics").text.count("\nrnn_model_info{")

    with serving(tmp_path, backends=("c", "torch"), watch_seconds=0.05) as client:
        for backend in ("c", "torch"):
            assert client.post(f"/generate/{backend}", json={"prompt": "waa", "max_tokens": 3}).status_code == 200
        assert infos(client) == 2
        if how == "deleted":
            path.unlink()
        else:
            save_tiny(tmp_path, seed=4)
        until(lambda: not mapped())  # though nobody asks for it
        assert infos(client) == 0


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


def test_delete(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        assert client.post("/generate/c", json={"prompt": "waa"}).status_code == 200
        refused(client.delete("/weights/demo"), 401, "unauthorized")
        refused(client.delete("/weights/demo", headers={"authorization": "Bearer wrong"}), 401, "unauthorized")
        refused(client.delete("/weights/nosuch", headers=ADMIN), 404, "weights_not_found")
        for name in ("..", "a%00b", ".hidden", "w" * 65):
            assert client.delete(f"/weights/{name}", headers=ADMIN).status_code in (404, 405, 422)
        assert (tmp_path / "demo.safetensors").exists()
        response = client.delete("/weights/demo.safetensors", headers=ADMIN)
        assert response.status_code == 204 and response.content == b""
        assert not (tmp_path / "demo.safetensors").exists()
        refused(client.post("/generate/c", json={"prompt": "waa"}), 503, "not_ready")


def test_torch_can_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    save_tiny(tmp_path)
    caplog.set_level("INFO")
    monkeypatch.setattr("service.settings.find_spec", lambda name: None)
    with serving(tmp_path, backends=("c", "torch")) as client:
        problem = refused(client.post("/generate/torch", json={"prompt": "waa"}), 501, "backend_missing")
        assert "torch is not installed" in problem["detail"]
        assert [r.levelname for r in caplog.records if r.getMessage() == "POST /generate/torch 501"] == ["INFO"]
        assert client.post("/generate/c", json={"prompt": "waa"}).status_code == 200
    with serving(tmp_path, backends=("c",)) as client:
        refused(client.post("/generate/torch", json={"prompt": "waa"}), 501, "backend_missing")


def test_the_library_can_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnlm import binding

    save_tiny(tmp_path)
    monkeypatch.setenv("RNNLIB_PATH", str(tmp_path / "nosuch.so"))
    binding.library.cache_clear()
    try:
        with serving(tmp_path) as client:
            problem = refused(client.post("/generate/c", json={"prompt": "waa"}), 501, "backend_missing")
            assert "make lib" in problem["detail"]
    finally:
        binding.library.cache_clear()


# ---- Tokens, limits and operations ----------------------------------------------------------------------------------


def test_the_api_token_guards_all_but_three(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, api_token="user-secret") as client:
        for path in ("/", "/health", "/ready"):
            assert client.get(path).status_code == 200
        for path in ("/weights", "/metrics", "/docs", "/openapi.json"):
            response = client.get(path)
            refused(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
            for token in ("user-secret", "admin-secret"):
                assert client.get(path, headers={"authorization": f"Bearer {token}"}).status_code == 200
        for path, body in GOOD.items():
            refused(client.post(path, json=body), 401, "unauthorized")
            refused(client.post(path, json=body, headers={"authorization": "Basic abc"}), 401, "unauthorized")
            refused(
                client.post(path, json=body, headers={"authorization": "Bearer wróng".encode()}), 401, "unauthorized"
            )
            assert client.post(path, json=body, headers={"authorization": "Bearer user-secret"}).status_code == 200
        user = {"authorization": "Bearer user-secret"}
        refused(client.delete("/weights/demo", headers=user), 403, "forbidden")
        assert client.post("/v1/completions", json={}).json()["error"]["type"] == "authentication_error"


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


def test_the_queue_and_the_time_limit(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, max_sequences=1, max_waiting=0, max_prompts=1, max_choices=1) as client:
        scheduler = client.app.state.service.schedulers["c"]  # type: ignore[attr-defined]
        scheduler._max_waiting = -1
        response = client.post("/generate/c", json={"prompt": "waa", "stream": True})
        refused(response, 429, "busy")
    with serving(tmp_path, request_seconds=0.01, max_tokens=1 << 20, max_request_tokens=1 << 20) as client:
        body = {"prompt": "waa", "max_tokens": 1 << 20, "ignore_eos": True}
        assert "0.01 seconds" in refused(client.post("/generate/c", json=body), 504, "time_limit")["detail"]
        streamed = client.post("/generate/c", json={**body, "stream": True})
        if streamed.status_code == 200:  # the first token was in time: then the error is an event
            assert "event: error\ndata: " in streamed.text and events(streamed.text)[-1]["code"] == "time_limit"
        else:
            refused(streamed, 504, "time_limit")


def test_requests_at_once_are_bounded(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, max_requests=1) as client:
        tasks = client.app.state.service.tasks  # type: ignore[attr-defined]
        assert client.post("/generate/c", json={"prompt": "waa"}).status_code == 200 and not tasks
        tasks.add("another")
        for path in ("/generate/c", "/v1/completions", "/nowhere"):
            response = client.post(path, json={"prompt": "waa"})
            assert response.status_code == 429 and int(response.headers["retry-after"]) > 0
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        tasks.clear()


@pytest.mark.parametrize("path", ["/generate/c", "/score", "/v1/completions"])
def test_limits_on_every_route_that_generates(tmp_path: Path, path: str) -> None:
    """What a client can be told besides the faults of its own body; the slow body is in test_service_process."""
    save_tiny(tmp_path)
    body = {"/generate/c": {"prompt": "waa"}, "/score": {"text": "waa wab"}}.get(
        path, {"model": "c/demo", "prompt": "waa"}
    )

    def code(response: Any) -> tuple[int, str]:
        said = response.json()
        return response.status_code, (said.get("error") or said)["code"]

    with serving(tmp_path, max_sequences=1, max_waiting=0, max_prompts=1, max_choices=1) as client:
        client.app.state.service.schedulers["c"]._max_waiting = -1  # type: ignore[attr-defined]
        response = client.post(path, json=body)
        assert code(response) == (429, "busy") and int(response.headers["retry-after"]) >= 1
        assert "rnn_prompt_tokens_total{" not in client.get("/metrics").text  # nothing was taken in
        assert code(client.post(path, json={**body, "prompt": "w" * 70_000})) == (413, "body_too_large")
    with serving(tmp_path, request_seconds=0.01) as client:
        generator = client.app.state.service.generator  # type: ignore[attr-defined]
        prepare = generator._prepare
        generator._prepare = lambda *order: time.sleep(0.1) or prepare(*order)
        assert code(client.post(path, json=body)) == (504, "time_limit")


def test_a_bug_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        monkeypatch.setattr(client.app.state.service.generator, "_check_size", lambda *_: 1 / 0)  # type: ignore
        problem = refused(client.post("/generate/c", json={"prompt": "waa"}), 500, "internal")
        assert "division" not in json.dumps(problem)
        assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("path", ["/generate/c", "/v1/completions"])
def test_memory_that_runs_out_in_a_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    save_tiny(tmp_path)

    def no_memory(*_: Any) -> None:
        raise MemoryError

    with serving(tmp_path) as client:
        monkeypatch.setattr(client.app.state.service.generator, "_check_size", no_memory)  # type: ignore
        response = client.post(
            path, json={"prompt": "waa"} if path == "/generate/c" else {"model": "c/demo", "prompt": "waa"}
        )
        assert response.status_code == 503 and response.headers["retry-after"] == "5"
        assert "no_memory" in response.text


def test_every_response_has_an_id_and_security_headers(client: TestClient) -> None:
    for path in ("/", "/health", "/nowhere", "/docs"):
        headers = client.get(path).headers
        assert len(headers["x-request-id"]) == 32
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/health", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert client.get("/health", headers={"x-request-id": "a b\n"}).headers["x-request-id"] != "a b\n"


def test_metrics(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path) as client:
        client.post("/generate/c", json={"prompt": "waa", "max_tokens": 5, "ignore_eos": True})
        client.get("/made-up-7")
        client.request("SPURIOUS", "/score")
        text = client.get("/metrics").text
        for line in (
            'rnn_requests_total{method="POST",route="/generate/{backend}",status="200"} 1.0',
            'rnn_requests_total{method="other",route="other",status="404"} 1.0',
            'rnn_tokens_total{backend="c"} 5.0',
            'rnn_prompt_tokens_total{backend="c"} 2.0',
            'rnn_time_to_first_token_seconds_count{backend="c"} 1.0',
            'rnn_time_between_tokens_seconds_count{backend="c"} 4.0',
            'rnn_sequences_waiting{backend="c"} 0.0',
            "rnn_requests_in_flight 1.0",
        ):
            assert line in text, line
        assert 'rnn_model_info{backend="c",sha256="' in text and "made-up" not in text
        assert "SPURIOUS" not in text
        assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate/c", {"prompt": "waa"}),
        ("/score", {"text": "waa wab"}),
        ("/v1/completions", {"model": "c/demo", "prompt": "waa", "logprobs": 1}),
    ],
)
def test_replies_are_built_outside_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    in_loop: list[bool] = []

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            in_loop.append(asyncio._get_running_loop() is not None)
            return method(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(Request, "token")
    watch(Request, "usage")
    watch(schemas.GenerateResponse, "model_dump_json")
    watch(schemas.ScoreResponse, "model_dump_json")
    watch(JSONResponse, "render")
    assert client.post(path, json=body).status_code == 200
    assert len(in_loop) >= 2 and not any(in_loop)


def test_the_docs_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text) + re.findall(r"url: '([^']*)'", page.text)
    assert len(addresses) == 4
    for address in addresses:
        assert client.get(f"/{address}".replace("//", "/")).status_code == 200, address
    policy = page.headers["content-security-policy"]
    assert "http" not in policy and "'self'" in policy
    script = re.search(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert script and base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in policy
    for name in ("redoc.standalone.js", "..%2f__init__.py", "nothing"):
        assert client.get(f"/docs/{name}").status_code == 404


def test_the_docs_can_be_missing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.docs.find_spec", lambda name: None)
    assert "paths" in client.get("/docs").json()


def test_the_document_tells_of_every_error_as_it_is(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    names = document["components"]["schemas"]
    assert {
        "Problem",
        "OpenAIErrors",
        "TokenEvent",
        "GenerateEnd",
    } <= names.keys() and "HTTPValidationError" not in names
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            errors = {int(status): told["content"] for status, told in responses.items() if int(status) >= 400}
            assert {429, 500} <= errors.keys()
            if method == "post":
                assert {400, 401, 408, 413, 503} <= errors.keys()
            if path in ("/generate/{backend}", "/score", "/v1/completions"):
                assert {404, 501, 504} <= errors.keys()
            ours = not path.startswith("/v1/")
            assert 422 not in errors if not ours else 422 in errors or method == "get"
            kind, schema = ("application/problem+json", "Problem") if ours else ("application/json", "OpenAIErrors")
            for content in errors.values():
                assert content == {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}, (path, method)


def test_openapi_examples_work(client: TestClient, tmp_path: Path) -> None:
    document = client.get("/openapi.json").json()
    source = make_checkpoint(vocab=20)
    words = (*source.vocabulary[:-4], "The", "prime", "minister", "said")
    checkpoint.save(tmp_path / "demo.safetensors", checkpoint.Checkpoint(source.weights, words, "plain", "c", {}, []))
    tried = 0
    with serving(tmp_path) as served:
        for path, methods in document["paths"].items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            for example in content.get("application/json", {}).get("examples", {}).values():
                address = path.replace("{backend}", "c")
                assert served.post(address, json=example["value"]).status_code == 200, (path, example)
                tried += 1
    assert tried >= 5
