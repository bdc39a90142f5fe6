"""The errors that clients receive: one type each, and one place where they become a response.

Outside /v1 an error is an RFC 9457 problem (application/problem+json); under /v1 it has OpenAI's shape. `detail` is
written for the client: it names the value, the limit and the remedy, and never a path or a trace of this machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Self

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.validation import complaints

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"


class ServiceError(Exception):
    """What a client gets instead of a reply.

    code: a short name for programs.   fields: (field of the body, what is wrong with it).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        fields: tuple[tuple[str, str], ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.headers = dict(headers or {})


class MalformedRequest(ServiceError):
    status, code = 400, "malformed_request"


class InvalidRequest(ServiceError):
    status, code = 422, "invalid_request"

    @classmethod
    def of(cls, field: str, message: str) -> Self:
        """Make one about a field of the body. The message continues a sentence that the field's name begins."""
        return cls(f"{field} {message}", fields=((field, message),))


class InvalidUpload(ServiceError):
    status, code = 422, "invalid_weights"


class Unauthorized(ServiceError):
    status, code = 401, "unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"www-authenticate": "Bearer"})


class Forbidden(ServiceError):
    status, code = 403, "forbidden"


class WeightsNotFound(ServiceError):
    status, code = 404, "weights_not_found"


class NotFound(ServiceError):
    """There is nothing at this address."""

    status, code = 404, "not_found"


class WrongMethod(ServiceError):
    status, code = 405, "method_not_allowed"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        methods = ", ".join(allowed)
        # Nobody who wants to look at a weights file should be told to delete it.
        remedy = ", only DELETE: GET /weights lists the weights files" if methods == "DELETE" else f": use {methods}"
        super().__init__(f"this address does not take {method}{remedy}", headers={"allow": methods})


class SlowRequest(ServiceError):
    status, code = 408, "slow_request"


class WeightsExist(ServiceError):
    status, code = 409, "weights_exist"


class BodyTooLarge(ServiceError):
    status, code = 413, "body_too_large"


class UnsupportedMediaType(ServiceError):
    status, code = 415, "unsupported_media_type"

    def __init__(self, content_type: str) -> None:
        found = f"came as {content_type[:100]}" if content_type else "came without a type"
        super().__init__(f"the body {found}: send JSON, with the header Content-Type: application/json")


class Busy(ServiceError):
    status, code = 429, "busy"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail, headers={"retry-after": str(retry_after_seconds)})


class Internal(ServiceError):
    def __init__(self) -> None:
        super().__init__("the service failed: its log has the reason, under this request's id")


class BackendMissing(ServiceError):
    status, code = 501, "backend_missing"


class NotReady(ServiceError):
    status, code = 503, "not_ready"


class WeightsUnusable(ServiceError):
    status, code = 503, "weights_unusable"


class FolderFailed(ServiceError):
    """The file system cannot tell whether there are weights: a mounted folder has lost its connection."""

    status, code = 503, "folder_failed"

    def __init__(self) -> None:
        super().__init__(
            "the weights folder cannot be read at the moment: try again later", headers={"retry-after": "5"}
        )


class NoMemory(ServiceError):
    status, code = 503, "no_memory"

    def __init__(self) -> None:
        super().__init__(
            "there is not enough memory for this request: ask for less, or try again later",
            headers={"retry-after": "5"},
        )


class TrialInterrupted(ServiceError):
    """The trial of an upload did not finish, which says nothing about the file."""

    status, code = 503, "trial_interrupted"

    def __init__(self, what: str) -> None:
        super().__init__(f"the trial of the file {what}: send it again later", headers={"retry-after": "60"})


class ShuttingDown(ServiceError):
    status, code = 503, "shutting_down"

    def __init__(self) -> None:
        super().__init__("the service is stopping; send the request again", headers={"retry-after": "5"})


class TimeLimit(ServiceError):
    status, code = 504, "time_limit"


class NoSpace(ServiceError):
    status, code = 507, "no_space"


class ClientGone(Exception):
    """The client has closed its connection."""


# ---- From an exception to an error, and from an error to a response -------------------------------------------------


class HttpError(ServiceError):
    """A refusal by the framework, such as a missing file of the page."""

    def __init__(self, error: HTTPException) -> None:
        super().__init__(str(error.detail), headers=error.headers)
        phrase = HTTPStatus(error.status_code).phrase
        self.status, self.code = error.status_code, phrase.lower().replace(" ", "_")  # type: ignore[misc]


def from_validation(error: RequestValidationError, known: Iterable[str]) -> ServiceError:
    """Turn the framework's complaints about a request into ours.   known: the fields that its body may have."""
    for complaint in error.errors():
        if complaint["type"] == "json_invalid":
            return MalformedRequest(f"the body is not valid JSON: look at character {complaint['loc'][-1]}")
    fields = complaints(error.errors(), error.body, known)
    return InvalidRequest("; ".join(f"{place} {message}" for place, message in fields), fields=fields)


def content(error: ServiceError, scope: Scope) -> dict[str, Any]:
    """Return the JSON object that reports `error`, in the shape of the request's protocol."""
    if is_openai(scope):
        return {
            "error": {
                "message": error.detail,
                "type": _openai_type(error.status),
                "param": error.fields[0][0] if error.fields else None,
                "code": error.code,
            }
        }
    problem = {
        "type": f"urn:rnn:problem:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": scope.get("request_id"),
    }
    if error.fields:
        problem["errors"] = [{"field": place, "message": message} for place, message in error.fields]
    return problem


def response(error: ServiceError, scope: Scope) -> Response:
    """Return `error` as a response."""
    media_type = "application/json" if is_openai(scope) else PROBLEM_JSON
    status = 400 if is_openai(scope) and error.status == 422 else error.status  # what OpenAI answers, and clients map
    body = json.dumps(content(error, scope))  # as ASCII: a field's name may hold half of a surrogate pair
    return Response(body, status, headers=error.headers, media_type=media_type)


def route_path(scope: Scope) -> str:
    """Return the address as the routes have it, without the path that a proxy serves them under."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def is_openai(scope: Scope) -> bool:
    return f"{route_path(scope)}/".startswith("/v1/")


def _openai_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error"
    )


# The framework's handlers: each turns what was raised into a ServiceError, and that into a response.


async def on_service_error(request: Request, error: ServiceError) -> Response:
    return response(error, request.scope)


async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
    body = getattr(request.scope.get("route"), "body_field", None)
    known = getattr(body.field_info.annotation, "model_fields", ()) if body else ()
    return response(from_validation(error, known), request.scope)


async def on_http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 400:  # the framework's answer to JSON nested too deep, or to a number of 5,000 digits
        return response(MalformedRequest("the body cannot be read as JSON"), request.scope)
    return response(HttpError(error), request.scope)


async def on_memory(request: Request, error: MemoryError) -> Response:
    log.warning("a request ran out of memory", extra={"fields": {"request_id": request.scope.get("request_id")}})
    return response(NoMemory(), request.scope)


async def on_bug(request: Request, error: Exception) -> Response:
    return response(Internal(), request.scope)  # the framework raises it again: middleware.py writes the log


HANDLERS: dict[Any, Any] = {
    ServiceError: on_service_error,
    RequestValidationError: on_validation_error,
    HTTPException: on_http_error,
    MemoryError: on_memory,  # or on_bug would answer before middleware.py sees it
    Exception: on_bug,
}
