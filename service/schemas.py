"""The bodies of our own routes' requests and replies. Unknown fields, wrong types, NaN and infinity are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, create_model

from service import fields
from service.settings import Settings

Backend = Literal["c", "torch"]
Kind = Literal["known", "unknown", "dropped", "sentence_end"]
WeightsName = Annotated[
    str | None, Field(min_length=1, max_length=128, description="a name from GET /weights; null: the default weights")
]
Stop = fields.stop(
    "words or phrases before which to stop, read as prompts are: whole words, and the end of a sentence where the "
    "phrase has one (`turn.`, or a line feed); a phrase that the model cannot write is refused"
)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerateRequest(_Body):
    prompt: Any
    max_tokens: int
    temperature: fields.Temperature = None
    top_k: fields.TopK = 0
    top_p: fields.TopP = 1.0
    presence_penalty: fields.Penalty = 0.0
    frequency_penalty: fields.PenaltyEachTime = 0.0
    logit_bias: fields.LogitBias = {}
    seed: fields.Seed = None
    n: int
    stop: Stop = ()
    top_logprobs: int
    ignore_eos: fields.IgnoreEos = False
    weights: WeightsName = None
    stream: fields.Stream = False


class ScoreRequest(_Body):
    text: str
    backend: Backend = "c"
    top_logprobs: int
    weights: WeightsName = None


class Bodies(NamedTuple):
    """The request classes, with the limits of the settings in them."""

    generate: type[GenerateRequest]
    score: type[ScoreRequest]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        text: Any = Annotated[str, Field(min_length=1, max_length=settings.max_score_chars)]
        prompt = fields.prompts(
            chars=settings.max_prompt_chars,
            count=settings.max_prompts,
            description="a text to continue, or several",
            example="The prime minister",
        )
        tokens = Annotated[int, Field(ge=1, le=settings.max_tokens, description="most tokens of a sequence")]
        choices = Annotated[int, Field(ge=1, le=settings.max_choices, description="sequences for each prompt")]
        top = Annotated[
            int, Field(ge=0, le=settings.max_top_logprobs, description="show the k most probable words at each place")
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
        return cls(generate, score)


# ---- Replies --------------------------------------------------------------------------------------------------------


class Alternative(BaseModel):
    id: int
    word: str
    logprob: float


class Token(BaseModel):
    id: int
    word: str
    logprob: float = Field(description="natural logarithm of its probability under the model itself")
    top: list[Alternative] | None = Field(None, description="the most probable words here, if asked for")


class ReadToken(BaseModel):
    """A piece of the caller's text, and what it is to the model. The pieces leave out nothing but white space."""

    start: int = Field(description="its first character in the text, counted from 0 in Unicode code points")
    end: int = Field(description="the character after its last")
    kind: Kind = Field(
        description="known: a word of the model; unknown: a word that it lacks; sentence_end: read as <EOS>; "
        "dropped: not read, such as punctuation and numbers"
    )
    word: str = Field(description="the word as the model spells it; empty if dropped")
    id: int | None = Field(description="the token that the model reads; null if it reads none")


class ScoredToken(ReadToken):
    logprob: float | None = Field(description="natural logarithm of its probability; null if the model reads none")
    top: list[Alternative] | None = Field(None, description="the most probable words here, if asked for")


class ReadPrompt(BaseModel):
    tokens: list[ReadToken] = Field(description="everything in the prompt, in order")


class WeightsUsed(BaseModel):
    name: str
    sha256: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = Field(description="tokens generated, those of a stop phrase included")
    total_tokens: int


class Timings(BaseModel):
    queue_ms: float = Field(description="from the request to the start of its first sequence, loading included")
    first_token_ms: float = Field(description="from the request to the first token")
    total_ms: float = Field(description="from the request to the last token")
    tokens_per_second: float = Field(description="of all sequences together")


class ChoiceEnd(BaseModel):
    index: int
    prompt_index: int
    finish_reason: Literal["eos", "stop", "length"]
    seed: int = Field(description="with this seed and n = 1, the same text is generated again")
    unknown_words: list[str] = Field(description="words of the prompt that are not in the vocabulary")


class Choice(ChoiceEnd):
    text: str = Field(description="the words after the prompt; a sentence ends with a line feed")
    tokens: list[Token]


class GenerateEnd(BaseModel):
    """The last event of a stream: everything but the text."""

    backend: Backend
    weights: WeightsUsed
    prompts: list[ReadPrompt] = Field(description="what the model read of each prompt")
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
    tokens: list[ScoredToken] = Field(description="everything in the text, in order")
    loss: float = Field(description="mean negative log-probability of the tokens that were read, in nats")
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
    """How large a model the service can hold: served, and replaced, on all its back ends."""

    memory: int = Field(description="bytes that the service may use")
    max_upload_bytes: int
    largest_vocabulary: dict[str, int] = Field(description="most words V, by hidden size H")


class WeightsList(BaseModel):
    default: str | None
    weights: list[WeightsSummary]
    capacity: Capacity


class Uploaded(BaseModel):
    name: str
    renamed_from: str | None = Field(description="the name as it was given, if it had to be cleaned; else null")
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
    errors: list[FieldProblem] = Field(
        [], description="what is wrong with which field; left out if no field is at fault"
    )


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrors(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIError
