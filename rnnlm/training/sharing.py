"""The evaluation of one text by several processes: each has a part of it, and the result is that of one process.

The text is one sequence, so a part begins with the state that the text before it leaves. Each process computes that
state itself, through the hidden layer only: of a token's H * (E + H + V) products, those without V.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rnnlm.arrays import I32
from rnnlm.language_model import EVALUATION_STEPS
from rnnlm.training.distributed import Group
from rnnlm.training.trainer import Trainer

TELL_SECONDS = 1.0  # between two counts that a process passes on


def part(tokens: int, rank: int, size: int) -> tuple[int, int]:
    """Return the first token that a process evaluates and the one after its last: whole steps of an evaluation.

    A short text has fewer of them than there are processes. Some parts are then empty.
    """
    steps = -(-tokens // EVALUATION_STEPS)
    first, end = (min(tokens, steps * share // size * EVALUATION_STEPS) for share in (rank, rank + 1))
    return first, end


def evaluate(trainer: Trainer, group: Group, ids: I32, advance: Callable[[int], object], name: str) -> float:
    """Return the mean nats per token over `ids` (N,), the same on all processes, which must all call this.

    advance: called on rank 0 with the number of tokens that all processes have done since the last call.
    name: of this evaluation, which no other one of the run has.
    Raises FloatingPointError, on all processes if on one; PeerLost.
    """
    if group.size == 1:
        return trainer.evaluate(ids, advance)
    first, end = part(ids.size - 1, group.rank, group.size)
    count = _Count(group, advance, name)
    try:
        total = trainer.evaluate(ids[: end + 1], count.add, first) * (end - first) if first < end else 0.0
    except FloatingPointError:
        total = math.nan  # the others wait for this sum, and must stop too
    (total,) = group.totals(total)
    if not math.isfinite(total):
        raise FloatingPointError(f"loss {total}")
    count.show(ids.size - 1)
    return total / (ids.size - 1)


class _Count:
    """Counts the tokens that all processes have evaluated, and shows them on rank 0."""

    def __init__(self, group: Group, advance: Callable[[int], object], name: str) -> None:
        self._group, self._advance, self._name = group, advance, name
        self._own = self._shown = 0
        self._told = time.monotonic()

    def add(self, count: int) -> None:
        """Count tokens of this process."""
        self._own += count
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._told, own, self._own = time.monotonic(), self._own, 0
            self.show(self._group.tally(self._name, own))

    def show(self, done: int) -> None:
        """Show how many tokens are done."""
        if self._group.rank == 0:
            self._advance(done - self._shown)
            self._shown = done
