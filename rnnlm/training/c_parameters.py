"""The parameters of the C model while it is trained: with what the optimizer keeps for each, and with their average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnlm import binding
from rnnlm.arrays import F32
from rnnlm.checkpoint import Weights
from rnnlm.library import AdamWOptions
from rnnlm.regularization import Candidates
from rnnlm.training import schedule
from rnnlm.training.config import TrainConfig

BY_WORDS = ".by_words"  # what the names of such arrays end with in a resume file


def make_parameters(weights: Weights, config: TrainConfig, threads: int) -> Parameters:
    """Return the parameters in the layout that a step of the configuration needs."""
    return (ParametersByWords if config.is_sampled(weights.vocab_size) else Parameters)(weights, config, threads)


class Parameters:
    """Flat buffers (P,) in the layout of the C library. Weight decay leaves the biases alone.

    values: the parameters.  average: their moving average, or None.  average_every: see schedule.py.
    updates: how many there have been.
    """

    def __init__(self, weights: Weights, config: TrainConfig, threads: int) -> None:
        self.config, self.threads = config, threads
        self.vocab, self.hidden = weights.vocab_size, weights.hidden_size
        inner = (weights.embed_size + self.hidden) * self.hidden  # Wxh and Whh
        self._sizes = (inner, True), (self.hidden, False), (self.hidden * self.vocab, True), (self.vocab, False)
        self.values = self.laid_out(weights.flat_parameters())
        moments = {"sgd": ["velocity"] if config.momentum else [], "adamw": ["m", "v"]}[config.optimizer]
        self.moments = {name: np.zeros_like(self.values) for name in moments}
        self.average = self.values.copy() if config.average else None
        self.updates, self.average_every = 0, schedule.AVERAGE_EVERY
        self._grads: F32 | None = None

    def laid_out(self, flat: F32) -> F32:
        """Return the buffer of `flat`, (P,) as a weights file has it."""
        return flat

    def gradient(self, size: int) -> F32:
        """Return a buffer of `size` numbers, the same for every step."""
        if self._grads is None or self._grads.size < size:
            self._grads = np.empty(size, dtype=np.float32)
        return self._grads[:size]

    def prepare(self, candidates: Candidates | None) -> None:
        """Make `values` ready for a step."""

    def update(self, grads: F32, learning_rate: float, grad_scale: float, candidates: Candidates | None) -> None:
        """Take one step of the optimizer, and of the average. The gradient is lost."""
        self.updates += 1
        rate = 1.0 - schedule.average_decay(self.config, self.updates, self.average_every)
        self._step(slice(None), grads, learning_rate, grad_scale, rate)

    def _step(self, part: slice, grads: F32, learning_rate: float, grad_scale: float, averaging: float) -> None:
        values, threads, moments = self.values[part], self.threads, self.moments
        if self.config.optimizer == "sgd":
            velocity = moments["velocity"][part] if moments else None
            momentum = self.config.momentum
            binding.sgd_update(
                values, grads, velocity, lr=learning_rate, momentum=momentum, grad_scale=grad_scale, threads=threads
            )
        else:
            m, v = moments["m"][part], moments["v"][part]
            for piece, decays in self._pieces(values.size):
                options = self._adamw(learning_rate, decays)
                arrays = (array[piece] for array in (values, grads, m, v))
                binding.adamw_update(*arrays, options, grad_scale=grad_scale, threads=threads)
        if self.average is not None and averaging:
            binding.average_update(self.average[part], values, averaging, threads)

    def _pieces(self, count: int) -> Iterator[tuple[slice, bool]]:
        """Yield the matrices and the biases among the first `count` numbers, with whether they decay."""
        start = 0
        for size, decays in self._sizes:
            if start < count:
                yield slice(start, start + size), decays
            start += size

    def _adamw(self, learning_rate: float, decays: bool = True) -> AdamWOptions:
        config = self.config
        decay = config.weight_decay if decays else 0.0
        return AdamWOptions(learning_rate, 0.9, 0.999, config.epsilon, decay, self.updates)

    def flat(self) -> F32:
        """Return what is evaluated, (P,) as a weights file has it. It may be a view."""
        return self.values if self.average is None else self.average

    def copy(self) -> F32:
        return self.flat().copy()

    def replace(self, flat: F32) -> None:
        """Continue with other parameters, which are their own average. What the optimizer keeps stays."""
        self.values[:] = self.laid_out(flat)
        if self.average is not None:
            self.average[:] = self.values

    def arrays(self) -> dict[str, F32]:
        average = {} if self.average is None else {"average": self.average}
        return {"params": self.values, **self.moments, **average}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {**self.arrays(), "updates": np.array([self.updates], dtype=np.int64)}

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        for name, array in self.arrays().items():
            array[:] = state[name]
        self.updates = int(state["updates"][0])


class ParametersByWords(Parameters):
    """As above, but the buffers end with a row for each word, (V, H + 1): see "By words" in rnnlib.h.

    A step of AdamW then reads and writes its candidates only. The other words are taken through it when they are
    needed, at the latest after library.MAX_STEPS steps: the arithmetic is that of all words, the memory traffic is not.
    """

    def __init__(self, weights: Weights, config: TrainConfig, threads: int) -> None:
        super().__init__(weights, config, threads)
        self.words: binding.Words | None = None
        if config.optimizer == "adamw":
            average = None if self.average is None else self._rows(self.average)
            m, v = (self._rows(self.moments[name]) for name in ("m", "v"))
            self.words = binding.Words(self._rows(self.values), m, v, average, threads)

    @property
    def _head(self) -> int:
        """The size of Wxh, Whh and bh together."""
        return self.values.size - self.vocab * (self.hidden + 1)

    def _rows(self, buffer: F32) -> F32:
        return buffer[buffer.size - self.vocab * (self.hidden + 1) :].reshape(self.vocab, self.hidden + 1)

    def laid_out(self, flat: F32) -> F32:
        out = np.empty_like(flat)
        rows = self._rows(out)
        head = flat.size - rows.size
        out[:head] = flat[:head]
        rows.T[:] = flat[head:].reshape(self.hidden + 1, self.vocab)
        return out

    def flat(self) -> F32:
        self._catch_up()
        buffer = super().flat()
        out = np.empty_like(buffer)
        out[: self._head] = buffer[: self._head]
        out[self._head :].reshape(self.hidden + 1, self.vocab)[:] = self._rows(buffer).T
        return out

    def copy(self) -> F32:
        return self.flat()

    def replace(self, flat: F32) -> None:
        self._catch_up()
        super().replace(flat)

    def _catch_up(self) -> None:
        if self.words:
            self.words.catch_up()

    def prepare(self, candidates: Candidates | None) -> None:
        assert candidates is not None
        if self.words:
            self.words.catch_up(candidates.ids)

    def update(self, grads: F32, learning_rate: float, grad_scale: float, candidates: Candidates | None) -> None:
        assert candidates is not None
        head, rows = grads[: self._head], grads[self._head :].reshape(-1, self.hidden + 1)
        if self.words is None:
            whole = np.zeros_like(self.values)
            whole[: self._head] = head
            self._rows(whole)[candidates.ids] = rows
            super().update(whole, learning_rate, grad_scale, candidates)
            return
        self.updates += 1
        rate = 1.0 - schedule.average_decay(self.config, self.updates, self.average_every)
        self._step(slice(self._head), head, learning_rate, grad_scale, rate)
        self.words.step(self._adamw(learning_rate), rate, candidates.ids, rows, grad_scale)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        self._catch_up()
        by_words = {name + BY_WORDS: array for name, array in self.arrays().items()}
        return {**by_words, "updates": np.array([self.updates], dtype=np.int64)}

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._catch_up()
        for name, array in self.arrays().items():  # earlier releases saved them as a weights file has them
            array[:] = state[name + BY_WORDS] if name + BY_WORDS in state else self.laid_out(state[name])
        self.updates = int(state["updates"][0])
