"""What holds for every request: an id, a bounded body, security headers, one log line, and an answer to every error."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.core import Service
from service.errors import BodyTooLarge, ClientGone, Internal, ServiceError, ShuttingDown, SlowRequest

log = logging.getLogger("service.request")

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
_TRACE = re.compile(r"([0-9a-f]{32})(?:/|$)")

# A client that is still sending when the connection closes may never read our refusal. So some of what it sends is
# taken and dropped first (nginx calls it a lingering close).
DISCARD_BYTES = 16 << 20
DISCARD_SECONDS = 3.0


class Edge:
    """The outermost layer of the service."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        task = asyncio.current_task()
        assert task is not None
        self._service.tasks.add(task)
        with self._service.metrics.in_flight.track_inprogress():
            try:
                await self._answer(exchange)
            except asyncio.CancelledError:
                if not self._service.cut_off:
                    raise
                task.uncancel()
                exchange.linger = False  # there is no time left for it
                await exchange.refuse(ShuttingDown())
            except ClientGone:
                exchange.status = CLIENT_CLOSED_REQUEST
            except ServiceError as error:
                await exchange.refuse(error)
            except Exception:
                log.exception("a request failed", extra={"fields": {"request_id": scope["request_id"]}})
                await exchange.refuse(Internal())
            finally:
                self._service.tasks.discard(task)
                self._account(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        scope, settings = exchange.scope, self._service.settings
        if (scope["method"], errors.route_path(scope)) != ("POST", "/weights"):  # uploads bound themselves
            try:
                async with asyncio.timeout(settings.request_seconds):
                    await exchange.read_body(settings.max_body_bytes)
            except TimeoutError:
                raise SlowRequest(f"the body did not come within {settings.request_seconds:g} seconds") from None
        await self._app(scope, exchange.receive, exchange.send)

    def _account(self, exchange: Exchange) -> None:
        """The log line and the metrics."""
        scope, seconds = exchange.scope, time.monotonic() - exchange.started_at
        route = getattr(scope.get("route"), "path", "other")  # not the path: that may be anything
        metrics = self._service.metrics
        metrics.requests.labels(route, scope["method"] if route != "other" else "other", str(exchange.status)).inc()
        metrics.duration_seconds.labels(route).observe(seconds)
        headers = Headers(scope=scope)
        fields: dict[str, Any] = {
            "request_id": scope["request_id"],
            "httpRequest": {
                "requestMethod": scope["method"],
                "requestUrl": scope["path"],
                "status": exchange.status,
                "responseSize": str(exchange.sent_bytes),
                "userAgent": headers.get("user-agent", "")[:200],
                "remoteIp": (scope.get("client") or ("",))[0],
                "latency": f"{seconds:.6f}s",
                "protocol": f"HTTP/{scope['http_version']}",
            },
        }
        project = os.environ.get("GOOGLE_CLOUD_PROJECT")
        trace = _TRACE.match(headers.get("x-cloud-trace-context", ""))
        if project and trace:
            fields["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace[1]}"
        level = logging.ERROR if exchange.status >= 500 else logging.INFO
        log.log(level, "%s %s %d", scope["method"], scope["path"], exchange.status, extra={"fields": fields})


class Exchange:
    """One request and its response, with what is known of both."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.scope = scope
        self.started_at = time.monotonic()
        self.status = 500  # until a response has started
        self.sent_bytes = 0
        self.linger = True  # whether a client that still sends is heard out, a little, when it is refused
        self._receive = receive
        self._send = send
        self._responding = False
        self._complete = False  # whether all of the body has come
        self._expects_continue = headers.get("expect", "").lower() == "100-continue"
        self._body: bytes | None = None  # read already, to be handed on

    async def read_body(self, limit: int) -> None:
        """Raises BodyTooLarge, ClientGone."""
        error = BodyTooLarge(f"the body may have {limit:,} bytes at most")
        length = Headers(scope=self.scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise error
        body = bytearray()
        while not self._complete:
            message = await self._take()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limit:
                raise error
        self._body = bytes(body)

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
            too_slow = self.status == SlowRequest.status
            if self.linger and not (self._complete or self._expects_continue or too_slow):
                await self._discard()
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

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
