"""What the replies under /v1 have in common: the object around the choices, whole or in chunks, and the usage."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from service import sse
from service.request import Request
from service.routes.openai.bodies import StreamOptions

FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


class Frame:
    """The fields around the choices of one reply.

    prefix: of its id.   kind: the value of `object`, whole; a stream's chunks have `chunk`.
    """

    def __init__(
        self, request: Request, model: str, *, prefix: str, kind: str, chunk: str, options: StreamOptions | None
    ) -> None:
        self._request = request
        self._fields = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": chunk if request.stream else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": request.entry.sha256[:16],
        }
        self._opening = json.dumps(self._fields)[:-1]  # the same for all chunks
        self._has_usage = bool(options and options.include_usage)
        self._closing = ', "usage": null}' if self._has_usage else "}"  # of a chunk with choices

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._fields, "choices": choices, "usage": self._request.usage().model_dump()}

    def chunk(self, choice: dict[str, Any]) -> bytes:
        return sse.event(f'{self._opening}, "choices": [{json.dumps(choice)}]{self._closing}')

    def last(self) -> bytes:
        """Return the chunk with the usage, if it was asked for, and the end of the stream."""
        usage = b""
        if self._has_usage:
            usage = sse.event(json.dumps({**self._fields, "choices": [], "usage": self._request.usage().model_dump()}))
        return usage + sse.DONE
