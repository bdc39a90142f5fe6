"""What the OpenAPI document says about errors: each status that a route can answer, in its shape."""

from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from service.errors import PROBLEM_JSON
from service.schemas import GenerateEnd, OpenAIErrors, Problem, TokenEvent

Responses = dict[int | str, dict[str, Any]]

ANYWHERE = (429, 500)  # too many requests at once; a fault of the service
BODY = (400, 408, 413)  # the body: not JSON or a form, too slow, too large
MODEL = (404, 415, 422, 501, 503, 504)  # routes with a JSON body that names a model

_REF = "#/components/schemas/{model}"


def problems(*statuses: int) -> Responses:
    """Return the responses of a route that answers these errors, and those of any route, as problems."""
    return _responses(statuses, PROBLEM_JSON, Problem.__name__)


def openai_errors(*statuses: int) -> Responses:
    """Return the same in OpenAI's shape, whose status for a field out of range is 400."""
    return _responses([status for status in statuses if status != 422], "application/json", OpenAIErrors.__name__)


def _responses(statuses: Any, media_type: str, model: str) -> Responses:
    content = {media_type: {"schema": {"$ref": _REF.format(model=model)}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, *ANYWHERE})
    }


def complete(document: dict[str, Any]) -> None:
    """Add what FastAPI does not know, and remove the answers that it only assumes."""
    schemas = document["components"]["schemas"]
    models = [(model, "serialization") for model in (Problem, OpenAIErrors, TokenEvent, GenerateEnd)]
    schemas.update(models_json_schema(models, ref_template=_REF)[1]["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                operation["responses"].pop("422", None)
