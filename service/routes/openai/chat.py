"""POST /v1/chat/completions: the model continues the end of a conversation. It follows no instructions."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest

from service.core import Service
from service.engines import Step
from service.errors import InvalidRequest
from service.request import Request
from service.routes.described import BODY, MODEL, openai_errors
from service.routes.openai.answer import answer
from service.routes.openai.bodies import Bodies, ChatRequest, Message
from service.routes.openai.frames import FINISH_REASONS, Frame
from service.routes.openai.models import split

DEFAULT_TOKENS = 100  # of a reply, which ends sooner with its sentence
READ_ROLES = ("user", "assistant")

EXAMPLES = {
    "one": {
        "summary": "continue what a user said",
        "value": {
            "model": "c/demo",
            "messages": [{"role": "user", "content": "The prime minister"}],
            "max_tokens": 20,
            "seed": 7,
        },
    },
}


def add(routes: APIRouter, service: Service, bodies: Bodies) -> None:
    @routes.post(
        "/chat/completions",
        summary="Continue a conversation",
        responses={
            200: {"content": {"text/event-stream": {"example": "data: [DONE]\n\n"}}},
            **openai_errors(401, *BODY, *MODEL),
        },
    )
    async def chat(body: Annotated[bodies.chat, Body(openapi_examples=EXAMPLES)], http: HttpRequest) -> Any:
        """Continue the last messages' text, for clients that only chat.

        This is a language model of single words: it goes on with the text of the conversation and follows no
        instructions. It reads the messages of users and assistants, one to a line, as many of the last ones as a prompt
        may hold; system and developer messages, and those of tools, are not read.
        """
        request = _request(body, service)
        await service.generator.start(request)
        return await answer(service, request, _Chat(body, request), http)


def _request(body: ChatRequest, service: Service) -> Request:
    settings = service.settings
    backend, name = split(body.model)
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest.of("top_logprobs", "needs logprobs: send logprobs true, too")
    given = (body.max_completion_tokens, body.max_tokens)
    return Request(
        backend=backend,
        weights=name,
        inputs=(_end_of(body.messages, settings.max_prompt_chars),),
        input_field="messages",
        max_tokens=next((most for most in given if most), min(DEFAULT_TOKENS, settings.max_tokens)),
        top=body.top_logprobs or 0,
        **body.options(),
    )


def _end_of(messages: Sequence[Message], chars: int) -> str:
    """Join the last messages that are read, one to a line: the very last, and those before it that fit."""
    texts = [message.text for message in messages if message.role in READ_ROLES and message.text]
    if not texts:
        raise InvalidRequest.of("messages", f"must have a text of the role {' or '.join(READ_ROLES)}")
    joined = texts.pop()
    if len(joined) > chars:
        raise InvalidRequest.of(
            "messages", f"must end with a text of at most {chars:,} characters, got {len(joined):,}"
        )
    while texts and len(texts[-1]) + 1 + len(joined) <= chars:
        joined = f"{texts.pop()}\n{joined}"
    return joined


class _Chat:
    """A chat completion, whole or in chunks."""

    def __init__(self, body: ChatRequest, request: Request) -> None:
        self._request = request
        self._has_logprobs = bool(body.logprobs)
        self._frame = Frame(
            request,
            body.model,
            prefix="chatcmpl",
            kind="chat.completion",
            chunk="chat.completion.chunk",
            options=body.stream_options,
        )
        self._wordings = [request.wording(prompt) for prompt in request.prompts for _ in range(request.n)]
        self._opened: set[int] = set()  # choices whose first chunk was made

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, sequence in enumerate(self._request.sequences):
            text, logprobs = self._add(index, sequence.steps[: sequence.visible], at_end=True)
            message = {"role": "assistant", "content": text, "refusal": None}
            reason = FINISH_REASONS[sequence.finish_reason or "length"]
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        return self._frame.whole(choices)

    def news(self) -> bytes:
        chunks = []
        for index, steps in self._request.new_steps():
            for step in steps:
                text, logprobs = self._add(index, [step])
                if text or logprobs:
                    chunks.append(self._chunk(index, text, logprobs))
        return b"".join(chunks)

    def end(self) -> bytes:
        """Return why each choice ended, and the usage if it was asked for."""
        chunks = []
        for index, sequence in enumerate(self._request.sequences):
            text, logprobs = self._add(index, [], at_end=True)
            chunks.append(self._chunk(index, text, logprobs, FINISH_REASONS[sequence.finish_reason or "length"]))
        return b"".join(chunks) + self._frame.last()

    def _chunk(self, index: int, text: str, logprobs: Any, reason: str | None = None) -> bytes:
        delta: dict[str, Any] = {}
        if index not in self._opened:
            self._opened.add(index)
            delta = {"role": "assistant", "content": ""}
        if text:
            delta["content"] = text
        return self._frame.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})

    def _add(self, index: int, steps: list[Step], *, at_end: bool = False) -> tuple[str, dict[str, Any] | None]:
        """Return (text, logprobs) of the next steps.

        at_end: they are the last; with them comes the token inside which a stop phrase begins, up to there.
        """
        sequence, wording = self._request.sequences[index], self._wordings[index]
        kept = sequence.kept if at_end else None
        if kept is not None:
            steps = [*steps, sequence.steps[sequence.visible]]
        pieces, content = [], []
        for place, step in enumerate(steps, 1):
            others = [(wording.piece(token), logprob) for token, logprob in step.top]
            piece = wording.add(step.token)
            piece = piece[:kept] if place == len(steps) else piece
            pieces.append(piece)
            content.append({**_token(piece, step.logprob), "top_logprobs": [_token(*other) for other in others]})
        return "".join(pieces), {"content": content, "refusal": None} if self._has_logprobs and content else None


def _token(piece: str, logprob: float) -> dict[str, Any]:
    return {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}
