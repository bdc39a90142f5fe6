"""POST /v1/embeddings: the mean of the word vectors of a text."""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.responses import JSONResponse

from rnnlm.arrays import F32
from service.core import Service
from service.engines import Engine
from service.errors import InvalidRequest
from service.generation import read_prompts
from service.routes.described import BODY, MODEL, openai_errors
from service.routes.openai.bodies import Bodies, EmbeddingRequest
from service.routes.openai.models import split
from service.validation import shown

EXAMPLES = {"one": {"summary": "one text", "value": {"model": "c/demo", "input": "The prime minister"}}}

# By default LangChain sends the token ids of an OpenAI tokenizer.
INSTEAD = "send texts instead (LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)"


def add(routes: APIRouter, service: Service, bodies: Bodies) -> None:
    @routes.post("/embeddings", summary="Embed texts", responses=openai_errors(401, *BODY, *MODEL))
    async def embeddings(body: Annotated[bodies.embedding, Body(openapi_examples=EXAMPLES)]) -> Any:
        """The mean of the vectors of a text's known words, which says what the words are and not in which order."""
        backend, name = split(body.model)
        return await service.generator.with_model(backend, name, lambda _, engine: _reply(body, engine))


def _reply(body: EmbeddingRequest, engine: Engine) -> JSONResponse:
    vectors = engine.model.matrices().embeddings
    size = vectors.shape[1]
    if body.dimensions not in (None, size):
        raise InvalidRequest.of(
            "dimensions", f"must be {size}, the size of this model's vectors, got {shown(body.dimensions)}"
        )
    vocabulary = engine.model.vocabulary
    tokens, data = 0, []
    for index, prompt in enumerate(read_prompts(engine, body.input, "input", instead=INSTEAD)):
        words = [token for token in prompt.ids if token not in (vocabulary.eos, vocabulary.unk)]
        if not words:
            raise InvalidRequest.of("input", "must have ids of words, not only of <EOS> and <UNK>")
        tokens += len(words)
        mean = vectors[words].mean(axis=0)
        data.append({"object": "embedding", "index": index, "embedding": _encoded(mean, body.encoding_format)})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _encoded(vector: F32, encoding: str | None) -> list[float] | str:
    if encoding == "base64":  # what OpenAI's clients ask for by themselves: little-endian float32
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
