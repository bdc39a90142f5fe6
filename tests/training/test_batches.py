"""What a run is built from: batch rows, the weights it starts from, the learning rate of each step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import options
from trainers import CTrainer

from rnnlm.training.batches import Batches
from rnnlm.training.cli import parse
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.initial import initial_weights
from rnnlm.training.run import Run
from rnnlm.training.schedule import evaluations_left, is_evaluated, learning_rate


def test_batch_rows_are_the_text_shifted_by_one() -> None:
    x, y = Batches(np.arange(11, dtype=np.int32), 3).chunk(0)
    assert x.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert y.tolist() == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    x, y = Batches(np.arange(11, dtype=np.int32), 1, bptt=99).chunk(0)
    assert x.shape == (10, 1) and y[-1, 0] == 10
    x, y = Batches(np.arange(11, dtype=np.int32), 1, bptt=2).chunk(2)
    assert x.tolist() == [[4], [5]] and y.tolist() == [[5], [6]] and x.flags.c_contiguous


def test_the_chunks_of_an_epoch_are_the_text() -> None:
    """The last one may be shorter, and the tokens are counted."""
    batches = Batches(np.arange(23, dtype=np.int32), 2, bptt=4)
    chunks = [batches.chunk(index)[0] for index in range(len(batches))]
    assert [chunk.shape for chunk in chunks] == [(4, 2), (4, 2), (3, 2)] and batches.tokens == 22
    assert np.concatenate(chunks).T.ravel().tolist() == list(range(22))
    assert [batches.tokens_before(index) for index in range(4)] == [0, 8, 16, 22]


def test_processes_share_the_batch_rows_of_one() -> None:
    ids = np.arange(100, dtype=np.int32)
    whole = Batches(ids, 6, bptt=5).chunk(0)
    parts = [Batches(ids, 2, bptt=5, rank=rank, processes=3) for rank in range(3)]
    for name in (0, 1):
        assert np.array_equal(np.hstack([part.chunk(0)[name] for part in parts]), whole[name])
    for part in parts:
        assert np.array_equal(part.all_targets(0), whole[1]) and part.tokens_before(1) == 30
        assert np.array_equal(part.all_targets(0)[:, part.rows], part.chunk(0)[1])


def test_initial_weights() -> None:
    """One seed, one start; `unigram` changes only the output bias, to what makes the word frequencies."""
    vectors = np.zeros((5, 3), dtype=np.float32)
    counts = np.array([50, 30, 15, 5, 0])
    plain, again, unigram = (initial_weights(vectors, 4, seed, c) for seed, c in ((1, None), (1, None), (1, counts)))
    for name, array in plain.parameters().items():
        assert np.abs(array).max() <= 0.5  # 1 / sqrt(4)
        assert (array == again.parameters()[name]).all()
        assert (array == unigram.parameters()[name]).all() == (name != "by"), name
    assert np.exp(unigram.by[:4]) == pytest.approx(counts[:4] / 100)
    assert np.isfinite(unigram.by).all()
    assert (initial_weights(vectors, 4, 2).Wxh != plain.Wxh).any()


def test_unigram_counts_the_tokens_that_are_learned_from(text: Path, tmp_path: Path) -> None:
    config = parse("c", options(text, tmp_path / "model", init="unigram", max_tokens=40)).config()
    made = Run.prepare(config, CTrainer, Group())
    counts = np.bincount(made.corpus.train, minlength=14)
    assert counts.sum() == 40 and (counts / 40 != made.corpus.counts / made.corpus.counts.sum()).all()
    assert np.exp(made.trainer.weights().by) == pytest.approx(np.maximum(counts, 1) / 40)


def test_initial_weights_are_those_of_a_seed() -> None:
    """Drawn row by row, they are what they were when a whole matrix was drawn at once."""
    made = initial_weights(np.zeros((7, 3), dtype=np.float32), 5, seed=4)
    rng, bound = np.random.default_rng(4), 1 / math.sqrt(5)
    for name, array in made.parameters().items():
        assert np.array_equal(array, rng.uniform(-bound, bound, array.shape).astype(np.float32)), name


def test_learning_rates() -> None:
    cosine = TrainConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate(cosine, step, 110, 1.0) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.505) and rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] > 0.01
    assert learning_rate(TrainConfig(learning_rate=1.0), 5, 10, 0.25) == 0.25


@pytest.mark.parametrize("every", [5, 1, 0.25, 0.3, 1.7, 0.001, "1steps", "10steps", "1000steps"])
@pytest.mark.parametrize("epochs", [1, 9, 12])
def test_the_evaluations_that_are_left_are_those_to_come(epochs: int, every: Any) -> None:
    config = TrainConfig(epochs=epochs, evaluate_every=every)
    total = 7 * epochs
    evaluated = [step for step in range(1, total + 1) if is_evaluated(config, step, 7)]
    for step in range(total):
        assert evaluations_left(config, step, 7) == sum(later > step for later in evaluated)
    assert evaluated[-1] == total


def test_fractions_of_an_epoch_do_not_drift() -> None:
    """A tenth has no exact float: thirty of them are three epochs all the same."""
    config = TrainConfig(epochs=3, evaluate_every=0.1)
    assert [step for step in range(1, 301) if is_evaluated(config, step, 100)] == list(range(10, 301, 10))
    uneven = TrainConfig(epochs=2, evaluate_every=0.4)
    assert [step for step in range(1, 15) if is_evaluated(uneven, step, 7)] == [3, 6, 9, 12, 14]
    assert [step for step in range(1, 15) if is_evaluated(TrainConfig(epochs=2, evaluate_every="4steps"), step, 7)] == [
        *(4, 8, 12, 14)
    ]


@pytest.mark.parametrize(
    "given,kept",
    [("2", 2), (2, 2), ("2.0", 2), ("0.25", 0.25), ("1e-2", 0.01), ("500steps", "500steps"), ("1 step", "1steps")],
)
def test_an_interval_has_one_notation(given: Any, kept: Any) -> None:
    assert TrainConfig(evaluate_every=given).evaluate_every == kept


@pytest.mark.parametrize(
    "given", ["0", "-1", "nan", "inf", "0steps", "1.5steps", "-3steps", "steps", "1/4", "often", ""]
)
def test_an_interval_that_is_none(given: str) -> None:
    with pytest.raises(ConfigError, match=r"--evaluate-every must be .* 0\.25, .* 500steps, got"):
        TrainConfig(evaluate_every=given)


def test_many_epochs_are_counted_at_once() -> None:
    assert evaluations_left(TrainConfig(epochs=10**12, evaluate_every=5), 0, 1) == 200_000_000_000
