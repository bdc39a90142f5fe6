"""The contract between the training loop and a back end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from rnnlm.arrays import I32
from rnnlm.checkpoint import Weights
from rnnlm.language_model import LanguageModel
from rnnlm.regularization import NO_REGULARIZATION, Regularization
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group


class Chunk(NamedTuple):
    """What a trainer learns from in one step: x, y (T, B), time-major."""

    x: I32
    y: I32
    learning_rate: float
    regularization: Regularization = NO_REGULARIZATION


class Trainer(Protocol):
    """Holds the parameters of a model and learns from one chunk at a time.

    Methods that compute raise FloatingPointError if a loss or a gradient is not finite.
    """

    backend: str  # "c" or "torch"
    model_class: type[LanguageModel]  # reads the weights file, and generates from it
    steps_ahead: int  # how many steps may be started before the result of the first is read

    @staticmethod
    def check(config: TrainConfig) -> str:
        """Raise what would otherwise be raised minutes later. Return the kind of device: "cpu" or "cuda"."""

    def __init__(self, weights: Weights, config: TrainConfig, group: Group | None = None) -> None: ...

    def set_average_interval(self, updates: int) -> None:
        """Set the updates between two terms of the average of the weights, if there is one; at first AVERAGE_EVERY."""

    def train_step(
        self, x: I32, y: I32, learning_rate: float, regularization: Regularization = NO_REGULARIZATION
    ) -> tuple[float, float]:
        """Learn from one chunk x, y (T, B), time-major, and carry the hidden state over to the next.

        Returns the chunk's mean loss in nats per token, and the norm of the gradient before clipping. In a run of
        several processes each passes its own chunk and all apply the same gradient: the loss is that of the process's
        own chunk, the norm that of the whole gradient.
        """

    def train_steps(self, chunks: Iterable[Chunk]) -> list[tuple[float, float]]:
        """Take a step on each chunk, `steps_ahead` of them at most. Returns what `train_step` returns, for each.

        On a GPU the results are read after the last step. If one is not finite it is returned, and does not raise.
        """

    def evaluate(self, ids: I32, advance: Callable[[int], object] = lambda count: None, start: int = 0) -> float:
        """Return the mean nats per token over `ids` (N,), read as one sequence from a zero state.

        advance: called with the number of tokens of each part that is done.
        start: below N - 1; the mean is over ids[start + 1 :], and the text before only goes through the hidden layer.
        The carried hidden state is not touched.
        """

    def reset_state(self) -> None:
        """Zero the carried hidden state."""

    def weights(self) -> Weights:
        """Return a copy of the current weights."""

    def load_weights(self, weights: Weights) -> None:
        """Replace the current weights. The optimizer's state stays."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that `load_state` needs to continue bit for bit; `hidden` is (B, H). The arrays may be views."""

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Continue from what `state` returned."""
