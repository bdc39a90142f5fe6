"""One HTTP exchange, a request and its response: bounds on the body, on the reply, and on the time of both."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, MutableMapping
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Receive, Scope, Send

from service import errors
from service.errors import BodyTooLarge, ClientGone, ServiceError, SlowRequest

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499  # nginx's number for a client that disconnected; nobody receives it

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

# A client that is still sending when the connection closes may never read our refusal. So before closing, some of what
# it sends is read and discarded (nginx calls this a lingering close).
DISCARD_BYTES = 16 << 20
DISCARD_SECONDS = 3.0

PIECE_BYTES = 64 << 10  # of a reply at a time; the next piece is sent once the client has made room for it
FLUSH_POLL_SECONDS = 0.05


class Exchange:
    """One exchange.   status: of the response; 500 until it starts.   method: the client's; HEAD is answered as GET."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, cors: CORSMiddleware | None = None) -> None:
        self.headers = headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.method: str = scope["method"]
        self.scope = {**scope, "method": "GET"} if self.method == "HEAD" else scope
        self.scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.started_at = time.monotonic()
        self.status = 500
        self.sent_bytes = 0
        self.linger = True  # whether to read on a little when refusing a client that is still sending
        self._receive = receive
        self._send = send
        self._cors = cors
        self._transport = transport_of(send)
        self._responding = False
        self._complete = False  # whether the whole body has arrived
        self._expects_continue = headers.get("expect", "").lower() == "100-continue"
        self._body: bytes | None = None  # read already, to be passed on

    async def read_body(self, limit: int, seconds: float) -> None:
        """Raises BodyTooLarge, SlowRequest, ClientGone."""
        if declares_more(self.headers, limit):
            raise _too_large(limit)
        async with within(seconds, SlowRequest(f"the body did not arrive within {seconds:g} seconds")):
            self._body = await self._read(limit)

    async def _read(self, limit: int) -> bytes:
        body = bytearray()
        while not self._complete:
            message = await self._take()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
        return bytes(body)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._take()

    async def _take(self) -> Message:
        message = await self._receive()
        self._expects_continue = False
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._responding = True
            headers = MutableHeaders(raw=message["headers"])
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.scope["request_id"]
            message["headers"] = headers.raw
            if self._cors:
                await self._cors.send(message, self._send, self.headers)
            else:
                await self._send(message)
            return
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        last = not message.get("more_body", False)
        self.sent_bytes += len(body)
        if len(body) > PIECE_BYTES or (last and self._lingers):
            for start in range(0, len(body), PIECE_BYTES):
                await self._send(_part(body[start : start + PIECE_BYTES]))
            body = b""
            if last and self._lingers:
                await self._discard()
        if body or last:
            await self._send(_part(body, last))

    @property
    def _lingers(self) -> bool:
        too_slow = self.status == SlowRequest.status
        return self.linger and not (self._complete or self._expects_continue or too_slow)

    async def _discard(self) -> None:
        """Read the rest of the body, within bounds."""
        left = DISCARD_BYTES
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._complete and left > 0:
                    left -= len((await self._take()).get("body", b""))
        except TimeoutError:
            return

    async def refuse(self, error: ServiceError) -> None:
        """Answer with an error, unless the response has started."""
        if not self._responding:
            await errors.response(error, self.scope)(self.scope, self.receive, self.send)

    async def flushed(self) -> None:
        """Wait until the system has taken all that was sent, so that no reply is left without a time limit."""
        while self._transport is not None and self._transport.get_write_buffer_size():
            await asyncio.sleep(FLUSH_POLL_SECONDS)

    async def abort(self) -> None:
        """Close the connection at once. An orderly close needs a client that reads."""
        if not self._responding:
            self.status = CLIENT_CLOSED_REQUEST
        if self._transport is not None:
            self._transport.abort()
            await asyncio.sleep(0)  # lets the server notice that the connection is gone


def transport_of(send: Send) -> asyncio.WriteTransport | None:
    """Return the connection behind a server's `send`, which ASGI does not give to applications.

    uvicorn's (0.54) `send` is a method of an object that has the transport. Other servers' and tests' may have none.
    """
    return getattr(getattr(send, "__self__", None), "transport", None)


def _part(body: bytes, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not last}


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body may have at most {limit:,} bytes: send less")


@contextlib.asynccontextmanager
async def within(seconds: float, otherwise: ServiceError) -> AsyncIterator[None]:
    """Raise `otherwise` when the time is up. A disk's own TimeoutError (ETIMEDOUT, of a mounted folder) passes."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise otherwise from None


async def disconnected(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: asyncio.Future[T], receive: Receive) -> T:
    """Return the result of `work`. Cancels it, and raises ClientGone, when the client closes its connection."""
    watcher = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        watcher.cancel()


def declares_more(headers: Headers, limit: int) -> bool:
    """Return whether a request announces a body above the limit, so that it need not be read."""
    length = headers.get("content-length", "")
    return length.isdecimal() and (len(length) > 18 or int(length) > limit)  # int() refuses thousands of digits
