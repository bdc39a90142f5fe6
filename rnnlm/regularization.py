"""The random part of a training step: dropout masks, and the candidates of a sampled softmax.

Everything is drawn from two numbers, the seed and the step. So both back ends get the same masks and candidates, and a
resumed run gets those that it would have had without the stop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rnnlm.arrays import F32, F64, I32, I64, Mask


@dataclass(frozen=True, eq=False)
class Candidates:
    """The words that a sampled softmax ranks instead of the whole vocabulary.

    ids: (C,) ascending token ids.  correction: (C,), added to their logits.  targets: (T, B), the position of each
    target in `ids`.
    """

    ids: I32
    correction: F32
    targets: I32


@dataclass(frozen=True, eq=False)
class Regularization:
    """Holds what one step adds to the plain gradient.

    input_mask: (B, E), dropout of the word vectors.  output_mask: (B, H), dropout of the hidden state on its way to the
    output layer.  dropped_words: (V,), True for a word whose vector is read as zeros.  candidates: the sampled softmax.
    None: not used.
    """

    input_mask: F32 | None = None
    output_mask: F32 | None = None
    dropped_words: Mask | None = None
    candidates: Candidates | None = None

    def of_rows(self, rows: slice) -> Regularization:
        """Return the part that concerns some of the batch rows: those of one process of several."""
        masks = (None if mask is None else mask[rows] for mask in (self.input_mask, self.output_mask))
        candidates = self.candidates
        if candidates is not None:
            candidates = replace(candidates, targets=np.ascontiguousarray(candidates.targets[:, rows]))
        return Regularization(*masks, self.dropped_words, candidates)


NO_REGULARIZATION = Regularization()


class CandidateSampler:
    """Draws the candidates of a chunk: its own targets, and `size` words of the vocabulary.

    The loss is a softmax over the candidates, where -log of the probability that a word is a candidate is added to its
    logit (Bengio & Senecal 2003; Jean et al. 2015, "On Using Very Large Target Vocabulary"). Its optimum is that of the
    full softmax. Near the optimum its expected gradient is that of the full softmax too; elsewhere the two differ.

    All rows of a chunk share the targets of the whole chunk (Yi et al. 2019, "Sampling-Bias-Corrected Neural
    Modeling"). The correction treats the words of a text as independent draws, which is an approximation. A word that
    is certain to be drawn gets no correction, so `size` = V gives the full softmax.
    """

    # Words are drawn in proportion to count ** POWER. On WikiText-2 0.5 learns a little faster than word2vec's 0.75:
    # validation perplexity 516 against 527 after 400,000 tokens.
    POWER = 0.5

    def __init__(self, counts: I64, size: int) -> None:
        """Prepare the draws. counts: (V,), how often each word occurs in the training text.  size: in 1 .. V."""
        self._share = counts / counts.sum()
        self._chance = _inclusion(np.maximum(counts, 1) ** self.POWER, size)
        self._cumulative = np.cumsum(self._chance)
        self._points = np.arange(size)
        self._tokens, self._kept = -1, np.empty(0, dtype=np.float32)  # of the last chunk: its size, the corrections

    def draw(self, y: I32, rng: np.random.Generator) -> Candidates:
        """Draw the candidates of a chunk with targets y (T, B)."""
        # Systematic sampling (Madow 1949): one random number draws `size` distinct words, each with its own chance.
        drawn = np.searchsorted(self._cumulative, rng.random() + self._points, side="right")
        is_candidate = np.zeros(self._share.size + 1, dtype=bool)  # rounding may draw V, which is no word
        is_candidate[drawn] = is_candidate[y] = True
        ids = np.flatnonzero(is_candidate[:-1]).astype(np.int32)
        position = np.empty(self._share.size, dtype=np.int32)
        position[ids] = np.arange(ids.size)
        return Candidates(ids=ids, correction=self._corrections(y.size)[ids], targets=position[y])

    def _corrections(self, tokens: int) -> F32:
        """Return the correction of every word, (V,), in a chunk of so many tokens. Most chunks have equally many."""
        if tokens != self._tokens:
            absent = (1.0 - self._chance) * (1.0 - self._share) ** tokens
            self._kept = -np.log1p(-np.minimum(absent, 1.0 - 1e-12)).astype(np.float32)
            self._tokens = tokens
        return self._kept


def _inclusion(weight: F64, size: int) -> F64:
    """Return chances in (0, 1] that add up to `size`, in proportion to `weight` except where that exceeds 1."""
    chance = np.zeros_like(weight)
    certain = np.zeros(weight.shape, dtype=bool)
    while True:
        rest = weight[~certain].sum()
        chance[~certain] = weight[~certain] * (size - certain.sum()) / rest if rest else 0.0
        more = ~certain & (chance >= 1.0)
        if not more.any():
            return chance
        certain |= more
        chance[certain] = 1.0


class Regularizer:
    """Draws the regularization of each step of a run."""

    def __init__(
        self,
        *,
        seed: int,
        input_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        word_dropout: float = 0.0,
        vocab_size: int = 0,
        sampler: CandidateSampler | None = None,
    ) -> None:
        self._seed, self._sampler = seed, sampler
        self._input = input_size, input_dropout
        self._output = hidden_size, dropout
        self._words = vocab_size, word_dropout
        self._draws = bool(dropout or input_dropout or word_dropout or sampler)

    def draw(self, step: int, y: I32) -> Regularization:
        """Draw for step `step`, counted from 0 over the whole run, and a chunk with targets y (T, B)."""
        if not self._draws:
            return NO_REGULARIZATION
        rng = np.random.default_rng([self._seed, step])
        masks = _mask(rng, y.shape[1], *self._input), _mask(rng, y.shape[1], *self._output)
        candidates = self._sampler.draw(y, rng) if self._sampler else None
        vocab_size, rate = self._words  # all processes drop the same words, as all have the same candidates
        dropped = rng.random(vocab_size, dtype=np.float32) < rate if rate else None
        return Regularization(*masks, dropped, candidates)


def _mask(rng: np.random.Generator, batch: int, width: int, rate: float) -> F32 | None:
    """Draw a dropout mask (batch, width): 0 with probability `rate`, 1 / (1 - rate) otherwise. None if rate is 0."""
    if not rate:
        return None
    return (rng.random((batch, width), dtype=np.float32) >= rate) / np.float32(1.0 - rate)
