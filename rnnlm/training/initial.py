"""The weights that a run starts from."""

from __future__ import annotations

import math

import numpy as np

from rnnlm.arrays import F32, I64
from rnnlm.checkpoint import Weights


def initial_weights(embeddings: F32, hidden: int, seed: int, counts: I64 | None = None) -> Weights:
    """Draw weights uniformly within 1/sqrt(H), as torch.nn.RNN and torch.nn.Linear do.

    embeddings: (V, E), used as they are.  hidden: H.
    counts: (V,), how often each word occurs in the training text. If given, the output bias starts at the words' log
    frequencies, so that no epoch is spent on learning how common each word is.
    """
    vocab, embed = embeddings.shape
    rng = np.random.default_rng(seed)
    bound = 1.0 / math.sqrt(hidden)

    def uniform(*shape: int) -> F32:
        numbers = np.empty(shape, dtype=np.float32)
        for row in np.atleast_2d(numbers):  # row by row, because numpy draws them as float64
            row[:] = rng.uniform(-bound, bound, row.shape)
        return numbers

    weights = Weights(
        embeddings=embeddings,
        Wxh=uniform(embed, hidden),
        Whh=uniform(hidden, hidden),
        bh=uniform(hidden),
        Why=uniform(hidden, vocab),
        by=uniform(vocab),
    )
    if counts is not None:
        weights.by[:] = np.log(np.maximum(counts, 1) / counts.sum())
    return weights
