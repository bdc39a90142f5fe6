"""Tokens, queues, time limits, and failures that show nothing of the machine."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import GOOD, events, needs_library, refused, save_tiny, serving

from service.routes import generate

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


def test_the_api_token_guards_all_but_three(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, api_token="user-secret") as client:
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/web/icon.svg"):
            assert client.get(path).status_code == 200
        assert client.get("/nowhere").status_code == 401 == client.get("/v1/models").status_code
        for path in ("/weights", "/metrics"):
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


def test_the_queue_and_the_time_limit(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, max_sequences=1, max_waiting=0) as client:
        problem = refused(client.post("/generate/c", json={"prompt": "waa", "n": 2}), 422, "invalid_request")
        assert "2 sequences" in problem["detail"]
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
    """What a client can be told besides the faults of its own body; the slow body is in test_slow_clients.py."""
    save_tiny(tmp_path)
    body = {"/generate/c": {"prompt": "waa"}, "/score": {"text": "waa wab"}}.get(
        path, {"model": "c/demo", "prompt": "waa"}
    )

    def code(response: Any) -> tuple[int, str]:
        said = response.json()
        return response.status_code, (said.get("error") or said)["code"]

    with serving(tmp_path, max_sequences=1, max_waiting=0) as client:
        client.app.state.service.schedulers["c"]._max_waiting = -1  # type: ignore[attr-defined]
        response = client.post(path, json=body)
        assert code(response) == (429, "busy") and int(response.headers["retry-after"]) >= 1
        assert "rnn_prompt_tokens_total{" not in client.get("/metrics").text  # nothing was taken in
        assert code(client.post(path, json={**body, "prompt": "w" * 300_000})) == (413, "body_too_large")
    with serving(tmp_path, request_seconds=0.01) as client:
        generator = client.app.state.service.generator  # type: ignore[attr-defined]
        prepare = generator._prepare
        generator._prepare = lambda *given: time.sleep(0.1) or prepare(*given)
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


def test_a_text_to_score_has_a_limit_of_its_own(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, max_prompt_chars=20, max_request_tokens=30) as client:
        assert client.post("/score", json={"text": "waa " * 25}).status_code == 200  # longer than a prompt may be
        problem = refused(client.post("/score", json={"text": "waa " * 31}), 422, "invalid_request")
        assert problem["errors"] == [
            {"field": "text", "message": "must have at most 30 tokens, got 32: score a shorter text"}
        ]
        body = {"model": "c/demo", "prompt": ["waa", "waa"], "max_tokens": 20, "echo": True, "logprobs": 1}
        refusal = client.post("/v1/completions", json=body)  # its texts are short, and it is also to go on from them
        assert refusal.status_code == 400 and "ask for fewer tokens, choices or prompts" in refusal.text
    with serving(tmp_path) as client:
        assert client.post("/score", json={"text": "waa" + " " * 49_997}).status_code == 200
        problem = refused(client.post("/score", json={"text": "waa" + " " * 49_998}), 422, "invalid_request")
        assert problem["errors"][0]["field"] == "text" and "50,000" in problem["detail"]


def test_alternatives_are_bounded(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with serving(tmp_path, max_request_tokens=30) as client:
        body = {"text": "waa " * 20}  # with <EOS>, 21 tokens
        assert client.post("/score", json={**body, "top_logprobs": 11}).status_code == 200
        detail = refused(client.post("/score", json={**body, "top_logprobs": 12}), 422, "invalid_request")["detail"]
        assert "may have 252 alternatives together, more than 240" in detail
        body = {"prompt": "waa", "max_tokens": 15, "top_logprobs": 16}
        assert client.post("/generate/c", json=body).status_code == 200
        refused(client.post("/generate/c", json={**body, "n": 2}), 422, "invalid_request")
        body = {"model": "c/demo", "prompt": "waa", "max_tokens": 16, "logprobs": 16}
        assert client.post("/v1/completions", json=body).status_code == 400


def test_two_replies_are_written_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects of a long one take tens of megabytes."""
    save_tiny(tmp_path)
    being_written: list[int] = []
    seen: list[int] = []
    score = generate._score

    def slow(request: Any) -> Any:
        being_written.append(1)
        seen.append(len(being_written))
        time.sleep(0.05)
        being_written.pop()
        return score(request)

    monkeypatch.setattr(generate, "_score", slow)
    with serving(tmp_path) as client, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: client.post("/score", json={"text": "waa"}), range(8)))
    assert {reply.status_code for reply in replies} == {200} and max(seen) == 2
