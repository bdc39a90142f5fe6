"""What a run is built from: batch rows, the weights it starts from, the learning rate of each step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from running import options
from trainers import CTrainer

from rnnlm.training.batches import Batches
from rnnlm.training.cli import parse
from rnnlm.training.config import TrainConfig
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


@pytest.mark.parametrize("epochs", [9, 10, 11, 12])
def test_the_evaluations_that_are_left_are_those_to_come(epochs: int) -> None:
    config = TrainConfig(epochs=epochs, evaluate_every=5)
    for epoch in range(epochs):
        assert evaluations_left(config, epoch) == sum(is_evaluated(config, e) for e in range(epoch + 1, epochs + 1))


def test_many_epochs_are_counted_at_once() -> None:
    assert evaluations_left(TrainConfig(epochs=10**12, evaluate_every=5), 0) == 200_000_000_000
