"""What holds for every request: a bounded number at once, a time limit, one log line, and an answer to every error."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service import errors
from service.core import Service
from service.errors import Busy, ClientGone, Internal, NoMemory, ServiceError, ShuttingDown
from service.exchange import CLIENT_CLOSED_REQUEST, Exchange

log = logging.getLogger("service.request")

READ_SECONDS = 5.0  # for a client to read the rest of its reply, past the time limit of its request

METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")  # the others are one series of the metrics

_PROBES = ("/health", "/ready")
_TRACE = re.compile(r"([0-9a-f]{32})(?:/|$)")


class Edge:
    """The outermost layer of the service, outside the framework: it is handed what the server itself made."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        settings = self._service.settings
        seconds = settings.upload_seconds if _is_upload(exchange) else settings.request_seconds
        task = asyncio.current_task()
        assert task is not None
        self._service.tasks.add(task)
        with self._service.metrics.in_flight.track_inprogress():
            try:
                async with asyncio.timeout(seconds + READ_SECONDS) as limit:
                    await self._answer(exchange, task, limit)
                    await exchange.flushed()
            except TimeoutError:
                await exchange.abort()  # it does not read
            finally:
                self._service.tasks.discard(task)
                self._account(exchange)

    async def _answer(self, exchange: Exchange, task: asyncio.Task[Any], limit: asyncio.Timeout) -> None:
        try:
            await self._hand_on(exchange, limit)
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
        except MemoryError:
            log.warning("a request ran out of memory", extra={"fields": {"request_id": exchange.scope["request_id"]}})
            await exchange.refuse(NoMemory())
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": exchange.scope["request_id"]}})
            await exchange.refuse(Internal())

    async def _hand_on(self, exchange: Exchange, limit: asyncio.Timeout) -> None:
        scope, service = exchange.scope, self._service
        path = errors.route_path(scope)
        if len(service.tasks) > service.settings.max_requests and path not in _PROBES:
            raise Busy(f"{service.settings.max_requests} requests are being answered already: try again later", 1)
        service.guard.admit(path, Headers(scope=scope))
        if scope["method"] not in ("GET", "DELETE") and not _is_upload(exchange):  # uploads bound themselves
            seconds = service.settings.request_seconds
            await exchange.read_body(service.settings.max_body_bytes, seconds)
            # The body had its time, and the work on it has its own.
            limit.reschedule(asyncio.get_running_loop().time() + seconds + READ_SECONDS)
        await self._app(scope, exchange.receive, exchange.send)

    def _account(self, exchange: Exchange) -> None:
        """The log line and the metrics."""
        scope, seconds = exchange.scope, time.monotonic() - exchange.started_at
        route = getattr(scope.get("route"), "path", "other")  # not the path: that may be anything
        method = exchange.method if route != "other" and exchange.method in METHODS else "other"
        metrics = self._service.metrics
        metrics.requests.labels(route, method, str(exchange.status)).inc()
        metrics.duration_seconds.labels(route).observe(seconds)
        headers = Headers(scope=scope)
        fields: dict[str, Any] = {
            "request_id": scope["request_id"],
            "httpRequest": {
                "requestMethod": exchange.method,
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
        if exchange.status == 501:  # the caller asks for what is not offered here: nothing has failed
            level = logging.INFO
        log.log(level, "%s %s %d", exchange.method, scope["path"], exchange.status, extra={"fields": fields})


def _is_upload(exchange: Exchange) -> bool:
    return (exchange.method, errors.route_path(exchange.scope)) == ("POST", "/weights")
