"""Read and write strict JSON: finite, bounded, without duplicate keys. Files may come from anybody."""

import json
import math
from typing import Any

MAX_JSON_DEPTH = 16  # the service encodes again what it has loaded, and encoding recurses
MAX_JSON_INTEGER = 1 << 128  # NumPy's generator state has 128 bits; a float can hold that magnitude


class Invalid(ValueError):
    """What is wrong with a value. The code that reads the file adds the file's name."""


def decode_json(name: str, text: str) -> Any:
    """Parse JSON. Raises Invalid for duplicate keys, NaN, infinity, lone surrogates and too much depth."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise Invalid(f"{name} is nested more than {MAX_JSON_DEPTH} deep") from None
    except ValueError as error:
        raise Invalid(f"{name} is not valid JSON: {error}") from error
    _check_json(name, value)
    return value


def encode_json(name: str, value: object) -> str:
    """Return JSON text that decode_json accepts. Raises Invalid, naming the place, for a value that is not JSON."""
    _check_json(name, value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_json(name: str, value: object, *keys: str | int) -> None:
    """Raise Invalid unless `value` is JSON, finite (Python's parser takes NaN and 1e999), and not nested too deep.

    name, keys: its place, for the message; joined only when there is one.
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
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, but nothing can print it
        raise Invalid(f"{_place(name, *keys)} holds half of a surrogate pair") from error


def _place(name: str, *keys: str | int) -> str:
    return name + "".join(f"[{key!r:.40}]" for key in keys)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise Invalid(f"the key {show(key)} occurs twice")
        result[key] = value
    return result


def show(value: object) -> str:
    """Return an untrusted value as part of a one-line message: escaped and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
