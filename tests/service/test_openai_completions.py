"""OpenAI's protocol, mostly through OpenAI's own client against a real server process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Server, needs_library, save_tiny, serving, until

import rnn
from rnnlm.data.text import EOS, UNK, Vocabulary, tokens_of
from service.engines import Step
from service.request import Prompt
from service.routes.openai.completions import _Text
from service.wording import Wording, gap_after

pytestmark = needs_library


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_tiny(folder)
    save_tiny(folder, "other", seed=3)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder, folder.parent / "openai.log", RNN_API_TOKEN="user-secret", RNN_MAX_TOKENS="60")
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="user-secret", max_retries=0, timeout=60) as client:
        yield client


def create(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "c/demo", "prompt": "waa wab", "seed": 5, **options})


def test_a_completion_is_the_models_generation(client: openai.OpenAI, folder: Path) -> None:
    expected = rnn.RNN.load(folder / "demo.safetensors").generate("waa wab", max_tokens=40, seed=5)
    completion = create(client, max_tokens=40)
    (choice,) = completion.choices
    assert choice.text == f" {expected.text}"  # with the space that separates it from the prompt
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.finish_reason]
    assert choice.logprobs is None
    assert completion.object == "text_completion" and completion.model == "c/demo" and completion.id
    assert completion.usage.prompt_tokens == 3
    assert completion.usage.completion_tokens == len(expected.tokens)


def test_the_default_is_sixteen_tokens(client: openai.OpenAI) -> None:
    completion = create(client, extra_body={"ignore_eos": True})
    assert completion.usage.completion_tokens == 16 and completion.choices[0].finish_reason == "length"


def test_the_default_keeps_to_the_limit(folder: Path) -> None:
    with serving(folder, max_tokens=5) as client:
        body = {"model": "c/demo", "prompt": "waa", "max_tokens": None, "ignore_eos": True}
        assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 5


def test_temperature_seed_and_n(client: openai.OpenAI) -> None:
    assert create(client, temperature=0).choices[0].text == create(client, temperature=0, seed=6).choices[0].text
    many = create(client, n=4, prompt=["waa", "wab"], max_tokens=10)
    assert [choice.index for choice in many.choices] == list(range(8))
    second = create(client, prompt="waa", seed=6, max_tokens=10)
    assert many.choices[1].text == second.choices[0].text
    assert create(client, model="c/other").choices[0].text != create(client).choices[0].text


def test_stop(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "extra_body": {"ignore_eos": True}}
    words = create(client, **options).choices[0].text.split()
    stopped = create(client, stop=words[4], **options).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text.split() == words[: words.index(words[4])]
    assert create(client, stop=["\n"], max_tokens=30).choices[0].text.endswith("\n") is False


def test_log_probabilities(client: openai.OpenAI) -> None:
    choice = create(client, logprobs=3, max_tokens=12).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert all(
        len(top) == 3 and max(top.values()) >= own - 1e-5
        for top, own in zip(logprobs.top_logprobs, logprobs.token_logprobs, strict=True)
    )
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    assert create(client, logprobs=0, max_tokens=2).choices[0].logprobs.top_logprobs[0] is None


def test_echo(client: openai.OpenAI, folder: Path) -> None:
    prompt = "waa, (wab) zebra. wac"
    plain = create(client, prompt=prompt, max_tokens=8).choices[0].text
    assert create(client, prompt=prompt, max_tokens=8, echo=True).choices[0].text == prompt + plain
    scored = create(client, prompt=prompt, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert scored.text == prompt and scored.finish_reason == "length"
    expected = rnn.RNN.load(folder / "demo.safetensors").score(prompt)
    assert scored.logprobs.token_logprobs == pytest.approx([token.logprob for token in expected.tokens], abs=1e-4)
    assert scored.logprobs.tokens == ["waa", ", (wab", ") zebra.", " wac"]
    both = create(client, prompt=prompt, max_tokens=8, echo=True, logprobs=0).choices[0]
    assert both.text == prompt + plain
    assert len(both.logprobs.tokens) == len(both.logprobs.text_offset) > len(scored.logprobs.tokens)
    assert both.logprobs.tokens[4].startswith(" w")  # the first that is new
    for choice in (scored, both):
        assert "".join(choice.logprobs.tokens) == choice.text
        lengths = itertools.accumulate(map(len, choice.logprobs.tokens), initial=0)
        assert choice.logprobs.text_offset == list(lengths)[:-1]


@given(
    st.text(st.sampled_from("abé1 .!?,'\n\r\t-"), max_size=30),
    st.lists(st.integers(0, 3), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_the_tokens_of_an_echo_make_up_its_text(prompt: str, new: list[int], unknown: bool, scored: bool) -> None:
    vocabulary = Vocabulary((EOS, "a", "b", "ab", *([UNK] if unknown else [])))
    spans = vocabulary.encode(prompt)
    ids = tokens_of(spans)[0] if scored else []
    request: Any = SimpleNamespace(
        sequences=[SimpleNamespace(prompt_steps=len(ids))],
        prompts=[Prompt(prompt, [0, *ids], spans)],
        n=1,
        entry=SimpleNamespace(vocabulary=vocabulary),
        wording=lambda prompt: Wording(vocabulary, gap_after(prompt.text)),
    )
    steps = [Step(token, -1.0, ((token, -1.0), (1 + token % 3, -2.0))) for token in [*ids, *new]]
    text, logprobs = _Text(request, 0, True).add(steps)
    tokens = logprobs["tokens"]
    start = 0 if scored and ids else len(prompt)  # what is not scored has no tokens
    assert text.startswith(prompt) and "".join(tokens) == text[start:]
    assert logprobs["text_offset"] == [start + sum(map(len, tokens[:i])) for i in range(len(tokens))]
    assert all(token in top for token, top in zip(tokens, logprobs["top_logprobs"], strict=True))


@pytest.fixture(scope="module")
def torch_server(folder: Path) -> Iterator[Server]:
    server = Server(folder, folder.parent / "torch.log", RNN_BACKENDS="c,torch", RNN_PRELOAD="c,torch")
    yield server
    server.close()


def test_the_torch_model_through_the_client(torch_server: Server, folder: Path) -> None:
    import torch_rnn

    model = torch_rnn.RNN.load(folder / "demo.safetensors")
    greedy = model.generate("waa wab", max_tokens=12, ignore_eos=True)
    sampled = model.generate("waa wab", max_tokens=12, ignore_eos=True, temperature=1.0, seed=5)
    with openai.OpenAI(base_url=f"{torch_server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert [model.id for model in client.models.list()] == ["c/demo", "torch/demo", "c/other", "torch/other"]
        options: dict[str, Any] = {"model": "torch/demo", "max_tokens": 12, "extra_body": {"ignore_eos": True}}
        assert create(client, **options).choices[0].text == f" {greedy.text}"  # its own way
        own = create(client, temperature=1.0, logprobs=2, **options).choices[0]
        assert own.text == f" {sampled.text}"
        assert own.logprobs.token_logprobs == pytest.approx([token.logprob for token in sampled.tokens], abs=1e-4)
        c = create(client, temperature=1.0, logprobs=2, **{**options, "model": "c/demo"}).choices[0]
        assert c.text == own.text
        streamed = create(client, temperature=1.0, stream=True, **options)
        assert "".join(chunk.choices[0].text for chunk in streamed) == own.text
        scored = create(client, model="torch/demo", max_tokens=0, echo=True, logprobs=0).choices[0].logprobs
        expected = model.score("waa wab").tokens
        assert scored.token_logprobs == pytest.approx([token.logprob for token in expected], abs=1e-4)
        with pytest.raises(openai.BadRequestError, match="vocabulary"):
            create(client, model="torch/demo", prompt="zebra")
        with pytest.raises(openai.NotFoundError, match="nosuch"):
            create(client, model="torch/nosuch")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3},
        {"logprobs": 2},
        {"echo": True},
        {"echo": True, "logprobs": 1, "prompt": "waa. wab"},
        {"stop": ["wab", "wac wad"]},
        {"stop": ["b w", "zz"], "logprobs": 1},  # in the text as written
    ],
)
def test_the_stream_is_the_completion(client: openai.OpenAI, options: dict[str, Any]) -> None:
    options = {"max_tokens": 25, **options}
    whole = create(client, **options)
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}, **options))
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [part.finish_reason for part in own if part.finish_reason] == [choice.finish_reason]
        if options.get("logprobs") is not None:
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                joined = [item for part in own if part.logprobs for item in getattr(part.logprobs, name)]
                assert joined == getattr(choice.logprobs, name), name


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["c/demo", "c/other"]
    assert client.models.retrieve("c/other").id == "c/other"
    for name in ("c/nosuch", "jax/demo", "demo", "torch/demo"):  # this server offers no torch
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "c/nosuch"}, openai.NotFoundError, "nosuch"),
        ({"model": "gpt"}, openai.NotFoundError, "/v1/models"),
        ({"model": "c/../demo"}, openai.BadRequestError, "do you mean demo?"),
        ({"model": "c/../nosuch"}, openai.BadRequestError, "weights name"),
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"prompt": [1, 4000]}, openai.BadRequestError, "from 0 to 39, got 4000"),
        ({"prompt": [1, "waa"]}, openai.BadRequestError, "prompt must be a text, a list of texts, a list of token ids"),
        ({"prompt": []}, openai.BadRequestError, "prompt"),
        ({"prompt": ["waa"] * 33}, openai.BadRequestError, "prompt must have from 1 to 32 items, got 33"),
        ({"prompt": "zebra"}, openai.BadRequestError, "vocabulary"),
        ({"max_tokens": 61}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 0}, openai.BadRequestError, "echo"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"n": 9}, openai.BadRequestError, "n must be 8 or less, got 9"),
        ({"n": 2, "best_of": 3}, openai.BadRequestError, "best_of"),
        ({"logprobs": 21}, openai.BadRequestError, "logprobs"),
        (
            {"suffix": "x"},
            openai.BadRequestError,
            'suffix is not supported by this model: leave it out, or send null, ""',
        ),
        ({"seed": -2}, openai.BadRequestError, "seed must be -1 or more, got -2"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"extra_body": {"tools": 1, "repetition_penalty": 1.2}}, openai.BadRequestError, "repetition_penalty is not"),
        ({"prompt": "w" * 300_000}, openai.APIStatusError, "bytes"),
        ({"model": "torch/demo"}, openai.InternalServerError, "torch"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    client: openai.OpenAI, options: dict[str, Any], error: type[Exception], says: str, stream: bool
) -> None:
    with pytest.raises(error) as caught:
        create(client, stream=stream, **options)
    body = caught.value.body  # type: ignore[attr-defined]
    assert says in body["message"] and body.keys() == {"message", "type", "param", "code"}
    assert "/tmp" not in body["message"]
    if body["code"] == "invalid_request" and body["param"]:
        assert body["param"] in body["message"] and body["param"] in {**options, **options.get("extra_body", {})}


def test_values_that_change_nothing(client: openai.OpenAI) -> None:
    plain = create(client).choices[0].text
    same = create(
        client,
        top_p=1.0,
        best_of=1,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        logit_bias={},
        suffix="",
        user="me",
    )
    assert same.choices[0].text == plain


def test_the_key_is_asked_for(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            create(client)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_an_error_on_the_way_reaches_the_client(folder: Path, tmp_path: Path) -> None:
    limits = {
        "RNN_MAX_TOKENS": "1000000",
        "RNN_MAX_REQUEST_TOKENS": "1000000",
        "RNN_REQUEST_SECONDS": "1.5",  # enough for the first words, on a busy machine too
        "RNN_PRELOAD": "c",
    }
    server = Server(folder, tmp_path / "log", **limits)
    try:
        until(lambda: server.post("/generate/c", json={"prompt": "waa", "max_tokens": 1}).status_code == 200)  # loaded
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = create(client, stream=True, max_tokens=1_000_000, extra_body={"ignore_eos": True})
            seen = 0
            with pytest.raises(openai.APIError, match=r"1\.5 seconds"):
                for _ in stream:
                    seen += 1
            assert seen > 0
    finally:
        server.close()
