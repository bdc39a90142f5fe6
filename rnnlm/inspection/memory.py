"""What a model remembers: how the hidden states of two texts come together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnnlm.arrays import F32
from rnnlm.data.text import Vocabulary
from rnnlm.inspection.network import Network, check_finite

FORGOTTEN = 0.01  # of the difference that a replaced word makes at first


@dataclass(frozen=True)
class Memory:
    """How a text and another, which starts with one word replaced, come together again.

    words: those of the other text, with its leading <EOS>.
    changed: the first position at which the two differ; None where they do not, as far as the shorter goes.
    differences: the Euclidean norm of the difference of their hidden states, for each position that both have.
    forgotten_after: how many words after the changed one the difference is, and stays, below 1% of what it was there;
    None where that is not reached.
    """

    words: tuple[str, ...]
    changed: int | None
    differences: tuple[float, ...]
    forgotten_after: int | None


def first_word_replaced(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """The text with its first word replaced by the most frequent other one: ids are in order of frequency."""
    first = next((i for i, token in enumerate(ids) if token != vocabulary.eos), len(ids) - 1)
    taken = {vocabulary.eos, vocabulary.unk, ids[first]}
    replacement = next((token for token in range(len(vocabulary)) if token not in taken), vocabulary.eos)
    return [*ids[:first], replacement, *ids[first + 1 :]]


def remember(
    network: Network, vocabulary: Vocabulary, ids: Sequence[int], history: F32, other: Sequence[int]
) -> Memory:
    """Compare the states of ids, history (T, H), with those of `other`. Raises InspectionError (not finite)."""
    common = min(len(ids), len(other))
    changed = next((i for i in range(common) if ids[i] != other[i]), None)
    differences = np.zeros(common)
    forgotten_after = None
    if changed is not None:  # position 0 is <EOS> in both
        theirs = network.hidden_states(other[changed:common], history[changed - 1])
        check_finite("hidden states", theirs)
        differences[changed:] = np.linalg.norm(history[changed:common].astype(np.float64) - theirs, axis=1)
        last_felt = changed + int(np.flatnonzero(differences[changed:] >= FORGOTTEN * differences[changed])[-1])
        forgotten_after = last_felt + 1 - changed if last_felt + 1 < common else None
    return Memory(
        words=tuple(vocabulary.words[i] for i in other),
        changed=changed,
        differences=tuple(differences.tolist()),
        forgotten_after=forgotten_after,
    )
