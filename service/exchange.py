"""One request and its response, as the server hands them over: bounds on the body, on the reply, and on both's time."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service import errors
from service.errors import BodyTooLarge, ClientGone, ServiceError, SlowRequest

CLIENT_CLOSED_REQUEST = 499  # nginx's number for a client that went away; nobody receives it

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

# A client that is still sending when the connection closes may never read our refusal. So between the refusal and its
# end some of what is sent is taken and dropped (nginx calls it a lingering close).
DISCARD_BYTES = 16 << 20
DISCARD_SECONDS = 3.0

PIECE_BYTES = 64 << 10  # of a reply at a time: the next is sent once the client has made room for it
FLUSH_POLL_SECONDS = 0.05


class Exchange:
    """status: of the response; until it has started, 500.   method: the client's; a HEAD is answered as a GET."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.method: str = scope["method"]
        self.scope = {**scope, "method": "GET"} if self.method == "HEAD" else scope
        self.scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.started_at = time.monotonic()
        self.status = 500
        self.sent_bytes = 0
        self.linger = True  # whether a client that still sends is heard out, a little, when it is refused
        self._receive = receive
        self._send = send
        # uvicorn's `send` is a method of the object that has the connection. Other servers and tests have none.
        self._transport: asyncio.WriteTransport | None = getattr(getattr(send, "__self__", None), "transport", None)
        self._responding = False
        self._complete = False  # whether all of the body has come
        self._expects_continue = headers.get("expect", "").lower() == "100-continue"
        self._body: bytes | None = None  # read already, to be handed on

    async def read_body(self, limit: int, seconds: float) -> None:
        """Raises BodyTooLarge, SlowRequest, ClientGone."""
        if declares_more(Headers(scope=self.scope), limit):
            raise _too_large(limit)
        async with within(seconds, SlowRequest(f"the body did not come within {seconds:g} seconds")):
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
        """Take the rest of the body, within bounds."""
        left = DISCARD_BYTES
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._complete and left > 0:
                    left -= len((await self._take()).get("body", b""))
        except TimeoutError:
            return

    async def refuse(self, error: ServiceError) -> None:
        """Answer with an error, if there is still a choice."""
        if not self._responding:
            await errors.response(error, self.scope)(self.scope, self.receive, self.send)

    async def flushed(self) -> None:
        """Until the system has taken all that was sent, so that no reply is left behind with nobody to watch it."""
        while self._transport is not None and self._transport.get_write_buffer_size():
            await asyncio.sleep(FLUSH_POLL_SECONDS)

    async def abort(self) -> None:
        """Close the connection at once. To close it in good order takes a client that reads."""
        if not self._responding:
            self.status = CLIENT_CLOSED_REQUEST
        if self._transport is not None:
            self._transport.abort()
            await asyncio.sleep(0)  # lets the server see that the connection is gone


def _part(body: bytes, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not last}


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body may have {limit:,} bytes at most")


@contextlib.asynccontextmanager
async def within(seconds: float, otherwise: ServiceError) -> AsyncIterator[None]:
    """Raise `otherwise` once the time is up. A disk's own TimeoutError (ETIMEDOUT, of a mounted folder) stays one."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise otherwise from None


def declares_more(headers: Headers, limit: int) -> bool:
    """Whether a request says of its body that it has more bytes than the limit, so that nobody need wait for it."""
    length = headers.get("content-length", "")
    return length.isdecimal() and (len(length) > 18 or int(length) > limit)  # int() refuses thousands of digits
