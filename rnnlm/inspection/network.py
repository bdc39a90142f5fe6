"""What an inspection needs of a back end, its limits, and what its parts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rnnlm.arguments import check_type
from rnnlm.arrays import F32, F64
from rnnlm.errors import UserError

TOP = 10  # words of a list
MAX_TOKENS = 2_000  # of a text, its leading <EOS> included
MAX_STATE_VALUES = 500_000  # T * H of the hidden states that are given out
MAX_WORDS = 100  # k: of a unit, or of neighbours
MAX_VOCAB = 300_000
MAX_EMBED = 1_024
MAX_HIDDEN = 1_024  # products of Jacobians, and eigenvalues, take time H^3: about a second here

_BLOCK = 1 << 19  # numbers that are widened to float64 at a time


class InspectionError(UserError, ValueError):
    """What is asked cannot be inspected. The message names the value, the limit and the remedy."""


class Matrices(NamedTuple):
    """A model's own float32 weights, as views: in the weights file's layout, (in, out), in any memory order."""

    embeddings: F32  # (V, E)
    Wxh: F32  # (E, H)
    Whh: F32  # (H, H)
    bh: F32  # (H,)
    Why: F32  # (H, V)
    by: F32  # (V,)


class Network(Protocol):
    """What a back end provides."""

    def hidden_states(self, ids: Sequence[int], state: F32 | None = None) -> F32:
        """The hidden state after each of ids (N,): (N, H). state: (H,), before the first; None: zeros."""
        ...

    def logits(self, states: F32) -> F32:
        """h Why + by for states (n, H): (n, V)."""
        ...

    def matrices(self) -> Matrices:
        """Its weights, without a copy."""
        ...


class WordValue(NamedTuple):
    """A word and what was asked of it: a drive, a weight or a cosine."""

    word: str
    value: float


def check_sizes(matrices: Matrices) -> None:
    """Raise InspectionError for a model that is too large."""
    for name, size, limit in (
        ("words", matrices.Why.shape[1], MAX_VOCAB),
        ("numbers in an embedding", matrices.Wxh.shape[0], MAX_EMBED),
        ("hidden units", matrices.Whh.shape[0], MAX_HIDDEN),
    ):
        if size > limit:
            raise InspectionError(
                f"the model has {size:,} {name}, more than the {limit:,} that can be inspected: use a smaller one"
            )


def check_tokens(count: int) -> None:
    """Raise InspectionError for a text that is too long."""
    if count > MAX_TOKENS:
        raise InspectionError(
            f"the text has {count:,} tokens, more than the {MAX_TOKENS:,} that can be inspected: shorten it"
        )


def check_count(k: int) -> None:
    """Raise InspectionError for a number of words out of range."""
    check_type("k", k, int)
    if not 1 <= k <= MAX_WORDS:
        raise InspectionError(f"k must be from 1 to {MAX_WORDS}, got {k}")


def check_finite(what: str, values: F32) -> None:
    """Raise InspectionError if a model has overflowed. what: what the values are."""
    if not np.isfinite(values).all():
        raise InspectionError(f"the {what} are not finite, the weights being too large: use another weights file")


def blocks(rows: int, width: int) -> list[tuple[int, int]]:
    """Ranges of rows that hold _BLOCK numbers each."""
    step = max(1, _BLOCK // width)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def largest(values: F64, k: int) -> list[int]:
    """The places of the k largest values, the largest first; of equal ones the lowest."""
    k = min(k, len(values))
    candidates = np.flatnonzero(values >= np.partition(values, len(values) - k)[len(values) - k])
    return candidates[np.argsort(-values[candidates], kind="stable")][:k].tolist()
