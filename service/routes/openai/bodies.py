"""The bodies of requests under /v1."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, create_model

from rnnlm.language_model import MAX_SEED
from service import fields
from service.settings import Settings
from service.validation import nth_item

Model = Annotated[
    str,
    Field(
        min_length=1, max_length=128, description="BACKEND/WEIGHTS, as GET /v1/models lists them", examples=["c/demo"]
    ),
]
Seed = Annotated[
    int | None,
    Field(ge=-1, le=MAX_SEED, description="the same seed gives the same text; null and -1 draw one"),
]
TopP = Annotated[
    float | None,
    Field(ge=0, le=1, description="draw only from the most probable words that together hold this much probability"),
]
Stop = fields.stop(
    "words or phrases before which to stop: read as prompts are if the model can write them, else looked for in the "
    "text as written"
)


def _only(*neutral: Any) -> Any:
    """Make a field that this model cannot honour, accepted only at null and at the values that change nothing."""
    values = ", ".join(map(json.dumps, [None, *neutral]))

    def check(value: Any) -> None:
        if value is not None and value not in neutral:
            raise fields.refuse(f"is not supported by this model: leave it out, or send {values}")

    return Annotated[
        Any, PlainValidator(check), WithJsonSchema({"description": f"not supported; accepted as {values}"})
    ]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = Field(False, description="send a last chunk with the usage")


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: Model
    temperature: fields.Temperature = None
    top_k: fields.TopK | None = 0
    top_p: TopP = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.PenaltyEachTime | None = None
    logit_bias: fields.LogitBias = {}
    n: int | None
    seed: Seed = None
    stop: Stop = ()
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: fields.IgnoreEos | None = False
    repetition_penalty: _only(1) = None
    min_p: _only(0) = None
    min_tokens: _only(0) = None

    def options(self) -> dict[str, Any]:
        """Return the options of the Request that have one name, and one meaning, on all routes."""
        return {
            "n": self.n or 1,
            "temperature": self.temperature,
            "top_k": self.top_k or 0,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, fields.SMALLEST_TOP_P),  # OpenAI allows 0
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "logit_bias": self.logit_bias,
            "seed": None if self.seed == -1 else self.seed,
            "stop": self.stop,
            "stop_in_text": True,
            "ignore_eos": bool(self.ignore_eos),
            "stream": bool(self.stream),
        }


class CompletionRequest(_Body):
    prompt: Any
    max_tokens: int | None
    logprobs: int | None
    echo: Annotated[bool | None, Field(description="put the prompt before the text; with logprobs, score it")] = False
    best_of: Annotated[int | None, Field(ge=1, description="accepted only if equal to n")] = None
    suffix: _only("") = None


class ChatRequest(_Body):
    messages: Any
    max_tokens: int | None
    max_completion_tokens: int | None
    logprobs: Annotated[bool | None, Field(description="report the log-probability of each token")] = False
    top_logprobs: int | None
    response_format: _only({"type": "text"}) = None
    tools: _only([]) = None
    tool_choice: _only("none", "auto") = None
    functions: _only([]) = None
    function_call: _only("none", "auto") = None
    modalities: _only(["text"]) = None
    audio: _only() = None
    prediction: _only() = None
    web_search_options: _only() = None


class EmbeddingRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    model: Model
    input: Any
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int | None, Field(ge=1, description="accepted only if it is the embeddings' own size")] = None


class Message(NamedTuple):
    role: str
    text: str


def _messages(value: Any) -> tuple[Message, ...]:
    """Return the role and the text of each message."""
    if not isinstance(value, list) or not value:
        raise fields.refuse("must be a list of messages, each with a role and a content")
    return tuple(_message(nth_item(index, len(value)), item) for index, item in enumerate(value))


def _message(place: str, item: Any) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise fields.refuse(f"must have objects with a role and a content; {place} is none")
    content = item.get("content")
    if content is None:  # of an assistant that called a tool
        return Message(item["role"], "")
    if isinstance(content, str):
        return Message(item["role"], content)
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise fields.refuse(f"must have contents that are text, or lists of parts of type text; that of {place} is not")
    return Message(item["role"], "\n".join(texts))


_MESSAGE_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "description": "what users and assistants said, of which the model continues the end; other roles are not read",
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "examples": ["user"]},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        },
                    },
                    {"type": "null"},
                ]
            },
        },
    },
}
Messages = Annotated[Any, PlainValidator(_messages), WithJsonSchema(_MESSAGE_SCHEMA)]


class Bodies(NamedTuple):
    """The request classes, with the limits of the settings in them."""

    completion: type[CompletionRequest]
    chat: type[ChatRequest]
    embedding: type[EmbeddingRequest]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        def inputs(description: str) -> Any:
            return fields.prompts(
                chars=settings.max_prompt_chars,
                count=settings.max_prompts,
                ids=True,
                description=description,
                example="The prime minister",
            )

        most = settings.max_tokens
        tokens = Annotated[int | None, Field(ge=1, le=most, description="most tokens of a sequence")]
        zero_tokens = Annotated[int | None, Field(ge=0, le=most, description="most tokens of a sequence; 0 needs echo")]
        choices = Annotated[int | None, Field(ge=1, le=settings.max_choices, description="sequences for each prompt")]
        top = Annotated[
            int | None,
            Field(ge=0, le=settings.max_top_logprobs, description="show the k most probable words at each place"),
        ]
        completion = create_model(
            "CompletionRequest",
            __base__=CompletionRequest,
            prompt=(inputs("texts to continue, or lists of token ids"), ...),
            max_tokens=(zero_tokens, min(16, most)),
            n=(choices, 1),
            logprobs=(top, None),
        )
        chat = create_model(
            "ChatRequest",
            __base__=ChatRequest,
            messages=(Messages, ...),
            max_tokens=(tokens, None),
            max_completion_tokens=(tokens, None),
            n=(choices, 1),
            top_logprobs=(top, None),
        )
        embedding = create_model(
            "EmbeddingRequest",
            __base__=EmbeddingRequest,
            input=(inputs("texts, or lists of token ids"), ...),
        )
        return cls(completion, chat, embedding)
