"""The bodies of requests and replies. Unknown fields, wrong types, NaN and infinity are refused.

A field whose limit is a setting stands bare in its class; `Bodies` puts the limit in, so that the service's OpenAPI
document tells what holds here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, create_model

from rnnlm.language_model import MAX_SEED
from service.settings import Settings

Backend = Literal["c", "torch"]
StopPhrase = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[
    StopPhrase | Annotated[list[StopPhrase], Field(max_length=8)] | None,
    Field(description="words or phrases before which to stop, matched as whole words; a line feed is a sentence's end"),
]
Temperature = Annotated[
    float | None,
    Field(ge=0, le=100, description="0: the most probable word; null: the back end's own, 1 for c, 0 for torch"),
]
TopK = Annotated[int, Field(ge=0, le=1 << 24, description="draw from the k most probable words; 0: from all")]
Seed = Annotated[
    int | None, Field(ge=0, le=MAX_SEED, description="the same seed gives the same text; null: a fresh one")
]
IgnoreEos = Annotated[bool, Field(description="go on after the end of the sentence")]
WeightsName = Annotated[
    str | None, Field(min_length=1, max_length=128, description="as GET /weights lists them; null: the default")
]
Stream = Annotated[bool, Field(description="answer by server-sent events, one for each token")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerateRequest(_Body):
    prompt: str | list[str]
    max_tokens: int
    temperature: Temperature = None
    top_k: TopK = 0
    seed: Seed = None
    n: int
    stop: Stop = None
    top_logprobs: int
    ignore_eos: IgnoreEos = False
    weights: WeightsName = None
    stream: Stream = False


class ScoreRequest(_Body):
    text: str
    backend: Backend = "c"
    top_logprobs: int
    weights: WeightsName = None


class StreamOptions(_Body):
    include_usage: bool = False


class CompletionRequest(_Body):
    """OpenAI's request. What this model has no use for is taken only at the value that changes nothing."""

    model: Annotated[str, Field(min_length=1, max_length=128, description="BACKEND/WEIGHTS, as /v1/models lists them")]
    prompt: str | list[str]
    max_tokens: int | None
    temperature: Temperature = None
    n: int | None
    logprobs: int | None
    seed: Seed = None
    stop: Stop = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    echo: Annotated[bool | None, Field(description="put the prompt before the text; with logprobs, score it")] = False
    user: Annotated[str | None, Field(max_length=1000, description="not used")] = None
    top_p: Annotated[float | None, Field(ge=1, le=1)] = None
    best_of: Annotated[int | None, Field(ge=1, description="equal to n, or left out")] = None
    frequency_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    presence_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    suffix: Literal[""] | None = None
    top_k: TopK = 0
    ignore_eos: IgnoreEos = False


class Bodies(NamedTuple):
    """The request classes with the limits of the settings in them."""

    generate: type[GenerateRequest]
    score: type[ScoreRequest]
    completion: type[CompletionRequest]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        text: Any = Annotated[str, Field(min_length=1, max_length=settings.max_prompt_chars)]
        texts: Any = Annotated[list[text], Field(min_length=1, max_length=settings.max_prompts)]
        prompt = Annotated[text | texts, Field(description="one prompt, or several", examples=["The prime minister"])]
        tokens = Annotated[int, Field(ge=1, le=settings.max_tokens, description="tokens of a sequence, at most")]
        zero_tokens = Annotated[int | None, Field(ge=0, le=settings.max_tokens, description="0 needs echo")]
        choices = Annotated[int, Field(ge=1, le=settings.max_choices, description="sequences for each prompt")]
        top = Annotated[
            int, Field(ge=0, le=settings.max_top_logprobs, description="the k most probable words at each place")
        ]
        generate = create_model(
            "GenerateRequest",
            __base__=GenerateRequest,
            prompt=(prompt, ...),
            max_tokens=(tokens, min(50, settings.max_tokens)),
            n=(choices, 1),
            top_logprobs=(top, 0),
        )
        score = create_model(
            "ScoreRequest",
            __base__=ScoreRequest,
            text=(Annotated[text, Field(examples=["The prime minister said"])], ...),
            top_logprobs=(top, 0),
        )
        completion = create_model(
            "CompletionRequest",
            __base__=CompletionRequest,
            prompt=(prompt, ...),
            max_tokens=(zero_tokens, min(16, settings.max_tokens)),
            n=(choices | None, 1),
            logprobs=(top | None, None),
        )
        return cls(generate, score, completion)


# ---- Replies --------------------------------------------------------------------------------------------------------


class Alternative(BaseModel):
    id: int
    word: str
    logprob: float


class Token(BaseModel):
    id: int
    word: str
    logprob: float = Field(description="natural logarithm of its probability, before temperature and top_k")
    top: list[Alternative] | None = Field(None, description="the most probable words here, if asked for")


class WeightsUsed(BaseModel):
    name: str
    sha256: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = Field(description="tokens written, those of a stop phrase included")
    total_tokens: int


class Timings(BaseModel):
    queue_ms: float = Field(description="from the request to the first sequence's start, loading included")
    first_token_ms: float = Field(description="from the request to the first token")
    total_ms: float = Field(description="from the request to the last token")
    tokens_per_second: float = Field(description="of all sequences together")


class ChoiceEnd(BaseModel):
    index: int
    prompt_index: int
    finish_reason: Literal["eos", "stop", "length"]
    seed: int = Field(description="with this seed and n = 1 the same text comes again")
    unknown_words: list[str] = Field(description="words of the prompt that are not in the vocabulary")


class Choice(ChoiceEnd):
    text: str = Field(description="what was written after the prompt; a sentence ends with a line feed")
    tokens: list[Token]


class GenerateEnd(BaseModel):
    """The last event of a stream: everything but the text."""

    backend: Backend
    weights: WeightsUsed
    choices: list[ChoiceEnd]
    usage: Usage
    timings: Timings


class GenerateResponse(GenerateEnd):
    choices: list[Choice]  # type: ignore[assignment]


class TokenEvent(BaseModel):
    """One event of a stream."""

    index: int
    text: str
    token: Token


class ScoreResponse(BaseModel):
    backend: Backend
    weights: WeightsUsed
    tokens: list[Token]
    loss: float = Field(description="mean negative log-probability per token, in nats")
    perplexity: float
    unknown_words: list[str]
    timings: Timings


class WeightsSummary(BaseModel):
    name: str
    size: int = Field(description="bytes")
    modified: float = Field(description="seconds since 1970")
    sha256: str | None
    vocabulary: int | None = Field(description="words V")
    embedding_size: int | None
    hidden_size: int | None
    trained_by: Backend | None
    tokenizer: str | None
    config: dict[str, Any] | None
    history: list[dict[str, Any]] | None = Field(description="one entry for each evaluation in training")
    problem: str | None = Field(description="why it cannot be used; null if it can")


class Capacity(BaseModel):
    """How large a model fits, served and replaced on all back ends offered."""

    memory: int = Field(description="bytes that the service may take")
    max_upload_bytes: int
    largest_vocabulary: dict[str, int] = Field(description="most words V, by hidden size H")


class WeightsList(BaseModel):
    default: str | None
    weights: list[WeightsSummary]
    capacity: Capacity


class Uploaded(BaseModel):
    name: str
    sha256: str
    size: int
    replaced: bool


class Status(BaseModel):
    status: str


class FieldProblem(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457. `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None
    errors: list[FieldProblem] = Field([], description="what is wrong with which field; left out where it is no field")


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrors(BaseModel):
    """What OpenAI's protocol answers instead of a reply."""

    error: OpenAIError
