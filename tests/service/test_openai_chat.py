"""POST /v1/chat/completions through OpenAI's own client, and what of a conversation is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Server, needs_library, serving

import rnn

pytestmark = needs_library
pytest_plugins = ("service_fixtures",)

SAID = [{"role": "user", "content": "waa wab"}]


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    server = Server(folder, tmp_path_factory.mktemp("log") / "chat.log", RNN_MAX_PROMPT_CHARS="40")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    server.close()


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "c/demo", "messages": SAID, "seed": 5, **options})


def test_the_reply_is_what_the_model_writes(client: openai.OpenAI, folder: Path) -> None:
    expected = rnn.RNN.load(folder / "demo.safetensors").generate("waa wab", max_tokens=100, seed=5)
    completion = chat(client)
    (choice,) = completion.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.finish_reason]
    assert completion.object == "chat.completion" and completion.model == "c/demo"
    assert completion.usage.prompt_tokens == 3
    assert completion.usage.completion_tokens == len(expected.tokens)


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["b w", "wac"]}])
def test_the_stream_is_the_reply(client: openai.OpenAI, options: dict[str, Any]) -> None:
    options = {"max_tokens": 25, "extra_body": {"ignore_eos": True}, **options}
    whole = chat(client, **options)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **options))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert own[0].delta.role == "assistant" and all(part.delta.role is None for part in own[1:])
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.finish_reason for part in own if part.finish_reason] == [choice.finish_reason]
        if options.get("logprobs"):
            tokens = [token for part in own if part.logprobs for token in part.logprobs.content]
            assert tokens == choice.logprobs.content


def test_log_probabilities(client: openai.OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=3, max_tokens=9).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob >= token.logprob - 1e-5
    assert chat(client, max_tokens=2).choices[0].logprobs is None
    assert chat(client, logprobs=True, max_tokens=2).choices[0].logprobs.content[0].top_logprobs == []


def test_a_conversation_is_read_line_by_line(client: openai.OpenAI) -> None:
    """So it is the same prompt as the messages' texts, one to a line."""
    messages: list[Any] = [
        {"role": "system", "content": "wag wah"},
        {"role": "user", "content": "waa wab"},
        {"role": "assistant", "content": "wac."},
        {"role": "tool", "content": "wai", "tool_call_id": "x"},
        {"role": "user", "content": [{"type": "text", "text": "wad"}, {"type": "text", "text": "wae"}]},
    ]
    said = chat(client, messages=messages, max_tokens=12)
    same = client.completions.create(model="c/demo", prompt="waa wab\nwac.\nwad\nwae", seed=5, max_tokens=12)
    assert said.usage == same.usage
    assert said.choices[0].message.content == same.choices[0].text.removeprefix(" ")


def test_of_a_long_conversation_the_end_is_read(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": f"waa wab wa{letter}"} for letter in "cdefghij"]
    said = chat(client, messages=messages, max_tokens=12)
    assert said.usage.prompt_tokens == 1 + 3 * 3 + 2  # three lines of eleven characters fit into 40
    with pytest.raises(openai.BadRequestError, match="at most 40 characters, got 48"):
        chat(client, messages=[{"role": "user", "content": "waa " * 12}])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"messages": []}, "messages must be a list of messages"),
        ({"messages": [{"content": "waa"}]}, "item 1 of 1"),
        ({"messages": [{"role": "system", "content": "waa"}]}, "user or assistant"),
        ({"messages": [{"role": "user", "content": "zebra"}]}, "messages cannot be used: no word of the text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "type text"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported by this model"),
        ({"tool_choice": "required"}, 'leave it out, or send null, "none", "auto"'),
        ({"response_format": {"type": "json_object"}}, 'leave it out, or send null, {"type": "text"}'),
        ({"top_logprobs": 2}, "logprobs"),
        ({"max_tokens": 5000}, "max_tokens must be 1,000 or less, got 5,000"),
        ({"max_completion_tokens": 0}, "max_completion_tokens must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_answered(client: openai.OpenAI, options: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **options)
    assert says in caught.value.body["message"]  # type: ignore[index]


def test_values_that_change_nothing(client: openai.OpenAI) -> None:
    plain = chat(client, max_tokens=9).choices[0].message.content
    neutral: dict[str, Any] = {
        "tools": [],
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "reasoning_effort": "low",
        "user": "me",
        "extra_body": {"surprise": 1, "tool_choice": "none"},
    }
    assert chat(client, max_completion_tokens=9, **neutral).choices[0].message.content == plain


def test_a_reply_without_a_limit_keeps_to_the_services(folder: Path) -> None:
    with serving(folder, max_tokens=5) as client:
        body = {"model": "c/demo", "messages": SAID, "ignore_eos": True}
        assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 5
