"""Trains the C model: the parameters live in numpy, the arithmetic is the C library's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rnnlm import binding, library
from rnnlm.arrays import I32
from rnnlm.binding import Workspace
from rnnlm.checkpoint import Weights
from rnnlm.language_model import EVALUATION_STEPS, LanguageModel
from rnnlm.library import RNNNonFiniteError
from rnnlm.regularization import NO_REGULARIZATION, Regularization
from rnnlm.training.c_parameters import make_parameters
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.trainer import Chunk


class CTrainer:
    """Trains the C model."""

    backend, steps_ahead = "c", 1
    model_class: ClassVar[type[LanguageModel]]  # rnn.RNN, which main.py sets: this file does not import it

    @staticmethod
    def check(config: TrainConfig) -> str:
        if config.device == "cuda":
            raise ConfigError("--device cuda is for torch_rnn.py: the C model runs on the processor")
        if config.precision == "tf32":
            raise ConfigError("--precision tf32 is for torch_rnn.py on a GPU; the C model has float32 and bfloat16")
        library.library()
        return "cpu"

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None:
        self.config, self.group = config, group or Group()
        self.threads = self.group.threads(config.threads)
        self.embeddings = weights.embeddings
        self.dims = weights.vocab_size, weights.embed_size, weights.hidden_size
        self.parameters = make_parameters(weights, config, self.threads)
        self.hidden = np.zeros((config.batch_size, weights.hidden_size), dtype=np.float32)
        self.work: Workspace | None = None  # sized for the longest chunk so far
        self.evaluation = Workspace(
            *self.dims, max_steps=EVALUATION_STEPS, max_batch=1, threads=self.threads, precision=config.precision
        )

    def set_average_interval(self, updates: int) -> None:
        self.parameters.average_every = updates

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        config, parameters, candidates = self.config, self.parameters, regularization.candidates
        if self.work is None or x.shape[0] > self.work.max_steps:  # the first chunk, or the first after a short one
            # Of the longest chunk of the run, which need not be this one: the order of summation follows from it, and
            # must not depend on where the run begins. Without bptt all chunks have the same length.
            targets = max(config.bptt or 0, x.shape[0]) * x.shape[1] * self.group.size
            self.work = Workspace(
                *self.dims,
                max_steps=x.shape[0],
                max_batch=x.shape[1],
                max_candidates=min(self.dims[0], config.sampled_softmax + targets) if candidates else 0,
                threads=self.threads,
                precision=config.precision,
            )
        scale = 1.0 / (x.size * self.group.size) if config.reduction == "mean" else 1.0
        parameters.prepare(candidates)
        grads = parameters.gradient(self.work.gradient_count(candidates))
        try:
            loss = self.work.loss_grad(
                parameters.values, self.embeddings, x, y, self.hidden, grads, scale, regularization
            )
        except RNNNonFiniteError:
            if self.group.size == 1:
                raise
            loss = grads[:] = np.nan  # the others wait for this gradient, and must stop at the same step
        self.group.sum(grads, config.exchange)
        norm = binding.grad_norm(grads, self.threads)
        # The 1e-6 is that of torch.nn.utils.clip_grad_norm_.
        clip = min(1.0, config.clip / (norm + 1e-6)) if config.clip else 1.0
        parameters.update(grads, learning_rate, clip, candidates)
        return loss / x.size, norm

    def train_steps(self, chunks: Iterable[Chunk]) -> list[tuple[float, float]]:
        return [self.train_step(*chunk) for chunk in chunks]

    def evaluate(self, ids: I32, advance: Callable[[int], object] = lambda count: None, start: int = 0) -> float:
        params, hidden = self.parameters.flat(), np.zeros((1, self.hidden.shape[1]), dtype=np.float32)
        for first in range(0, start, EVALUATION_STEPS):
            x = ids[first : min(first + EVALUATION_STEPS, start), None]
            self.evaluation.advance(params, self.embeddings, x, hidden)
        total = 0.0
        for first in range(start, ids.size - 1, EVALUATION_STEPS):
            x = ids[first : min(first + EVALUATION_STEPS, ids.size - 1), None]
            y = ids[first + 1 : first + 1 + x.size, None]
            total += self.evaluation.loss(params, self.embeddings, x, y, hidden)
            advance(x.size)
        return total / (ids.size - 1 - start)

    def reset_state(self) -> None:
        self.hidden[:] = 0.0

    def weights(self) -> Weights:
        return Weights.from_flat(self.embeddings, self.parameters.copy(), self.hidden.shape[1])

    def load_weights(self, weights: Weights) -> None:
        self.parameters.replace(weights.flat_parameters())

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {"hidden": self.hidden, **self.parameters.state()}

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self.hidden[:] = state["hidden"]
        self.parameters.load_state(state)
