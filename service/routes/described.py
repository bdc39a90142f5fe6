"""What the OpenAPI document says of errors."""

from http import HTTPStatus
from typing import Any

from service.errors import PROBLEM_JSON
from service.schemas import Problem

_PROBLEM = {"$ref": "#/components/schemas/Problem"}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers these errors with a problem."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "model": Problem,
            "content": {PROBLEM_JSON: {"schema": _PROBLEM}},
        }
        for status in statuses
    }


def openai_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same in OpenAI's shape."""
    error = {"type": "object", "properties": {name: {} for name in ("message", "type", "param", "code")}}
    schema = {"type": "object", "required": ["error"], "properties": {"error": error}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": schema}},
        }
        for status in statuses
    }
