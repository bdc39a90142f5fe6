"""A FastAPI route around the torch model, as such services are often written: bench/load.py compares with it.

RNN_PLAIN_WEIGHTS=weights/demo.safetensors uvicorn bench.plain_service:app --http h11
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import torch
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import torch_rnn

torch.set_num_threads(1)
app = FastAPI()
model = torch_rnn.RNN.load(os.environ["RNN_PLAIN_WEIGHTS"])


class Request(BaseModel):
    prompt: str
    max_tokens: int = 50
    temperature: float = 1.0
    ignore_eos: bool = False


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/generate")
def generate(body: Request) -> StreamingResponse:
    def events() -> Iterator[str]:
        for token in model.stream(
            body.prompt, max_tokens=body.max_tokens, temperature=body.temperature, ignore_eos=body.ignore_eos
        ):
            yield f"data: {json.dumps({'text': token.word, 'logprob': token.logprob})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
