"""The random part of a training step: dropout masks, and the candidates of a sampled softmax.

All of it is drawn from the seed and the number of the step alone: so both back ends see the same noise, and a run that
was stopped and goes on sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The words that a sampled softmax takes for all there are.

    ids: (C,) ascending token ids.  correction: (C,), added to their logits.  targets: (T, B), the place of each target
    among the ids.
    """

    ids: I32
    correction: F32
    targets: I32


@dataclass(frozen=True, eq=False)
class StepNoise:
    """What one step adds to the plain gradient. input_mask: (B, E); output_mask: (B, H); None: nothing."""

    input_mask: F32 | None = None
    output_mask: F32 | None = None
    candidates: Candidates | None = None

    def of_streams(self, columns: slice) -> StepNoise:
        """The part of some streams only: those of one process of several."""
        masks = (None if mask is None else mask[columns] for mask in (self.input_mask, self.output_mask))
        drawn = self.candidates
        if drawn is not None:
            drawn = replace(drawn, targets=np.ascontiguousarray(drawn.targets[:, columns]))
        return StepNoise(*masks, drawn)


NO_NOISE = StepNoise()


class CandidateSampler:
    """Draws the candidates of a chunk: its own targets, and `size` words of the vocabulary.

    The loss is a softmax over candidates, with -log of the probability that a word is among them added to its logit
    (Bengio & Senecal 2003; Jean et al. 2015, "On Using Very Large Target Vocabulary"). It ranks the target among the
    candidates: it has the optimum of the full softmax, and near that its gradient but for noise; away from it the two
    gradients differ. The targets of the whole chunk are shared by its rows (Yi et al. 2019, "Sampling-Bias-Corrected
    Neural Modeling"), and are corrected for as if the words of a text came independently of each other, which they do
    not. A word that is surely drawn has no correction: with `size` = V this is the full softmax.
    """

    # Of the counts. On WikiText-2 0.5 learns a little faster than the 0.75 with which word2vec draws its negatives:
    # validation perplexity 516 against 527 after 400,000 tokens.
    POWER = 0.5

    def __init__(self, counts: npt.NDArray[np.int64], size: int) -> None:
        """counts: (V,), how often each word is in the training text. size: in 1 .. V."""
        self._share = counts / counts.sum()
        self._chance = _inclusion(np.maximum(counts, 1) ** self.POWER, size)
        self._cumulative = np.cumsum(self._chance)
        self._size = size

    def draw(self, y: I32, rng: np.random.Generator) -> Candidates:
        """The candidates of a chunk with targets y (T, B)."""
        # Systematic sampling (Madow 1949): one number draws `size` distinct words, each with its own chance.
        points = rng.random() + np.arange(self._size)
        drawn = np.searchsorted(self._cumulative, points, side="right")
        ids = np.unique(np.concatenate([drawn[drawn < self._share.size], y.ravel()]))
        absent = (1.0 - self._chance[ids]) * (1.0 - self._share[ids]) ** y.size
        targets = np.searchsorted(ids, y)
        return Candidates(
            ids=ids.astype(np.int32),
            correction=-np.log1p(-np.minimum(absent, 1.0 - 1e-12)).astype(np.float32),
            targets=targets.astype(np.int32),
        )


def _inclusion(weight: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Chances in (0, 1] proportional to `weight` as far as they can be, that add up to `size`."""
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


class Noise:
    """The noise of a run, step by step."""

    def __init__(
        self,
        *,
        seed: int,
        input_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        sampler: CandidateSampler | None = None,
    ) -> None:
        self._seed, self._sampler = seed, sampler
        self._input = input_size, input_dropout
        self._output = hidden_size, dropout

    def of_step(self, step: int, y: I32) -> StepNoise:
        """The noise of step `step`, counted over the whole run, on a chunk with targets y (T, B)."""
        rng = np.random.default_rng([self._seed, step])
        return StepNoise(
            input_mask=_mask(rng, y.shape[1], *self._input),
            output_mask=_mask(rng, y.shape[1], *self._output),
            candidates=self._sampler.draw(y, rng) if self._sampler else None,
        )


def _mask(rng: np.random.Generator, batch: int, width: int, rate: float) -> F32 | None:
    """(batch, width): 0 with probability `rate`, and 1 / (1 - rate) otherwise."""
    if not rate:
        return None
    return (rng.random((batch, width), dtype=np.float32) >= rate) / np.float32(1.0 - rate)
