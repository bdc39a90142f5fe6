"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), and watching for a client that
goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone, ServiceError
from service.scheduler import Run

COMMENT = b": the work goes on\n\n"
DONE = b"data: [DONE]\n\n"
GRACE_SECONDS = 2.0  # for a client to read the rest, past the time limit of its request


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
    """Sends `chunks` as they come. An error before the first is a response of its own, a later one the last event.

    on_error: makes the event that tells of an error.
    """

    media_type = "text/event-stream"

    def __init__(self, run: Run, chunks: AsyncIterator[bytes], on_error: Callable[[ServiceError], bytes]) -> None:
        self.status_code = 200
        self.background = None
        # X-Accel-Buffering: nginx would otherwise collect the events. There is no body yet, and so no length.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._run = run
        self._chunks = chunks
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with asyncio.timeout(self._run.seconds + GRACE_SECONDS):
                try:
                    async with cancelling(self._run, receive):
                        async for chunk in self._chunks:
                            if not started:
                                started = True
                                await send(
                                    {
                                        "type": "http.response.start",
                                        "status": self.status_code,
                                        "headers": self.raw_headers,
                                    }
                                )
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except ServiceError as error:
                    if not started:
                        raise
                    await send({"type": "http.response.body", "body": self._on_error(error), "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientGone:
            if not started:
                raise
        except TimeoutError:
            return  # it does not read; the server closes its connection
