"""What travels between the processes of a run in a step: all gradients, or the candidates', and as which type."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
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

    def sum_tensor(self, tensor: Any, exchange: str = "float32") -> None:
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


class Post:
    """torch.distributed for threads of this process, each with its own. It counts the bytes that a rank sends."""

    def __init__(self, rank: int, boxes: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.boxes, self.barrier, self.bytes = rank, boxes, barrier, 0

    def _send(self, tensor: Any, copies: int) -> list[Any]:
        self.bytes += tensor.numel() * tensor.element_size() * copies
        self.boxes[self.rank] = tensor.clone()
        self.barrier.wait()
        found = list(self.boxes)
        self.barrier.wait()
        return found

    def all_to_all_single(self, output: Any, given: Any) -> None:
        output.copy_(torch.stack([box[self.rank] for box in self._send(given, 1)]))
        self.bytes -= given[0].numel() * given.element_size()  # its own share stays

    def all_gather(self, outputs: list[Any], given: Any) -> None:
        for output, box in zip(outputs, self._send(given, len(self.boxes) - 1), strict=True):
            output.copy_(box)


class Threaded(TorchGroup):
    """A rank whose others are threads."""

    def __init__(self, rank: int, size: int, dist: Post) -> None:
        self.rank, self.size, self.dist = rank, size, dist

    def _talking(self, to: str = "") -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.mark.parametrize("count", [1, 8, 1001])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_gradients_that_travel_as_bfloat16_are_added_in_float32_and_all_get_the_same(size: int, count: int) -> None:
    arrays = np.random.default_rng(count).standard_normal((size, count)).astype(np.float32)
    arrays[:, 0] = [1.0, *[2.0**-8] * (size - 1)]  # in bfloat16 none of them would be added to 1
    arrays[-1, count // 2 :][:1] = np.nan if count > 2 else 0.5
    rounded = torch.from_numpy(arrays).bfloat16().float()
    want = rounded[0]
    for row in rounded[1:]:
        want = want + row
    want = want.bfloat16().float().numpy()
    boxes, barrier = [None] * size, threading.Barrier(size, timeout=30)
    groups = [Threaded(rank, size, Post(rank, boxes, barrier)) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        list(pool.map(lambda group: group.sum(arrays[group.rank], "bfloat16"), groups))
    for array in arrays:
        assert np.array_equal(array, want, equal_nan=True)
    share = -(-count // size)
    assert {group.dist.bytes for group in groups} == {2 * (size - 1) * share * 2}  # a ring of float32 sends twice that


@pytest.mark.parametrize("sampled", [0, 20])
@pytest.mark.parametrize("backend", TRAINERS)
def test_both_back_ends_send_the_gradients_as_the_option_says(
    backend: str, sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, str]] = []

    def send(group: Twin, tensor: Any, exchange: str = "float32") -> None:
        sent.append((tensor.numel(), exchange))
        tensor *= 2

    monkeypatch.setattr(Twin, "sum_tensor", send)
    config = TrainConfig(
        batch_size=B, sampled_softmax=sampled, reduction="mean", threads=1, learning_rate=0.1, exchange="bfloat16"
    )
    sampler = CandidateSampler(np.arange(V, 0, -1), sampled) if sampled else None
    draws = Regularizer(seed=4, input_size=E, hidden_size=H, sampler=sampler)
    single, paired = (TRAINERS[backend](make_weights(V, E, H), config, group) for group in (None, Twin()))
    x, y = np.random.default_rng(0).integers(0, V, (2, T, B), dtype=np.int32)
    drawn = draws.draw(0, y)
    for trainer in (single, paired):
        trainer.train_step(x, y, 0.1, drawn)
    words = drawn.candidates.ids.size if sampled else V
    assert sent == [(E * H + H * H + H + words * (H + 1), "bfloat16")]
    for name in PARAMETERS:
        a, b = (getattr(trainer.weights(), name) for trainer in (single, paired))
        assert np.abs(a - b).max() < 1e-6, name
