"""What holds for every HTTP exchange: its address, method and type are checked first, its number and time are bounded,
every error is answered, and it gets one line of the log and a place in the metrics."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import time
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service import errors
from service.core import Service
from service.errors import (
    Busy,
    ClientGone,
    Internal,
    NoMemory,
    NotFound,
    ServiceError,
    ShuttingDown,
    UnsupportedMediaType,
    WrongMethod,
)
from service.exchange import CLIENT_CLOSED_REQUEST, Exchange

log = logging.getLogger("service.request")

READ_SECONDS = 5.0  # for a client to read the rest of its reply after the time limit of its request

METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")  # all others share a series of the metrics

GZIP_BYTES = 1024  # a reply smaller than that is not worth compressing
GZIP_LEVEL = 5

CORS_METHODS = ("GET", "POST", "DELETE")
CORS_EXPOSED = ("x-request-id", "retry-after")  # headers that pages of other sites may read

_PROBES = ("/health", "/ready")
_TRACE = re.compile(r"([0-9a-f]{32})(?:/|$)")


class Edge:
    """The outermost layer of the service, outside FastAPI: it gets what the server itself made.

    app: FastAPI's own layers.   fastapi: knows the routes.
    """

    def __init__(self, app: ASGIApp, fastapi: FastAPI, service: Service) -> None:
        self._app = GZipMiddleware(app, GZIP_BYTES, GZIP_LEVEL)  # event streams are not compressed
        self._fastapi = fastapi
        self._service = service
        origins = service.settings.allowed_origins
        self._cors = CORSMiddleware(app, origins, CORS_METHODS, ["*"], expose_headers=CORS_EXPOSED) if origins else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._cors)
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
                await exchange.abort()  # the client does not read
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
            exchange.linger = False  # there is no time left
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
            raise Busy(
                f"at most {service.settings.max_requests:,} requests can be in progress at once: try again later", 1
            )
        if self._cors and _is_preflight(exchange):
            response = self._cors.preflight_response(exchange.headers)
            await response(scope, exchange.receive, exchange.send)
            return
        service.guard.admit(path, exchange.headers)
        self._check_route(exchange)
        if scope["method"] not in ("GET", "DELETE") and not _is_upload(exchange):  # uploads bound themselves
            seconds = service.settings.request_seconds
            await exchange.read_body(service.settings.max_body_bytes, seconds)
            # Reading the body had its time, and working on it has its own.
            limit.reschedule(asyncio.get_running_loop().time() + seconds + READ_SECONDS)
        await self._app(scope, exchange.receive, exchange.send)

    def _check_route(self, exchange: Exchange) -> None:
        """Refuse a wrong address, method or type before the body is read. Raises NotFound, WrongMethod,
        UnsupportedMediaType."""
        scope = exchange.scope
        path = errors.route_path(scope)
        methods = {method for address, taken in self._routes if address.match(path) for method in taken}
        if scope["method"] not in methods:
            allowed = [method for method in METHODS if ("GET" if method == "HEAD" else method) in methods]
            if allowed:
                raise WrongMethod(exchange.method, allowed)
            raise NotFound(self._what_there_is(scope))
        if scope["method"] == "POST" and not _is_upload(exchange):
            content_type = exchange.headers.get("content-type", "")
            if content_type.partition(";")[0].strip().lower() != "application/json":
                raise UnsupportedMediaType(content_type)

    @functools.cached_property
    def _routes(self) -> list[tuple[re.Pattern[str], set[str]]]:
        """The addresses and methods of all routes. Asking the routes themselves takes up to 140 microseconds more."""
        return [(route.path_regex, route.methods or set()) for route in iter_route_contexts(self._fastapi.routes)]

    def _what_there_is(self, scope: Scope) -> str:
        if not errors.is_openai(scope):
            return "there is nothing at this address: /docs shows the routes, and /openapi.json lists them"
        paths = self._fastapi.openapi()["paths"].items()
        routes = [
            f"{method.upper()} {path}" for path, methods in paths for method in methods if path.startswith("/v1/")
        ]
        return f"there is nothing at this address; this service has {', '.join(routes)}"

    def _account(self, exchange: Exchange) -> None:
        """The log line and the metrics."""
        scope, seconds = exchange.scope, time.monotonic() - exchange.started_at
        route = route_of(scope)
        method = exchange.method if exchange.method in METHODS else "other"
        metrics = self._service.metrics
        metrics.requests.labels(route, method, str(exchange.status)).inc()
        metrics.duration_seconds.labels(route).observe(seconds)
        fields: dict[str, Any] = {
            "request_id": scope["request_id"],
            "httpRequest": {
                "requestMethod": exchange.method,
                "requestUrl": scope["path"],
                "status": exchange.status,
                "responseSize": str(exchange.sent_bytes),
                "userAgent": exchange.headers.get("user-agent", "")[:200],
                "remoteIp": (scope.get("client") or ("",))[0],
                "latency": f"{seconds:.6f}s",
                "protocol": f"HTTP/{scope['http_version']}",
            },
        }
        project = os.environ.get("GOOGLE_CLOUD_PROJECT")
        trace = _TRACE.match(exchange.headers.get("x-cloud-trace-context", ""))
        if project and trace:
            fields["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace[1]}"
        level = logging.ERROR if exchange.status >= 500 else logging.INFO
        if exchange.status == 501:  # the caller asked for what is not offered here: nothing has failed
            level = logging.INFO
        log.log(level, "%s %s %d", exchange.method, scope["path"], exchange.status, extra={"fields": fields})


def route_of(scope: Scope) -> str:
    """Return the template of the route that a request took, or "other"; not its path, which may be anything.

    FastAPI (0.165) puts the route into the scope.
    """
    return getattr(scope.get("route"), "path", "other")


def _is_preflight(exchange: Exchange) -> bool:
    asks = "origin" in exchange.headers and "access-control-request-method" in exchange.headers
    return exchange.method == "OPTIONS" and asks


def _is_upload(exchange: Exchange) -> bool:
    return (exchange.method, errors.route_path(exchange.scope)) == ("POST", "/weights")
