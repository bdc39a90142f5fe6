"""Check the types of what a caller passes. Values are checked where their limits are. This imports no NumPy."""

from __future__ import annotations

import numbers
import os
from typing import Any

from rnnlm.strict_json import show

# What is accepted as one of these types, NumPy's numbers included, and how a message names it.
_ACCEPTED: dict[Any, tuple[Any, str]] = {
    str: (str, "a string"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
    os.PathLike: ((str, os.PathLike), "a string or a Path"),
}


def check_type(name: str, value: object, kind: type, hint: str = "") -> None:
    """Raise TypeError unless `value` is of `kind`. True and False are not taken for numbers.

    name: the argument's.   kind: a class, or one of _ACCEPTED.   hint: the remedy, where it is not obvious.
    """
    accepted, expected = _ACCEPTED.get(kind, (kind, f"of type {kind.__name__}"))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind in (int, float)):
        raise TypeError(f"{name} must be {expected}, got {describe(value)}" + (hint and f": {hint}"))


def describe(value: object) -> str:
    """Return a value and its type on one short line; of arrays and other objects only the type."""
    kind = type(value).__name__
    if value is None:
        return "None"
    return f"{show(value)} ({kind})" if isinstance(value, str | bytes | numbers.Number) else kind
