"""What may come next: the most probable words after a text, and how a sampling rule changes their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rnnlm.data.text import Vocabulary
from rnnlm.inspection.network import Network, check_count, check_finite, check_sizes, largest
from rnnlm.sampling import Sampling, distribution


class Candidate(NamedTuple):
    """A word that may come next.

    probability: the model's own.   drawn: with which it is drawn by the rule; 0 if the rule leaves it out.
    """

    id: int
    word: str
    probability: float
    drawn: float


@dataclass(frozen=True)
class Candidates:
    """The words that may come next, the most probable first.

    drawable: how many words of the whole vocabulary the rule can draw.
    unknown: the model's probability of <UNK>, which is never drawn; None if the vocabulary has no <UNK>.
    """

    words: tuple[Candidate, ...]
    drawable: int
    unknown: float | None


def candidates(network: Network, vocabulary: Vocabulary, ids: Sequence[int], sampling: Sampling, k: int) -> Candidates:
    """The k most probable words after ids, whose first is <EOS>. Raises InspectionError (too large, k out of range)."""
    check_sizes(network.matrices())
    check_count(k)
    logits = network.logits(network.hidden_states(ids)[-1:])[0]
    check_finite("logits", logits)
    own = distribution(logits, Sampling())
    drawn = distribution(logits, sampling, vocabulary.unk)
    best = largest(logits.astype(np.float64), k)
    words = tuple(Candidate(i, vocabulary.words[i], float(own[i]), float(drawn[i])) for i in best)
    unknown = None if vocabulary.unk is None else float(own[vocabulary.unk])
    return Candidates(words, int(np.count_nonzero(drawn)), unknown)
