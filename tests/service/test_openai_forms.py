"""/v1 as clients use it: every form of prompt, fields that we do not know, addresses, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import needs_library, serving
from starlette.testclient import TestClient

from rnnlm import checkpoint

pytestmark = needs_library
pytest_plugins = ("service_fixtures",)

BODY = {"model": "c/demo", "prompt": "waa wab", "max_tokens": 6, "seed": 3}


def complete(client: TestClient, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={**BODY, **changes})
    assert response.status_code == 200, response.text
    return response.json()


def error(client: TestClient, path: str = "/v1/completions", status: int = 400, **changes: Any) -> dict[str, Any]:
    response = client.post(path, json={**BODY, **changes})
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_every_form_of_prompt(client: TestClient, folder: Path) -> None:
    vocabulary = checkpoint.load(folder / "demo.safetensors").vocabulary
    ids = [vocabulary.index(word) for word in ("waa", "wab")]
    choice = complete(client)["choices"][0]
    for prompt in (["waa wab"], ids, [ids], [0, *ids]):  # <EOS>, 0, stands before every prompt anyway
        assert complete(client, prompt=prompt)["choices"] == [choice], prompt
    two = complete(client, prompt=[ids, ids[:1]])
    assert two["usage"]["prompt_tokens"] == 5 and len(two["choices"]) == 2


def test_thirty_two_prompts(client: TestClient) -> None:
    reply = complete(client, prompt=["waa"] * 32, max_tokens=2)
    assert [choice["index"] for choice in reply["choices"]] == list(range(32))
    assert "from 1 to 32 items, got 33" in error(client, prompt=["waa"] * 33)["message"]


def test_token_ids_can_be_echoed_and_scored(client: TestClient) -> None:
    choice = complete(client, prompt=[1, 2, 0, 3], echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert choice["text"] == "waa wab\nwac" and choice["logprobs"]["tokens"] == ["waa", " wab", "\n", "wac"]
    assert choice["logprobs"]["text_offset"] == [0, 3, 7, 8]


def test_prompt_and_text_read_as_one(client: TestClient) -> None:
    for prompt in ("waa", "waa.", "waa ", "waa\n"):
        text = complete(client, prompt=prompt)["choices"][0]["text"]
        assert text[0].isspace() == (not prompt[-1].isspace()), (prompt, text)


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_that_draws_one(client: TestClient, seed: int | None) -> None:
    texts = {complete(client, seed=seed, max_tokens=30, ignore_eos=True)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3


def test_unknown_fields_are_ignored(client: TestClient) -> None:
    extra = {"surprise": 1, "user": "me", "guided_json": None, "stream_options": {"include_obfuscation": False}}
    assert complete(client, **extra)["choices"] == complete(client)["choices"]


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1, "best_of": 1},
        {"suffix": ""},
        {"suffix": None, "best_of": None, "n": None, "stop": None, "stream": None, "echo": None, "logprobs": None},
        {"top_p": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}},
        {"top_p": None, "presence_penalty": None, "frequency_penalty": None, "logit_bias": None},
        {"repetition_penalty": 1.0, "min_p": 0, "min_tokens": 0, "top_k": None},
    ],
)
def test_neutral_values(client: TestClient, neutral: dict[str, Any]) -> None:
    assert complete(client, **neutral)["choices"] == complete(client)["choices"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"min_p": 0.1}, "min_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"4000": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "high"}}, "logit_bias"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"prompt": {"text": "waa"}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], "waa"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": "zebra"}, "prompt"),
        ({"stop": 7}, "stop"),
        ({"model": ""}, "model"),
    ],
)
def test_param_and_message_name_the_field_only(client: TestClient, change: dict[str, Any], param: str) -> None:
    found = error(client, **change)
    assert found["param"] == param and found["message"].startswith(param)
    for internal in ("str", "list[", "function", "constrained", "tuple", "Input should", "type="):
        assert internal not in found["message"].replace("stream", ""), found


def test_a_top_p_of_zero_takes_the_most_probable(client: TestClient) -> None:
    assert complete(client, top_p=0)["choices"] == complete(client, temperature=0)["choices"]


def test_stop_phrases_in_the_text_as_written(client: TestClient) -> None:
    """What the model's words cannot match is looked for in the text, also inside a word."""
    options = {"max_tokens": 40, "ignore_eos": True}
    text = complete(client, **options)["choices"][0]["text"]
    start = text.index(" ", 20) - 1
    phrase = text[start : start + 4]
    first = text.index(phrase)
    stopped = complete(client, stop=["zebra", phrase], logprobs=0, **options)["choices"][0]
    assert stopped["text"] == text[:first] and stopped["finish_reason"] == "stop"
    assert "".join(stopped["logprobs"]["tokens"]) == text[:first]
    assert complete(client, stop="zebra", **options)["choices"][0]["text"] == text


def test_addresses(client: TestClient) -> None:
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.get("/v1/health").json() == {"status": "ok"}
    for path in ("/v1", "/v1/", "/v1/engines", "/v1/images/generations"):
        found = client.get(path)
        assert found.status_code == 404 and found.headers["content-type"] == "application/json"
        message = found.json()["error"]["message"]
        assert "POST /v1/completions" in message and "GET /v1/models" in message and "/weights" not in message
    assert client.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"
    assert error(client, "/v1/responses", 404)["code"] == "not_found"


def test_a_model_that_does_not_exist_is_named(client: TestClient) -> None:
    found = error(client, status=404, model="gpt-4o")
    assert "'gpt-4o'" in found["message"] and found["param"] == "model"


def test_the_context_is_what_the_service_says(folder: Path) -> None:
    with serving(folder, max_prompt_chars=10) as client:
        assert "at most 10 characters, got 11" in error(client, prompt="w" * 11)["message"]
        assert "at most 10 token ids, got 11" in error(client, prompt=[1] * 11)["message"]
        assert "item 2 of 2 must have at most 10" in error(client, prompt=["waa", "w" * 11])["message"]
