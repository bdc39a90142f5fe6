"""Trains the C model: the parameters live in numpy, the arithmetic is the C library's."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rnnlm import binding
from rnnlm.arrays import F32, I32
from rnnlm.binding import AdamWOptions, RNNNonFiniteError, Workspace
from rnnlm.checkpoint import Weights
from rnnlm.language_model import EVALUATION_STEPS, LanguageModel
from rnnlm.regularization import NO_REGULARIZATION, Regularization
from rnnlm.training import schedule
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group


class CTrainer:
    """Trains the C model. Parameters, gradient and moments are flat buffers (P,), the layout of the library."""

    backend = "c"
    model_class: ClassVar[type[LanguageModel]]  # rnn.RNN, which main.py sets: this file does not import it

    @staticmethod
    def check(config: TrainConfig) -> str:
        if config.device == "cuda":
            raise ConfigError("--device cuda is for torch_rnn.py: the C model runs on the processor")
        binding.library()
        return "cpu"

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None:
        self.config, self.group = config, group or Group()
        self.threads = self.group.threads(config.threads)
        self.embeddings = weights.embeddings
        self.dims = weights.vocab_size, weights.embed_size, weights.hidden_size
        self.params = weights.flat_parameters()
        self.grads = np.empty_like(self.params)
        moments = {"sgd": ["velocity"] if config.momentum else [], "adamw": ["m", "v"]}[config.optimizer]
        self.moments = {name: np.zeros_like(self.params) for name in moments}
        self.average = self.params.copy() if config.average else None
        self.updates = 0
        self.hidden = np.zeros((config.batch_size, weights.hidden_size), dtype=np.float32)
        self.work: Workspace | None = None  # sized for the longest chunk so far
        self.evaluation = Workspace(
            *self.dims, max_steps=EVALUATION_STEPS, max_batch=1, threads=self.threads, precision=config.precision
        )

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        config = self.config
        if self.work is None or x.shape[0] > self.work.max_steps:  # the first chunk, or the first after a short one
            candidates = config.sampled_softmax + x.size * self.group.size
            self.work = Workspace(
                *self.dims,
                max_steps=x.shape[0],
                max_batch=x.shape[1],
                max_candidates=min(self.dims[0], candidates) if regularization.candidates else 0,
                threads=self.threads,
                precision=config.precision,
            )
        scale = 1.0 / (x.size * self.group.size) if config.reduction == "mean" else 1.0
        try:
            loss = self.work.loss_grad(
                self.params, self.embeddings, x, y, self.hidden, self.grads, scale, regularization
            )
        except RNNNonFiniteError:
            if self.group.size == 1:
                raise
            loss = self.grads[:] = np.nan  # the others wait for this gradient, and must stop at the same step
        self.group.sum(self.grads)
        norm = binding.grad_norm(self.grads, self.threads)
        # The 1e-6 is that of torch.nn.utils.clip_grad_norm_.
        clip = min(1.0, config.clip / (norm + 1e-6)) if config.clip else 1.0
        self.update(learning_rate, clip)
        self.update_average()
        return loss / x.size, norm

    def update(self, learning_rate: float, grad_scale: float) -> None:
        """Take one step of the optimizer."""
        config = self.config
        self.updates += 1
        if config.optimizer == "sgd":
            binding.sgd_update(
                self.params,
                self.grads,
                self.moments.get("velocity"),
                lr=learning_rate,
                momentum=config.momentum,
                grad_scale=grad_scale,
                threads=self.threads,
            )
        else:
            options = AdamWOptions(learning_rate, 0.9, 0.999, 1e-8, config.weight_decay, self.updates)
            m, v = self.moments["m"], self.moments["v"]
            binding.adamw_update(self.params, self.grads, m, v, options, grad_scale=grad_scale, threads=self.threads)

    def update_average(self) -> None:
        decay = schedule.average_decay(self.config, self.updates)
        if self.average is None or decay == 1.0:
            return
        # average -= (1 - decay) * (average - params), in the buffer of the gradient, which is no longer needed.
        np.subtract(self.average, self.params, out=self.grads)
        binding.sgd_update(
            self.average, self.grads, None, lr=1.0 - decay, momentum=0.0, grad_scale=1.0, threads=self.threads
        )

    @property
    def averaged(self) -> F32:
        """What is evaluated and saved."""
        return self.params if self.average is None else self.average

    def evaluate(self, ids: I32) -> float:
        hidden = np.zeros((1, self.hidden.shape[1]), dtype=np.float32)
        total = 0.0
        for start in range(0, ids.size - 1, EVALUATION_STEPS):
            x = ids[start : min(start + EVALUATION_STEPS, ids.size - 1), None]
            y = ids[start + 1 : start + 1 + x.size, None]
            total += self.evaluation.loss(self.averaged, self.embeddings, x, y, hidden)
        return total / (ids.size - 1)

    def reset_state(self) -> None:
        self.hidden[:] = 0.0

    def weights(self) -> Weights:
        return Weights.from_flat(self.embeddings, self.averaged.copy(), self.hidden.shape[1])

    def load_weights(self, weights: Weights) -> None:
        self.params[:] = weights.flat_parameters()
        if self.average is not None:
            self.average[:] = self.params

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "params": self.params,
            "hidden": self.hidden,
            "updates": np.array([self.updates], dtype=np.int64),
            **self.moments,
            **({} if self.average is None else {"average": self.average}),
        }

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        targets: dict[str, F32] = {"params": self.params, "hidden": self.hidden, **self.moments}
        if self.average is not None:
            targets["average"] = self.average
        for name, target in targets.items():
            target[:] = state[name]
        self.updates = int(state["updates"][0])
