"""How far apart evaluations are: `--evaluate-every 2` (epochs), `0.25` (of an epoch) or `500steps`."""

from __future__ import annotations

import math
import re
from fractions import Fraction

Interval = str | int | float

_STEPS = re.compile(r"([0-9]{1,18}) ?steps?")


def parse(value: Interval) -> Interval | None:
    """Return the one way to write an interval: 2, 0.25 or "500steps". None if it is no interval, or not above 0."""
    text = str(value).strip()
    if match := _STEPS.fullmatch(text):
        return f"{int(match[1])}steps" if int(match[1]) else None
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or number <= 0:
        return None
    return int(number) if number.is_integer() else number


def steps(interval: Interval, steps_per_epoch: int) -> Fraction:
    """Return the steps from one evaluation to the next, at least 1. A fraction, so that no rounding adds up."""
    text = str(interval)
    if text.endswith("steps"):
        return Fraction(int(text.removesuffix("steps")))
    return max(Fraction(text) * steps_per_epoch, Fraction(1))
