"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), and clients that disconnect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone, ServiceError
from service.exchange import disconnected
from service.request import Request

COMMENT = b": still working\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def event(data: str, name: str | None = None) -> bytes:
    """Format one event. `data` is JSON, so it contains no line break."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + data.encode() + b"\n\n"


@contextlib.asynccontextmanager
async def cancelling(request: Request, receive: Receive) -> AsyncIterator[None]:
    """Cancel `request` when the client disconnects, and whenever the block ends."""

    async def watch() -> None:
        await disconnected(receive)
        request.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        request.cancel()
        watcher.cancel()


class EventStream(StreamingResponse):
    """Sends events as they come. An error before the first is an ordinary response; a later error is the last event.

    news: returns the events that were not sent yet, maybe none.   end: returns those that close the stream.
    silence: seconds without an event after which a comment is sent.   on_error: makes the event that reports an error.
    This waits for a client that reads slowly; middleware.py ends the wait at the request's time limit.
    """

    def __init__(
        self,
        request: Request,
        *,
        news: Callable[[], bytes],
        end: Callable[[], bytes],
        silence: float,
        on_error: Callable[[ServiceError], bytes],
    ) -> None:
        # X-Accel-Buffering: nginx would otherwise collect the events.
        super().__init__((), headers=HEADERS, media_type="text/event-stream")
        self._request = request
        self._news = news
        self._end = end
        self._silence = silence
        self._on_error = on_error
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rest = b""
        try:
            request, watching = self._request, cancelling(self._request, receive)
            async with watching, contextlib.aclosing(request.changes(self._silence)) as changes:
                async for changed in changes:
                    rest += self._news() if changed else COMMENT
                    if rest and not request.done:
                        await self._send(rest, send)
                        rest = b""
            rest += self._end()
        except ServiceError as error:
            if not self._started:
                raise
            rest += self._on_error(error)
        except ClientGone:
            if not self._started:
                raise
            return
        await self._send(rest, send, last=True)

    async def _send(self, body: bytes, send: Send, last: bool = False) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": not last})
