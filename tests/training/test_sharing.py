"""An evaluation that several processes share: here one after the other, in this one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from conftest import make_weights
from trainers import TRAINERS

from rnnlm.training import sharing
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.trainer import Trainer

V, E, H = 23, 6, 9


class Member(Group):
    """Process `rank` of `size`. others: the sum of the others' losses."""

    def __init__(self, rank: int, size: int, others: float = 0.0) -> None:
        self.rank, self.size, self.others = rank, size, others
        self.counted, self.sent = 0, 0.0

    def totals(self, *values: float) -> tuple[float, ...]:
        (self.sent,) = values
        return (self.sent + self.others,)

    def tally(self, what: str, count: int) -> int:
        self.counted += count
        return self.counted


def trainer_of(backend: str, precision: str = "float32") -> Trainer:
    return TRAINERS[backend](make_weights(V, E, H), TrainConfig(threads=1, precision=precision))


def text_of(tokens: int) -> np.ndarray:
    return np.random.default_rng(tokens).integers(0, V, tokens + 1, dtype=np.int32)


@pytest.mark.parametrize("tokens", [1, 2, 512, 513, 1100, 5000])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_the_parts_are_the_text(tokens: int, size: int) -> None:
    parts = [sharing.part(tokens, rank, size) for rank in range(size)]
    assert parts[0][0] == 0 and parts[-1][1] == tokens
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(parts))
    assert all(0 <= end - first <= tokens / size + 512 for first, end in parts)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("tokens", [1, 2, 1300, 2048])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", TRAINERS)
def test_the_parts_add_up_to_what_one_process_finds(backend: str, precision: str, tokens: int, size: int) -> None:
    trainer, ids = trainer_of(backend, precision), text_of(tokens)
    whole, sums = trainer.evaluate(ids), []
    for rank in range(size):
        member = Member(rank, size)
        sharing.evaluate(trainer, member, ids, lambda count: None, "")
        sums.append(member.sent)
    # The torch trainer reads pieces of a text side by side, and a part has others than the whole text.
    close = 1e-14 if backend == "c" else 1e-6
    assert sum(sums) / tokens == pytest.approx(whole, rel=close)
    mean = sharing.evaluate(trainer, Member(0, size, sum(sums[1:])), ids, lambda count: None, "")
    assert mean == pytest.approx(whole, rel=close)


@pytest.mark.parametrize("backend", TRAINERS)
def test_a_part_may_begin_anywhere(backend: str) -> None:
    trainer, ids = trainer_of(backend), text_of(1300)
    for start in (1, 700, 1299):
        before = trainer.evaluate(ids[: start + 1]) * start
        after = trainer.evaluate(ids, start=start) * (1300 - start)
        assert (before + after) / 1300 == pytest.approx(trainer.evaluate(ids), rel=1e-6)


def test_a_loss_that_is_not_finite_in_one_part_ends_all() -> None:
    trainer = trainer_of("c")
    trainer.embeddings[7] = np.inf  # a word of the second part only
    ids = np.zeros(1200, dtype=np.int32)
    ids[1100] = 7
    for rank, others in ((0, math.nan), (1, 1.0)):
        member = Member(rank, 2, others)
        with pytest.raises(FloatingPointError):
            sharing.evaluate(trainer, member, ids, lambda count: None, "")
        assert math.isnan(member.sent) == (rank == 1)


def test_the_tokens_of_all_processes_are_shown_on_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "TELL_SECONDS", 0.0)
    trainer, ids = trainer_of("c"), text_of(2000)
    first, shown = Member(0, 2), []
    first.counted = 600  # what the other has done by now
    sharing.evaluate(trainer, first, ids, shown.append, "")
    assert shown == [600 + 512, 512, 2000 - 1624]
    second, shown = Member(1, 2), []
    sharing.evaluate(trainer, second, ids, shown.append, "")
    assert second.counted == 2000 - 1024 and not shown
