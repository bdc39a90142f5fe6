"""What travels between the processes of a run in a step with a sampled softmax."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from conftest import make_weights
from trainers import TRAINERS

from rnnlm.checkpoint import PARAMETERS
from rnnlm.regularization import CandidateSampler, Regularizer
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import TorchGroup

V, E, H, T, B = 500, 6, 7, 5, 4


class Twin(TorchGroup):
    """This process and another that has the same batch. It keeps the sizes of what it sends."""

    def __init__(self) -> None:
        self.rank, self.size, self.local_rank, self.local_size = 0, 2, 0, 1
        self.sent: list[int] = []

    def sum_tensor(self, tensor: Any) -> None:
        self.sent.append(tensor.numel())
        tensor *= 2

    def exchange(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.mark.parametrize("backend", TRAINERS)
def test_only_the_candidates_rows_of_the_gradient_travel(backend: str) -> None:
    config = TrainConfig(
        batch_size=B, sampled_softmax=20, optimizer="adamw", reduction="mean", threads=1, learning_rate=0.01, clip=0.5
    )
    sampler = CandidateSampler(np.arange(V, 0, -1), 20)
    draws = Regularizer(seed=4, input_size=E, hidden_size=H, sampler=sampler)
    twin = Twin()
    single, paired = (TRAINERS[backend](make_weights(V, E, H), config, group) for group in (None, twin))
    sizes = []
    for step in range(5):
        x, y = np.random.default_rng(step).integers(0, V, (2, T, B), dtype=np.int32)
        regularization = draws.draw(step, y)
        sizes.append(E * H + H * H + H + regularization.candidates.ids.size * (H + 1))
        losses = [trainer.train_step(x, y, 0.01, regularization) for trainer in (single, paired)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert twin.sent == sizes
    for name in PARAMETERS:
        a, b = (getattr(trainer.weights(), name) for trainer in (single, paired))
        assert np.abs(a - b).max() < 1e-5, name
