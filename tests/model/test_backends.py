"""C and torch are one model: the same file, distribution, tokens and training."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_checkpoint, make_weights
from trainers import TRAINERS, CTrainer, TorchTrainer

import rnn
import torch_rnn
from rnnlm import checkpoint
from rnnlm.binding import Decoder, sampling_rows
from rnnlm.data.text import UNK
from rnnlm.regularization import CandidateSampler, Regularizer
from rnnlm.training.config import TrainConfig

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.5},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.2, "momentum": 0.9},
    "adam": {"optimizer": "adamw", "learning_rate": 1e-2},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1},
    "epsilon": {"optimizer": "adamw", "learning_rate": 1e-2, "epsilon": 1e-3},
}


def c_log_distribution(model: rnn.RNN, ids: list[int]) -> np.ndarray:
    """log p(next | ids) for every word, by the C library."""
    decoder = Decoder(model.model)
    state = np.zeros((1, model.model.hidden), dtype=np.float32)
    decoder.prefill(ids[:-1], state[0])
    logits = np.empty((1, model.model.vocab), dtype=np.float32)
    drawn, logprob = np.empty(1, dtype=np.int32), np.empty(1, dtype=np.float32)
    decoder.decode(np.array(ids[-1:], dtype=np.int32), sampling_rows(1), state, drawn, logprob, logits)
    return torch.log_softmax(torch.tensor(logits[0]).double(), 0).numpy()


def torch_log_distribution(model: torch_rnn.RNN, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits, _ = model(torch.tensor(ids).unsqueeze(1), model.zero_state())
    return torch.log_softmax(logits[-1, 0].double(), 0).numpy()


@pytest.fixture
def both(weights_file: Path) -> tuple[rnn.RNN, torch_rnn.RNN]:
    return rnn.RNN.load(weights_file), torch_rnn.RNN.load(weights_file)


@pytest.mark.parametrize("trained_by", ["c", "torch"])
def test_a_file_trained_by_either_runs_in_the_other(trained_by: str, tmp_path: Path) -> None:
    start = make_checkpoint(vocab=40, embed=9, hidden=12)
    trainer_class = TRAINERS[trained_by]
    trainer = trainer_class(start.weights, TrainConfig(batch_size=2, learning_rate=0.1, reduction="mean", threads=1))
    x, y = np.random.default_rng(0).integers(0, 40, (2, 8, 2), dtype=np.int32)
    for _ in range(5):
        trainer.train_step(x, y, 0.1)
    path = tmp_path / "trained.safetensors"
    checkpoint.save(path, replace(start, weights=trainer.weights(), backend=trained_by))
    ids = [0, 3, 7, 7, 1]
    ours, theirs = rnn.RNN.load(path), torch_rnn.RNN.load(path)
    a, b = c_log_distribution(ours, ids), torch_log_distribution(theirs, ids)
    assert np.abs(a - b).max() < 1e-5
    assert np.abs(np.exp(a) - np.exp(b)).max() < 1e-5


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_same_sampling_and_seed_give_the_same_tokens(both, temperature: float, top_k: int) -> None:
    options = {"max_tokens": 40, "temperature": temperature, "top_k": top_k, "seed": 3, "ignore_eos": True}
    ours, theirs = (model.generate("waa wab wac", **options) for model in both)
    assert [token.id for token in ours.tokens] == [token.id for token in theirs.tokens]
    assert np.allclose([token.logprob for token in ours.tokens], [token.logprob for token in theirs.tokens], atol=1e-5)
    assert ours.text == theirs.text and len(ours.tokens) == 40


def test_unknown_is_never_drawn(tmp_path: Path) -> None:
    """Not by sampling, not greedily, not where it is by far the most probable word; its probability stays."""
    source = make_checkpoint(vocab=20, embed=9, hidden=12)
    by = source.weights.by.copy()
    by[7] = 30.0
    words = (*source.vocabulary[:7], UNK, *source.vocabulary[8:])
    weights = replace(source.weights, by=by)
    checkpoint.save(tmp_path / "unk.safetensors", replace(source, weights=weights, vocabulary=words))
    for model in (rnn.RNN.load(tmp_path / "unk.safetensors"), torch_rnn.RNN.load(tmp_path / "unk.safetensors")):
        for temperature in (0.0, 1.0):
            tokens = model.generate("waa", temperature=temperature, max_tokens=60, ignore_eos=True, seed=1).tokens
            assert all(token.word != UNK and token.logprob < -20 for token in tokens)
        assert model.score("waa nonsense").tokens[1].logprob > -1e-3


def test_each_back_end_has_its_own_default(both) -> None:
    ours, theirs = both
    assert ours.generate("waa", seed=5) == ours.generate("waa", seed=5, temperature=1.0)
    greedy = theirs.generate("waa", seed=5)
    assert greedy.tokens == theirs.generate("waa", seed=6).tokens  # greedy: the seed changes nothing
    assert [t.id for t in greedy.tokens] == [t.id for t in ours.generate("waa", temperature=0.0).tokens]


def test_the_early_prompt_changes_the_next_word(both) -> None:
    """The model remembers: not only the last word of the prompt counts."""
    for distribution, model in zip((c_log_distribution, torch_log_distribution), both, strict=True):
        first, second = distribution(model, [0, 3, 9, 9]), distribution(model, [0, 21, 9, 9])
        assert np.abs(first - second).max() > 1e-3


def test_scores_agree(both) -> None:
    ours, theirs = (model.score("waa wab. wac wad") for model in both)
    assert [token.word for token in ours.tokens] == ["waa", "wab", "<EOS>", "wac", "wad"]
    assert ours.perplexity == pytest.approx(theirs.perplexity, rel=1e-5)
    assert ours.tokens[0].logprob == pytest.approx(c_log_distribution(both[0], [0])[1], abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_from_equal_weights_give_the_same_losses(name: str, reduction: str, precision: str) -> None:
    """A wrong optimizer hides for one step, not for fifty. The state is carried, and the gradient clipped."""
    weights = make_weights(61, 9, 14)
    options = dict(OPTIMIZERS[name])
    if reduction == "sum" and options["optimizer"] == "sgd":
        options["learning_rate"] /= 8
    config = TrainConfig(batch_size=4, reduction=reduction, clip=0.5, threads=1, precision=precision, **options)
    ours, theirs = CTrainer(weights, config), TorchTrainer(weights, config)
    ids = np.random.default_rng(1).zipf(1.3, (50, 7, 5)) % 61
    losses = []
    for step in range(50):
        x = np.ascontiguousarray(ids[step, :, :4], dtype=np.int32)
        y = np.ascontiguousarray(ids[step, :, 1:], dtype=np.int32)
        rate = config.learning_rate * (1 - step / 100)
        losses.append((ours.train_step(x, y, rate), theirs.train_step(x, y, rate)))
    a, b = np.array(losses).transpose(1, 0, 2)
    # Of many numbers that both round to bfloat16, a few fall the other way, and later steps carry the difference on.
    tolerance = 1e-4 if precision == "float32" else 3e-3
    assert np.abs(a[:3, 0] - b[:3, 0]).max() < 1e-4 and np.abs(a[:3, 1] / b[:3, 1] - 1).max() < 1e-3
    assert np.abs(a[:, 0] - b[:, 0]).max() < tolerance  # losses
    assert np.abs(a[:, 1] / b[:, 1] - 1).max() < 10 * tolerance  # gradient norms
    assert a[-1, 0] < a[0, 0]
    ids = np.random.default_rng(2).integers(0, 61, 1200, dtype=np.int32)
    assert ours.evaluate(ids) == pytest.approx(theirs.evaluate(ids), abs=tolerance)


@pytest.mark.parametrize("load", ["from rnnlm import library; library.library()", "import torch_rnn"])
@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_sleep_soon(load: str, given: dict[str, str], spins: str | None) -> None:
    """By libgomp's own word, which it gives as it is loaded."""
    code = f"{load}; import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **given}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [str(spins)], done.stderr
    if spins and "GOMP_SPINCOUNT" in done.stderr:  # a build with OpenMP
        assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize("sampled", [0, 8])
@pytest.mark.parametrize("trainer_class", [CTrainer, TorchTrainer])
def test_weight_decay_leaves_the_biases_alone(trainer_class: type, sampled: int) -> None:
    weights, after = make_weights(40, 9, 12), {}
    x, y = np.random.default_rng(0).integers(0, 40, (2, 8, 2), dtype=np.int32)
    regularizer = Regularizer(
        seed=1,
        input_size=9,
        hidden_size=12,
        sampler=CandidateSampler(np.arange(40, 0, -1), sampled) if sampled else None,
    )
    for decay in (0.0, 0.5):  # the first step has the same gradient with both
        config = TrainConfig(batch_size=2, optimizer="adamw", weight_decay=decay, sampled_softmax=sampled, threads=1)
        trainer = trainer_class(weights, config)
        trainer.train_step(x, y, 0.1, regularizer.draw(0, y))
        after[decay] = trainer.weights()
    for name in ("Wxh", "Whh", "Why"):
        given = getattr(weights, name)
        assert np.allclose(getattr(after[0.0], name) - getattr(after[0.5], name), 0.05 * given, atol=1e-6), name
    for name in ("bh", "by"):
        assert (getattr(after[0.0], name) == getattr(after[0.5], name)).all(), name
