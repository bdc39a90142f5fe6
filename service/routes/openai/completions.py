"""POST /v1/completions."""

from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest

from service.core import Service
from service.engines import Step
from service.errors import InvalidRequest
from service.request import Prompt, Request
from service.routes.described import BODY, MODEL, openai_errors
from service.routes.openai.answer import answer
from service.routes.openai.bodies import Bodies, CompletionRequest
from service.routes.openai.frames import FINISH_REASONS, Frame
from service.routes.openai.models import split
from service.validation import shown
from service.wording import Wording

DEFAULT_TOKENS = 16  # OpenAI's

EXAMPLES = {
    "one": {
        "summary": "continue a prompt",
        "value": {"model": "c/demo", "prompt": "The prime minister", "max_tokens": 20, "seed": 7},
    },
    "scored": {
        "summary": "score a prompt, generate nothing",
        "value": {"model": "c/demo", "prompt": "The prime minister", "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}


def add(routes: APIRouter, service: Service, bodies: Bodies) -> None:
    @routes.post(
        "/completions",
        summary="Continue prompts in OpenAI's way",
        responses={
            200: {"content": {"text/event-stream": {"example": "data: [DONE]\n\n"}}},
            **openai_errors(401, *BODY, *MODEL),
        },
    )
    async def completions(
        body: Annotated[bodies.completion, Body(openapi_examples=EXAMPLES)], http: HttpRequest
    ) -> Any:
        """Continue one prompt or several, as `client.completions.create` of OpenAI's packages asks for it.

        A text begins with the space that separates it from its prompt.
        """
        request = _request(body, service.settings.max_tokens)
        await service.generator.start(request)
        return await answer(service, request, _Completion(body, request), http)


def _request(body: CompletionRequest, most: int) -> Request:
    n = body.n or 1
    max_tokens = min(DEFAULT_TOKENS, most) if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise InvalidRequest.of("max_tokens", "may be 0 only together with echo")
    if body.best_of not in (None, n):
        raise InvalidRequest.of("best_of", f"must be equal to n, {n}, or left out, got {shown(body.best_of)}")
    backend, name = split(body.model)
    return Request(
        backend=backend,
        weights=name,
        inputs=body.prompt,
        max_tokens=max_tokens,
        top=body.logprobs or 0,
        scored=bool(body.echo) and (body.logprobs is not None or max_tokens == 0),
        spaced=True,
        **body.options(),
    )


class _Text:
    """The text and the log-probabilities of one choice as they grow. With echo, it starts with the prompt.

    The tokens make up the text, those of a scored prompt included: what the model does not read of the prompt
    (punctuation, a word that the vocabulary lacks) belongs to the token that follows, or at the end to the last one.
    """

    def __init__(self, request: Request, index: int, echo: bool) -> None:
        prompt = request.prompts[index // request.n]
        self._prompt = prompt.text if echo else ""
        self._ends = _ends(prompt, request) if request.sequences[index].prompt_steps else []
        self._prompt_wording = Wording(request.entry.vocabulary)
        self._wording = request.wording(prompt)
        self._length = 0  # of the text so far
        self._taken = 0  # steps so far

    def add(self, steps: list[Step], kept: int | None = None) -> tuple[str, dict[str, Any]]:
        """Return (text, logprobs) of the next steps; the first call includes the prompt.

        kept: how many characters of the last one's token are kept; None for all.
        """
        begun = self._length
        text = "" if begun else self._prompt
        logprobs: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for place, step in enumerate(steps, 1):
            scored = self._taken < len(self._ends)
            wording = self._prompt_wording if scored else self._wording
            others = [wording.piece(token) for token, _ in step.top]
            piece = wording.add(step.token)
            self._taken += 1
            if scored:
                offset = self._ends[self._taken - 2] if self._taken > 1 else 0
                piece = self._prompt[offset : self._ends[self._taken - 1]]
            else:
                offset = begun + len(text)
                piece = piece[:kept] if place == len(steps) else piece
                text += piece
            top = {
                piece if token == step.token else other: value
                for other, (token, value) in zip(others, step.top, strict=True)
            }
            logprobs["tokens"].append(piece)
            logprobs["token_logprobs"].append(step.logprob)
            logprobs["top_logprobs"].append(top or None)
            logprobs["text_offset"].append(offset)
        self._length += len(text)
        return text, logprobs


def _ends(prompt: Prompt, request: Request) -> list[int]:
    """Return where in the text of a scored prompt each of its tokens ends."""
    if prompt.spans:
        ends = [span.end for span in prompt.spans if span.id is not None]
    else:
        wording, end, ends = Wording(request.entry.vocabulary), 0, []
        for token in prompt.ids[1:]:
            end += len(wording.add(token))
            ends.append(end)
    return [*ends[:-1], len(prompt.text)] if ends else []


class _Completion:
    """A completion, whole or in chunks."""

    def __init__(self, body: CompletionRequest, request: Request) -> None:
        self._request = request
        self._has_logprobs = body.logprobs is not None
        self._frame = Frame(
            request,
            body.model,
            prefix="cmpl",
            kind="text_completion",
            chunk="text_completion",
            options=body.stream_options,
        )
        self._texts = [_Text(request, index, bool(body.echo)) for index in range(len(request.sequences))]

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, sequence in enumerate(self._request.sequences):
            choices.append(self._choice(index, sequence.steps[: sequence.visible], sequence.finish_reason))
        return self._frame.whole(choices)

    def news(self) -> bytes:
        return b"".join(
            [
                self._frame.chunk(self._choice(index, [step], None))
                for index, steps in self._request.new_steps()
                for step in steps
            ]
        )

    def end(self) -> bytes:
        """Return why each choice ended, and the usage if it was asked for."""
        sequences = enumerate(self._request.sequences)
        ends = [self._frame.chunk(self._choice(index, [], sequence.finish_reason)) for index, sequence in sequences]
        return b"".join(ends) + self._frame.last()

    def _choice(self, index: int, steps: list[Step], reason: str | None) -> dict[str, Any]:
        sequence = self._request.sequences[index]
        kept = sequence.kept if reason else None
        if kept is not None:
            steps = [*steps, sequence.steps[sequence.visible]]
        text, logprobs = self._texts[index].add(steps, kept)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs if self._has_logprobs else None,
            "finish_reason": FINISH_REASONS[reason] if reason else None,
        }
