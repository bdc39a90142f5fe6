"""Requests that are refused: bodies, fields, addresses and methods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import GOOD, needs_library, refused
from starlette.testclient import TestClient

from service.settings import Settings

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


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
    raw = json.dumps(GOOD[path])
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json-seq"):
        problem = refused(
            client.post(path, content=raw, headers={"content-type": content_type}), 415, "unsupported_media_type"
        )
        assert "Content-Type: application/json" in problem["detail"] and content_type in problem["detail"]
    assert "without a type" in refused(client.post(path, content=raw), 415, "unsupported_media_type")["detail"]
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert client.post(path, content=raw, headers={"content-type": content_type}).status_code == 200


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
        ("prompt", ["waa"] * 33),
        ("prompt", [1, 2]),
        ("prompt", [["waa"]]),
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
        ("top_p", 0),
        ("top_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", None),
        ("logit_bias", []),
        ("logit_bias", {"waa": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"40": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": True}),
        ("logit_bias", {"1": float("nan")}),
        ("logit_bias", {str(token): 0 for token in range(301)}),
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
    [
        ("text", ""),
        ("text", ["waa"]),
        ("text", "waa " * 51),
        ("backend", "jax"),
        ("top_logprobs", 6),
        ("max_tokens", 1),
    ],
)
def test_score_fields_out_of_range(client: TestClient, field: str, value: Any) -> None:
    refused(client.post("/score", json={"text": "waa", field: value}), 422, "invalid_request")


@pytest.mark.parametrize("prompt", ["...", " \n ", "zebra", ["waa", "123"]])
def test_prompts_without_a_known_word(client: TestClient, prompt: Any) -> None:
    problem = refused(client.post("/generate/c", json={"prompt": prompt}), 422, "invalid_request")
    assert "prompt" in problem["detail"]
    if isinstance(prompt, str):
        problem = refused(client.post("/score", json={"text": prompt}), 422, "invalid_request")
        assert "text cannot be used: " in problem["detail"] and "the text" in problem["detail"]
        assert "prompt" not in json.dumps(problem)


def test_a_long_word_is_shortened_in_a_message_but_not_in_a_reply(client: TestClient) -> None:
    word = "word" * 45
    for problem in (
        refused(client.post("/score", json={"text": word}), 422, "invalid_request"),
        refused(client.post("/generate/c", json={"prompt": "waa", "stop": word}), 422, "invalid_request"),
        refused(client.get("/weights/demo/neighbours", params={"word": word}), 422, "invalid_request"),
    ):
        message = problem["detail"].replace(f"can never match {word!r}", "")  # a stop phrase is shown whole
        assert "wordword…" in message and word not in message
    assert client.post("/score", json={"text": f"waa {word}"}).json()["unknown_words"] == [word]


def test_more_tokens_than_a_request_may_make(client: TestClient) -> None:
    body = {"prompt": "waa", "n": 8, "max_tokens": 50}
    assert client.post("/generate/c", json=body).status_code == 200
    problem = refused(client.post("/generate/c", json={**body, "prompt": ["waa"] * 2}), 422, "invalid_request")
    assert "800" in problem["detail"] and "400" in problem["detail"]


def test_a_body_too_large(client: TestClient) -> None:
    raw = json.dumps({"prompt": "w" * Settings.max_body_bytes}).encode()
    headers = {"content-type": "application/json"}
    for path in ("/generate/c", "/score"):
        refused(client.post(path, content=raw, headers=headers), 413, "body_too_large")

    def pieces() -> Iterator[bytes]:  # without a content length
        yield from (raw[i : i + 1000] for i in range(0, len(raw), 1000))

    refused(client.post("/generate/c", content=pieces(), headers=headers), 413, "body_too_large")


def test_weights_that_are_not_there(client: TestClient) -> None:
    for path, body in GOOD.items():
        refused(client.post(path, json={**body, "weights": "nosuch"}), 404, "weights_not_found")


def test_nobody_who_wants_to_see_a_weights_file_is_told_to_delete_it(client: TestClient) -> None:
    response = client.get("/weights/demo")
    detail = refused(response, 405, "method_not_allowed")["detail"]
    assert detail == "this address does not take GET, only DELETE: GET /weights lists the weights files"
    assert response.headers["allow"] == "DELETE"


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


def test_a_wrong_address_is_told_where_the_routes_are(client: TestClient) -> None:
    assert "/openapi.json" in refused(client.post("/generate", json={}), 404, "not_found")["detail"]


def test_address_and_method_are_checked_before_the_body(client: TestClient) -> None:
    large = b"x" * (Settings.max_body_bytes + 1)
    assert client.post("/nowhere", content=large).status_code == 404
    response = client.put("/generate/c", content=large)
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST" and "POST" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt is required"),
        ({"prompt": "waa", "surprise": 1}, "surprise is not a field of this request: leave it out"),
        ({"prompt": "waa", "max_token": 5}, "max_token is not a field of this request: do you mean max_tokens?"),
        ({"promt": "waa"}, "promt is not a field of this request: do you mean prompt?"),
        ({"prompt": "waa", "x" * 9999: 5}, "is not a field of this request: leave it out"),
        ({"prompt": "waa", "n": 9}, "n must be 8 or less, got 9"),
        ({"prompt": "waa", "n": "9"}, "n must be an integer"),
        ({"prompt": "waa", "temperature": -1}, "temperature must be 0 or more, got -1"),
        ({"prompt": "waa", "weights": ""}, "weights must have at least 1 character"),
        ({"prompt": ["waa", 1]}, "prompt must be a text or a list of texts"),
        ({"prompt": ["waa", ""]}, "prompt item 2 of 2 must not be empty"),
        ({"prompt": ["waa", "..."]}, "prompt item 2 of 2 cannot be used: the prompt has no word"),
        ({"prompt": "w" * 201}, "prompt must have at most 200 characters, got 201"),
        ({"prompt": "waa", "stop": [["waa"]]}, "stop must be a text or a list of texts"),
    ],
)
def test_messages_name_the_field_the_limit_and_the_value(client: TestClient, body: Any, says: str) -> None:
    problem = refused(client.post("/generate/c", json=body), 422, "invalid_request")
    assert says in problem["detail"]
    assert problem["errors"][0]["field"] in ("prompt", "n", "temperature", "weights", "stop", *body)


@pytest.mark.parametrize(
    ("path", "field", "meant"),
    [
        ("/score", "top_logprob", "top_logprobs"),
        ("/inspect", "traget", "target"),
        ("/candidates", "temprature", "temperature"),
        ("/candidates", "temp", "temperature"),
        ("/generate/c", "top", "top_k"),
        ("/generate/c", "log", "logit_bias"),
    ],
)
def test_a_misspelt_field_is_recognized(client: TestClient, path: str, field: str, meant: str) -> None:
    text = "prompt" if path == "/generate/c" else "text"
    problem = refused(client.post(path, json={text: "waa", field: 1}), 422, "invalid_request")
    assert problem["detail"] == f"{field} is not a field of this request: do you mean {meant}?"


def test_broken_json_is_told_where(client: TestClient) -> None:
    raw, headers = b'{"prompt": "waa",, }', {"content-type": "application/json"}
    problem = refused(client.post("/generate/c", content=raw, headers=headers), 400, "malformed_request")
    assert "character 17" in problem["detail"]


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
    for path in ("/weights/", "/score/", "/health/", "/v1/models//"):
        assert client.get(path, follow_redirects=False).status_code == 404, path


NUMBERS = [  # path, the body without the number; its field
    ("/generate/c", {"prompt": "waa"}, "temperature"),
    ("/generate/c", {"prompt": "waa"}, "top_k"),
    ("/generate/c", {"prompt": "waa"}, "top_p"),
    ("/generate/c", {"prompt": "waa"}, "presence_penalty"),
    ("/generate/c", {"prompt": "waa"}, "seed"),
    ("/generate/c", {"prompt": "waa"}, "max_tokens"),
    ("/generate/c", {"prompt": "waa"}, "logit_bias"),
    ("/score", {"text": "waa wab"}, "top_logprobs"),
    ("/inspect", {"text": "waa wab"}, "target"),
    ("/candidates", {"text": "waa"}, "k"),
    ("/v1/completions", {"model": "c/demo"}, "prompt"),
    ("/v1/completions", {"model": "c/demo", "prompt": "waa"}, "best_of"),
    ("/v1/completions", {"model": "c/demo", "prompt": "waa"}, "suffix"),
    ("/v1/completions", {"model": "c/demo", "prompt": "waa"}, "logit_bias"),
    ("/v1/chat/completions", {"model": "c/demo", "messages": [{"role": "user", "content": "waa"}]}, "tools"),
    ("/v1/embeddings", {"model": "c/demo", "input": "waa"}, "dimensions"),
]


@pytest.mark.parametrize(("path", "body", "field"), NUMBERS)
def test_numbers_that_no_float_holds(client: TestClient, path: str, body: dict[str, Any], field: str) -> None:
    for number in (10**400, -(10**400), 10**4000):
        value = {"logit_bias": {"1": number}, "prompt": [number]}.get(field, number)
        reply = client.post(path, json=body | {field: value})
        assert reply.status_code in (400, 422) and field in reply.text and len(reply.text) < 1000, reply.text


@pytest.mark.parametrize("query", ["units/%s", "units/1?k=%s", "neighbours?word=waa&k=%s"])
@pytest.mark.parametrize("digits", [20, 4000, 5000])  # int() refuses more than 4,300
def test_numbers_of_an_address_are_not_repeated_at_length(client: TestClient, query: str, digits: int) -> None:
    for sign in ("", "-"):
        reply = client.get(f"/weights/demo/{query % (sign + '9' * digits)}")
        assert reply.status_code == 422 and len(reply.text) < 1000, reply.text


ROUNDED_TO_NOTHING = 1e-300  # by float32, in which the models draw


@pytest.mark.parametrize("path, more", [("/generate/c", {}), ("/v1/completions", {"model": "c/demo"})])
def test_the_smallest_top_p_draws_the_most_probable_word(client: TestClient, path: str, more: dict[str, str]) -> None:
    for seed in range(5):
        body = {"prompt": "waa", "max_tokens": 3, "seed": seed, **more}
        drawn, greedy = (
            client.post(path, json=body | way) for way in ({"top_p": ROUNDED_TO_NOTHING}, {"temperature": 0})
        )
        assert drawn.status_code == 200, drawn.text
        assert drawn.json()["choices"][0]["text"] == greedy.json()["choices"][0]["text"]


def test_the_smallest_top_p_leaves_one_candidate(client: TestClient) -> None:
    reply = client.post("/candidates", json={"text": "waa", "top_p": ROUNDED_TO_NOTHING})
    assert reply.status_code == 200 and reply.json()["drawable"] == 1, reply.text
