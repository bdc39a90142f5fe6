"""What the weights hold: the spectrum of the recurrence, the words around a unit, and the neighbours of a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rnnlm.arguments import check_type
from rnnlm.arrays import F32, F64
from rnnlm.data.text import Vocabulary
from rnnlm.errors import shortened
from rnnlm.inspection.network import (
    TOP,
    InspectionError,
    Network,
    WordValue,
    blocks,
    check_count,
    check_finite,
    check_sizes,
    check_tokens,
    largest,
)

C128 = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues, the largest magnitude first.

    recurrent: (H,) complex, of Whh.   effective: (H,), of diag(1 - h^2) Whh averaged over the tokens of a text; None
    without one.
    """

    recurrent: C128
    effective: C128 | None


@dataclass(frozen=True)
class Unit:
    """The words that one hidden unit listens to, and those that it speaks for; the strongest first.

    raised_by, lowered_by: words whose embedding drives the unit up or down most: (x Wxh)[unit], before tanh.
    raises, lowers: words whose logit it raises or lowers most as it goes from 0 to 1: Why[unit].
    """

    index: int
    raised_by: tuple[WordValue, ...]
    lowered_by: tuple[WordValue, ...]
    raises: tuple[WordValue, ...]
    lowers: tuple[WordValue, ...]


@dataclass(frozen=True)
class Neighbours:
    """The words nearest to one by cosine: by input, the rows of the embeddings, and by output, the columns of Why."""

    word: str
    by_input: tuple[WordValue, ...]
    by_output: tuple[WordValue, ...]


def spectrum(network: Network, ids: Sequence[int] | None = None) -> Spectrum:
    """The eigenvalues of the recurrence, with the ids of a text also as tanh weakens it. Raises InspectionError."""
    matrices = network.matrices()
    check_sizes(matrices)
    Whh = matrices.Whh.astype(np.float64)
    if ids is None:
        return Spectrum(_eigenvalues(Whh), None)
    check_tokens(len(ids))
    states = network.hidden_states(ids)
    check_finite("hidden states", states)
    slope = (1.0 - states.astype(np.float64) ** 2).mean(axis=0)
    return Spectrum(_eigenvalues(Whh), _eigenvalues(slope[:, np.newaxis] * Whh))


def _eigenvalues(matrix: F64) -> C128:
    values = np.linalg.eigvals(matrix).astype(np.complex128)
    return values[np.lexsort((-values.imag, -np.abs(values)))]


def unit(network: Network, vocabulary: Vocabulary, index: int, k: int = TOP) -> Unit:
    """The words around hidden unit `index`, k in each list. Raises InspectionError."""
    matrices = network.matrices()
    check_sizes(matrices)
    check_count(k)
    check_type("the unit", index, int)
    hidden = matrices.Whh.shape[0]
    if not 0 <= index < hidden:
        raise InspectionError(f"the unit must be from 0 to {hidden - 1:,}, got {index:,}")
    weights = matrices.Wxh[:, index].astype(np.float64)
    drives = np.concatenate(
        [
            matrices.embeddings[start:stop].astype(np.float64) @ weights
            for start, stop in blocks(*matrices.embeddings.shape)
        ]
    )
    raises = matrices.Why[index].astype(np.float64)

    def words(values: F64, sign: float) -> tuple[WordValue, ...]:
        return tuple(WordValue(vocabulary.words[i], float(values[i])) for i in largest(sign * values, k))

    return Unit(index, words(drives, 1.0), words(drives, -1.0), words(raises, 1.0), words(raises, -1.0))


def neighbours(network: Network, vocabulary: Vocabulary, word: str, k: int = TOP) -> Neighbours:
    """The k words nearest to `word`, which is not among them. Raises InspectionError."""
    matrices = network.matrices()
    check_sizes(matrices)
    check_count(k)
    check_type("the word", word, str)
    if word not in vocabulary.ids:
        raise InspectionError(
            f"{shortened(word)!r} is not among the {len(vocabulary):,} words of this model: try another"
        )
    token = vocabulary.ids[word]

    def nearest(vectors: F32) -> tuple[WordValue, ...]:
        cosines = _cosines(vectors, token)
        best = [i for i in largest(cosines, k + 1) if i != token][:k]
        return tuple(WordValue(vocabulary.words[i], float(cosines[i])) for i in best)

    return Neighbours(word, nearest(matrices.embeddings), nearest(matrices.Why.T))


def _cosines(vectors: F32, index: int) -> F64:
    """Of each row of `vectors` (V, n) with row `index`; 0 where either is zero. In blocks: V * n may be 200 million."""
    own = vectors[index].astype(np.float64)
    own /= np.linalg.norm(own) or 1.0
    cosines = np.empty(len(vectors))
    for start, stop in blocks(*vectors.shape):
        block = vectors[start:stop].astype(np.float64)  # keeps the memory order, and squares cannot overflow
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        cosines[start:stop] = block @ own / np.where(lengths > 0.0, lengths, 1.0)
    return cosines
