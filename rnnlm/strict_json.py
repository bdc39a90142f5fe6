"""JSON as the standard has it, from files that anybody may have written: finite, bounded, without surprises."""

import json
import math
from typing import Any

MAX_JSON_DEPTH = 16  # what is loaded gets encoded again (by the service), which recurses
MAX_JSON_INTEGER = 1 << 128  # the state of NumPy's generator needs that many; a float holds its magnitude


class Invalid(ValueError):
    """What is wrong, without the file's name, which who reads the file adds."""


def decode_json(name: str, text: str) -> Any:
    """JSON as the standard has it: no duplicate keys, NaN, infinity or lone surrogates; bounded in depth."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise Invalid(f"{name} is nested more than {MAX_JSON_DEPTH} deep") from None
    except ValueError as error:
        raise Invalid(f"{name} is not valid JSON: {error}") from error
    _check_json(name, value)
    return value


def encode_json(name: str, value: object) -> str:
    """JSON text that decode_json accepts. Raises ValueError, naming the place, for what is not JSON."""
    _check_json(name, value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_json(name: str, value: object, *keys: str | int) -> None:
    """Raise unless `value` is JSON, finite (Python's parser takes NaN and 1e999), and not nested too deep.

    name, keys: where it stands, for the message; put together only when there is one.
    """
    if isinstance(value, dict | list | tuple):
        if len(keys) >= MAX_JSON_DEPTH:
            raise Invalid(f"{name} is nested more than {MAX_JSON_DEPTH} deep")
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if not isinstance(key, str):
                    raise Invalid(f"{_place(name, *keys)} has the key {show(key)}, which is not a string")
                _check_text(key, name, *keys)
            _check_json(name, child, *keys, key)
    elif isinstance(value, str):
        _check_text(value, name, *keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"{_place(name, *keys)} is {value}, which is not a finite number")
    elif isinstance(value, int) and abs(value) >= MAX_JSON_INTEGER:
        raise Invalid(f"{_place(name, *keys)} is {show(value)}, which takes more than 128 bits")
    elif value is not None and not isinstance(value, int | float):
        raise Invalid(f"{_place(name, *keys)} is of type {type(value).__name__}, which is not JSON")


def _check_text(text: str, name: str, *keys: str | int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; nothing can print it
        raise Invalid(f"{_place(name, *keys)} holds half of a surrogate pair") from error


def _place(name: str, *keys: str | int) -> str:
    return name + "".join(f"[{key!r:.40}]" for key in keys)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise Invalid(f"the key {show(key)} stands twice")
        result[key] = value
    return result


def show(value: object) -> str:
    """A value from outside, for one line of a message: escaped and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
