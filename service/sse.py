"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), and watching for a client that
goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone, ServiceError
from service.sequences import Run

COMMENT = b": the work goes on\n\n"
DONE = b"data: [DONE]\n\n"


def event(data: str, name: str | None = None) -> bytes:
    """One event. `data` is JSON: it has no line break of its own."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + data.encode() + b"\n\n"


@contextlib.asynccontextmanager
async def cancelling(run: Run, receive: Receive) -> AsyncIterator[None]:
    """Cancel `run` when the client goes away, or when the block is left however it may be."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        run.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        run.cancel()
        watcher.cancel()


class EventStream(Response):
    """Events as they come. An error before the first is a response of its own, a later one the last event.

    news: the events that were not sent yet, maybe none.   end: those that close the stream.   silence: after so many
    seconds without an event, a comment is sent.   on_error: the event that tells of an error.
    A client that does not read is waited for here; middleware.py ends that with the request's time.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        run: Run,
        *,
        news: Callable[[], bytes],
        end: Callable[[], bytes],
        silence: float,
        on_error: Callable[[ServiceError], bytes],
    ) -> None:
        self.status_code = 200
        self.background = None
        # X-Accel-Buffering: nginx would otherwise collect the events. There is no body yet, and so no length.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._run = run
        self._news = news
        self._end = end
        self._silence = silence
        self._on_error = on_error
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rest = b""
        try:
            async with cancelling(self._run, receive), contextlib.aclosing(self._run.changes(self._silence)) as changes:
                async for changed in changes:
                    rest += self._news() if changed else COMMENT
                    if rest and not self._run.done:
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
