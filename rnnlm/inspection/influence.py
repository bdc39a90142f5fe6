"""Why a model predicts a word: what each earlier token does to the prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rnnlm.arrays import F32, F64
from rnnlm.data.text import Vocabulary
from rnnlm.inspection.network import TOP, Matrices, Network, blocks, check_finite, largest

WINDOW = 24  # how many tokens before the explained one are examined

_GROUP = 8  # states whose logits are held at a time: V numbers each
_LARGEST = 1e300  # norms are held there: JSON has no infinity


class WordProbability(NamedTuple):
    """A word and its probability."""

    word: str
    probability: float


@dataclass(frozen=True)
class Influence:
    """What one earlier token does to the prediction of the explained one.

    position: of the token in `Inspection.words`.
    bits: KL divergence of the prediction without the token from that with it, KL(with || without), 0 or more.
    logprob_change: log-probability of the explained word without the token, less that with it, in nats: negative where
    the token makes the word more probable.
    gradient: Euclidean norm of the gradient of the explained word's log-probability by the token's embedding, in nats.
    jacobian: Frobenius norm of dh_T / dh_position, T being the last token before the explained one; sqrt(H) at T.
    distribution: the prediction without the token: of the words of `Inspection.distribution`, in that order, and then
    of those of its own TOP words that are not among them.
    """

    position: int
    bits: float
    logprob_change: float
    gradient: float
    jacobian: float
    distribution: tuple[WordProbability, ...]


@dataclass(frozen=True)
class Explanation:
    """A prediction, and what the tokens before it do to it: the fields of `Inspection` with these names."""

    word: str
    logprob: float
    distribution: tuple[WordProbability, ...]
    influences: tuple[Influence, ...]


def explain(
    network: Network, vocabulary: Vocabulary, ids: Sequence[int], history: F32, following: int | None
) -> Explanation:
    """The prediction after ids (T,), whose states are history (T, H).

    following: the word that is explained; None takes the most probable one, as greedy generation does (never <UNK>).
    """
    matrices = network.matrices()
    positions = range(max(0, len(ids) - WINDOW), len(ids))
    predictions = _predictions(network, ids, history, positions)
    full = next(predictions)
    token = _most_probable(full, vocabulary.unk) if following is None else following
    probabilities, top = np.exp(full), largest(full, TOP)
    gradients = _input_gradients(matrices, history, probabilities, token, positions)
    jacobians = _jacobian_norms(matrices.Whh, history, positions)
    influences = [
        Influence(
            position=position,
            bits=max(0.0, float(probabilities @ (full - logprobs)) / math.log(2.0)),
            logprob_change=float(logprobs[token] - full[token]),
            gradient=gradient,
            jacobian=jacobian,
            distribution=_words(vocabulary, logprobs, [*top, *(i for i in largest(logprobs, TOP) if i not in top)]),
        )
        for position, gradient, jacobian, logprobs in zip(positions, gradients, jacobians, predictions, strict=True)
    ]
    return Explanation(vocabulary.words[token], float(full[token]), _words(vocabulary, full, top), tuple(influences))


def _predictions(network: Network, ids: Sequence[int], history: F32, positions: range) -> Iterator[F64]:
    """Yield log p(. | ids), then the same without each of the positions: (V,) each."""
    ends = [history[len(ids) - 1]]
    for i in positions:
        before = history[i - 1] if i else np.zeros_like(history[0])
        rest = ids[i + 1 :]
        ends.append(network.hidden_states(rest, before)[-1] if rest else before)
    states = np.stack(ends)
    for start in range(0, len(states), _GROUP):
        logits = network.logits(states[start : start + _GROUP])
        check_finite("logits", logits)
        yield from map(_log_softmax, logits)


def _log_softmax(logits: F32) -> F64:
    z = logits.astype(np.float64)
    z -= z.max()
    z -= np.log(np.exp(z).sum())
    return z


def _most_probable(logprobs: F64, banned: int | None) -> int:
    best = largest(logprobs, 2)
    return best[-1] if best[0] == banned else best[0]


def _words(vocabulary: Vocabulary, logprobs: F64, ids: Sequence[int]) -> tuple[WordProbability, ...]:
    return tuple(WordProbability(vocabulary.words[i], float(np.exp(logprobs[i]))) for i in ids)


def _input_gradients(matrices: Matrices, history: F32, p: F64, token: int, positions: range) -> list[float]:
    """The norm of d log p[token] / d x_i for each position i, of states `history` that end in the prediction p (V,)."""
    h = history.astype(np.float64)
    Wxh, Whh = matrices.Wxh.astype(np.float64), matrices.Whh.astype(np.float64)
    p32 = p.astype(np.float32)
    dh = matrices.Why[:, token].astype(np.float64)  # d log p[token] / dh = Why[:, token] - Why p
    for start, stop in blocks(len(p), len(dh)):
        dh -= matrices.Why[:, start:stop] @ p32[start:stop]
    norms = []
    for i in reversed(positions):
        dz = dh * (1.0 - h[i] ** 2)
        norms.append(_held(np.linalg.norm(Wxh @ dz)))
        dh = Whh @ dz
    return norms[::-1]


def _jacobian_norms(Whh: F32, history: F32, positions: range) -> list[float]:
    """The Frobenius norm of dh_T / dh_i for each position i, T being the last. float32 takes half of float64's time."""
    hidden = Whh.shape[0]
    norm, norms = math.sqrt(hidden), []
    product = np.eye(hidden, dtype=np.float32) / np.float32(norm)  # kept at norm 1: powers neither vanish nor overflow
    for i in reversed(positions):
        norms.append(_held(norm))
        with np.errstate(over="ignore", invalid="ignore"):  # of weights near the largest float
            product = (Whh * (1.0 - history[i] ** 2)) @ product
        growth = float(np.linalg.norm(product.astype(np.float64)))
        norm *= growth
        if growth > 0.0:
            product /= np.float32(growth)
    return norms[::-1]


def _held(norm: float) -> float:
    return float(norm) if norm < _LARGEST else _LARGEST  # NaN, of infinities, included
