"""How a route under /v1 answers: it starts a request, then streams its reply or waits for it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse

from service import errors, sse
from service.core import Service
from service.request import Request


class Reply(Protocol):
    """A reply, as a whole or as a stream."""

    def whole(self) -> dict[str, Any]:
        """Return the reply to a finished request."""
        ...

    def news(self) -> bytes:
        """Return the events of what was not sent yet."""
        ...

    def end(self) -> bytes:
        """Return the last events."""
        ...


async def answer(service: Service, request: Request, reply: Reply, http: HttpRequest) -> Any:
    """Answer a request that has been started."""
    if request.stream:
        return sse.EventStream(
            request,
            news=reply.news,
            end=reply.end,
            silence=service.settings.comment_seconds,
            on_error=lambda error: sse.event(json.dumps(errors.content(error, http.scope))),
        )
    async with sse.cancelling(request, http.receive):
        await request.wait()
    return await asyncio.get_running_loop().run_in_executor(service.writers, lambda: JSONResponse(reply.whole()))
