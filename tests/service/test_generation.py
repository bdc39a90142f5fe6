"""Generating and scoring: replies, streams, seeds, stop phrases."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from serving import events, needs_library, refused
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

import rnn
from service import schemas
from service.request import Request

pytest_plugins = ("service_fixtures",)
pytestmark = needs_library


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


def test_drawn_seeds_differ_from_prompt_to_prompt(client: TestClient) -> None:
    body = {"prompt": ["waa"] * 3, "n": 2, "max_tokens": 9, "ignore_eos": True}
    choices = client.post("/generate/c", json=body).json()["choices"]
    assert len({choice["seed"] for choice in choices}) == len({choice["text"] for choice in choices}) == 6


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
    reply = client.post("/generate/c", json={**body, "stop": [stop, "waa waa waa waa"]}).json()
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


@pytest.mark.parametrize(("stop", "says"), [("zebra", "'zebra'"), ("7", "no word"), (["waa", "(1)"], "no word")])
def test_a_stop_phrase_that_can_never_match(client: TestClient, stop: Any, says: str) -> None:
    problem = refused(client.post("/generate/c", json={"prompt": "waa", "stop": stop}), 422, "invalid_request")
    assert says in problem["detail"] and problem["errors"][0]["field"] == "stop"


def test_a_stop_phrase_with_its_punctuation(client: TestClient) -> None:
    """`wab.` is the word and the end of its sentence, as in a prompt."""
    body = {"prompt": "waa", "max_tokens": 50, "n": 8, "seed": 1, "ignore_eos": True}
    choices = client.post("/generate/c", json=body).json()["choices"]
    texts = [[token["word"] for token in choice["tokens"]] for choice in choices]
    seed, words = next((1 + i, words) for i, words in enumerate(texts) if "<EOS>" in words[1:])
    end = words.index("<EOS>", 1)
    body |= {"n": 1, "seed": seed}
    reply = client.post("/generate/c", json={**body, "stop": f"{words[end - 1]}."}).json()["choices"][0]
    assert reply["finish_reason"] == "stop" and [token["word"] for token in reply["tokens"]] == words[: end - 1]


def test_a_score_is_the_models(client: TestClient, folder: Path) -> None:
    text = "waa wab zebra. wac"
    expected = rnn.RNN.load(folder / "demo.safetensors").score(text)
    for backend in ("c", "torch"):
        reply = client.post("/score", json={"text": text, "backend": backend, "top_logprobs": 3}).json()
        read = [token for token in reply["tokens"] if token["id"] is not None]
        assert [token["word"] for token in read] == [token.word for token in expected.tokens]
        assert [token["logprob"] for token in read] == pytest.approx([t.logprob for t in expected.tokens], abs=1e-4)
        assert reply["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        assert reply["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert reply["unknown_words"] == ["zebra"]
        assert all(len(token["top"]) == 3 for token in read)


TEXT = " (waa), «wab» 1999: zebra's\tnaïve-text!\nwac wad?\n\nwae "


SAMPLING = {
    "temperature": 0.8,
    "top_k": 30,
    "top_p": 0.7,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.6,
    "logit_bias": {"3": 4.5, "5": -100},
}


@pytest.mark.parametrize("backend", ["c", "torch"])
@pytest.mark.parametrize("name", [*SAMPLING, None])
def test_every_option_of_sampling_is_the_models(
    client: TestClient, folder: Path, backend: str, name: str | None
) -> None:
    options: dict[str, Any] = {"temperature": 1.0} | (SAMPLING if name is None else {name: SAMPLING[name]})
    biases = {int(token): bias for token, bias in options.get("logit_bias", {}).items()}
    model = rnn.RNN.load(folder / "demo.safetensors")
    expected = model.generate("waa", max_tokens=30, seed=3, ignore_eos=True, **{**options, "logit_bias": biases})
    body = {"prompt": "waa", "max_tokens": 30, "seed": 3, "ignore_eos": True}
    reply = client.post(f"/generate/{backend}", json={**body, **options})
    assert reply.json()["choices"][0]["text"] == expected.text
    if name not in ("temperature", "top_k"):
        plain = client.post(f"/generate/{backend}", json={**body, "temperature": 1.0})
        assert plain.json()["choices"][0]["text"] != expected.text
    for path in ("/v1/completions", "/v1/chat/completions"):
        prompt = {"prompt": "waa"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "waa"}]}
        reply = client.post(path, json={**body, **prompt, **options, "model": f"{backend}/demo"})
        choice = reply.json()["choices"][0]
        assert (choice.get("text") or choice["message"]["content"]).removeprefix(" ") == expected.text


def test_everything_in_a_text_is_reported_with_its_place(client: TestClient) -> None:
    score = client.post("/score", json={"text": TEXT}).json()["tokens"]
    found = [(TEXT[token["start"] : token["end"]], token["kind"]) for token in score]
    assert ("waa", "known") in found and ("zebra", "unknown") in found and ("!", "sentence_end") in found
    assert {("(", "dropped"), ("1999:", "dropped"), ("?", "sentence_end"), ("wae", "known")} <= set(found)
    assert "".join(text for text, _ in found) == "".join(TEXT.split())  # nothing but white space is left out
    for token in score:
        assert (token["logprob"] is None) == (token["id"] is None)
        assert (token["word"] == "") == (token["kind"] == "dropped")
    body = {"prompt": ["waa", TEXT], "max_tokens": 2, "seed": 1}
    reply = client.post("/generate/c", json=body).json()
    for token in score:
        del token["logprob"]
    assert reply["prompts"][1]["tokens"] == score
    assert [token["word"] for token in reply["prompts"][0]["tokens"]] == ["waa"]
    *_, end, _ = events(client.post("/generate/c", json={**body, "stream": True}).text)
    assert end["prompts"] == reply["prompts"]


def test_places_are_counted_in_code_points(client: TestClient) -> None:
    text = "\U0001f600 waa"
    (dropped, known) = client.post("/score", json={"text": text}).json()["tokens"]
    assert (dropped["start"], dropped["end"], known["start"], known["end"]) == (0, 1, 2, 5)


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
    watch(Request, "timings")
    watch(schemas.GenerateResponse, "model_dump_json")
    watch(schemas.ScoreResponse, "model_dump_json")
    watch(JSONResponse, "render")
    assert client.post(path, json=body).status_code == 200
    assert len(in_loop) >= 2 and not any(in_loop)
