"""What is wrong with a body, in words that name its fields: pydantic's complaints without pydantic's internals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rnnlm.errors import meant, shortened

MOST_COMPLAINTS = 20

_WORDS = {  # by pydantic's type of complaint (2.14); {} is filled from its context
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "int_parsing_size": "must be an integer with fewer digits",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "greater_than": "must be more than {gt}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}


def complaints(errors: Sequence[Any], body: Any, known: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """Return (field, what is wrong with it) for each of pydantic's errors about a body, at most MOST_COMPLAINTS.

    known: the fields that the body may have, one of which is suggested for a misspelt one.
    Values that were sent are shown only if they are numbers: others may be secret or huge.
    """
    found: dict[str, list[str]] = {}
    for error in errors:
        messages = found.setdefault(_place(error, body), [])
        if (message := _message(error, known)) not in messages:
            messages.append(message)
    return tuple((place, _joined(messages)) for place, messages in list(found.items())[:MOST_COMPLAINTS])


def _place(error: Any, body: Any) -> str:
    """Return the path to a value in a body: pydantic's `loc` without what it adds, such as the branch of a union."""
    where, *rest = error["loc"]
    if where != "body":
        return ".".join(str(part) for part in rest) or str(where)
    path: list[str] = []
    value = body
    for index, part in enumerate(rest):
        is_missing = error["type"] == "missing" and index == len(rest) - 1
        if isinstance(value, Mapping) and (part in value or is_missing):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(str(part))
    return ".".join(path) or "body"


def _message(error: Any, known: Iterable[str]) -> str:
    if error["type"] == "extra_forbidden":
        field = meant(shortened(str(error["loc"][-1])), known)
        return "is not a field of this request: " + (f"do you mean {field}?" if field else "leave it out")
    context = {key: shown(value) for key, value in (error.get("ctx") or {}).items()}
    pattern = _WORDS.get(error["type"])
    words = pattern.format(**context) if pattern else error["msg"].removeprefix("Value error, ")
    words = re.sub(r"\b1 (character|item)s", r"1 \1", words)
    got = error.get("input")  # text, if the address has it, but a number where a bound is exceeded
    if (_is_number(got) or error["type"].startswith(("greater", "less"))) and words.startswith("must"):
        words += f", got {shown(got)}"
    return words


def _is_number(value: Any) -> bool:
    """Return whether a message may show the value as a number. An integer may be too large for math.isfinite."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def shown(value: Any) -> str:
    """Return a value for a message: 0 for 0.0, and no number of thousands of digits."""
    text = f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return shortened(text)


def nth_item(index: int, count: int) -> str:
    """Name an item of a list for people, who count from 1."""
    return f"item {index + 1} of {count}"


def _joined(messages: list[str]) -> str:
    """Join what each branch of a union says: must be a string, or a list."""
    first, *rest = messages
    return " or ".join([first, *(message.removeprefix("must be ").removeprefix("must have ") for message in rest)])
