"""Whole runs: what they leave, that they learn, and that both back ends learn alike."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import WIKITEXT, needs_wikitext
from running import BACKENDS, REGULARIZED, metrics, options, run, same_weights, train
from trainers import CTrainer, small_run

import torch_rnn
from bench.ngram import KneserNey
from rnnlm import checkpoint
from rnnlm.data.corpus import load_corpus
from rnnlm.data.embeddings import root_lengths
from rnnlm.training import loop, state_file
from rnnlm.training.run import regularizer


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_leaves_weights_metrics_and_a_curve_and_learns(backend: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "model.safetensors"
    result = run(backend, *options(text, out, epochs=3))
    assert result.returncode == 0, result.stderr
    saved = checkpoint.load(out)
    assert saved.backend == backend and saved.config["hidden_size"] == 10 and len(saved.vocabulary) == 14
    rows = metrics(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    perplexities = [row["validation_perplexity"] for row in rows]
    assert perplexities[-1] < perplexities[0]
    assert rows[1]["validation_perplexity"] == pytest.approx(math.exp(rows[1]["validation_loss"]))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "sample: The" in result.stdout or "no sample" in result.stderr
    assert f"{min(perplexities):.1f}" in result.stdout
    assert "epoch 3/3" in result.stderr and "tokens/s" in result.stderr


def test_the_reported_perplexity_is_that_of_the_saved_weights(text: Path, tmp_path: Path) -> None:
    """The metrics' figure, computed again from the file by the other back end's plain forward pass."""
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out)).returncode == 0
    best = min(row["validation_loss"] for row in checkpoint.load(out).history)
    ids = load_corpus(str(text), vocab_size=14).validation
    assert -torch_rnn.RNN.load(out).log_probabilities(ids).mean() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_file_keeps_a_yardstick(backend: str, text: Path, tmp_path: Path) -> None:
    """The perplexity of the words' frequencies, which any model should beat."""
    out = tmp_path / "model.safetensors"
    assert train(backend, *options(text, out, epochs=1)).returncode == 0
    corpus = load_corpus(str(text), vocab_size=14)
    unigram = KneserNey(corpus.train, len(corpus.vocabulary), 1).perplexity(corpus.validation)
    assert checkpoint.load(out).config["unigram_perplexity"] == pytest.approx(unigram)


def test_rooted_lengths_are_what_is_trained_on_and_saved(text: Path, tmp_path: Path) -> None:
    given, rooted = tmp_path / "given.safetensors", tmp_path / "rooted.safetensors"
    assert train("c", *options(text, given, epochs=1)).returncode == 0
    assert train("c", *options(text, rooted, epochs=1, vector_lengths="root")).returncode == 0
    plain, saved = checkpoint.load(given), checkpoint.load(rooted)
    assert np.array_equal(saved.weights.embeddings, root_lengths(plain.weights.embeddings))
    assert saved.config["vector_lengths"] == "root" and saved.history[0] != plain.history[0]


def test_both_back_ends_train_alike(text: Path, tmp_path: Path) -> None:
    for backend in BACKENDS:
        assert train(backend, *options(text, tmp_path / f"{backend}.safetensors")).returncode == 0
    ours, theirs = (checkpoint.load(tmp_path / f"{backend}.safetensors").history for backend in BACKENDS)
    for a, b in zip(ours, theirs, strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-4)


def test_both_back_ends_train_alike_under_the_same_regularization(text: Path, tmp_path: Path) -> None:
    """The perplexity is that of the full softmax, whatever was trained with."""
    for backend in BACKENDS:
        assert train(backend, *options(text, tmp_path / f"{backend}.safetensors", **REGULARIZED)).returncode == 0
    assert train("c", *options(text, tmp_path / "plain.safetensors")).returncode == 0
    ours, theirs, plain = (checkpoint.load(tmp_path / f"{name}.safetensors").history for name in (*BACKENDS, "plain"))
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-4)
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
    assert abs(ours[-1]["validation_loss"] - plain[-1]["validation_loss"]) > 1e-3

    ids = load_corpus(str(text), vocab_size=14).validation
    best = min(row["validation_loss"] for row in ours)
    model = torch_rnn.RNN.load(tmp_path / "c.safetensors")
    assert -model.log_probabilities(ids).mean() == pytest.approx(best, abs=1e-5)


def test_a_sample_as_large_as_the_vocabulary_is_the_full_softmax(text: Path, tmp_path: Path) -> None:
    full, sampled = tmp_path / "full.safetensors", tmp_path / "sampled.safetensors"
    assert train("c", *options(text, full, epochs=1)).returncode == 0
    assert train("c", *options(text, sampled, epochs=1, sampled_softmax=1500)).returncode == 0
    assert same_weights(full, sampled)


def test_sampling_follows_the_tokens_that_are_trained_on(tmp_path: Path) -> None:
    """With --max-tokens the shares of the whole split would correct for targets that never come."""
    one = small_run(CTrainer, tmp_path, sampled_softmax=5)
    corpus = dataclasses.replace(one.corpus, train=one.corpus.whole_train[:30])
    share = regularizer(one.config, corpus, 4)._sampler._share
    assert share == pytest.approx(np.bincount(corpus.train, minlength=11) / 30)


class Recorder(CTrainer):
    """Learns nothing, and keeps what the loop asks for. The loss of its n-th step is n."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.calls: list[object] = []

    def reset_state(self) -> None:
        self.calls.append("reset")

    def train_step(self, *arguments: object) -> tuple[float, float]:
        self.calls.append(arguments)
        steps = len(self.calls) - self.calls.count("reset")
        return float(steps), 100.0 - steps


def test_the_loop_takes_each_step_once_with_its_own_chunk_rate_and_masks(tmp_path: Path) -> None:
    """An epoch begins with a zero state, and its loss is the mean over its own tokens."""
    one = small_run(Recorder, tmp_path, bptt=9, epochs=3, dropout=0.5, warmup_steps=10)  # 5 chunks of 9 and one of 4
    loop.train(one)
    calls = one.trainer.calls
    assert [index for index, call in enumerate(calls) if call == "reset"] == [0, 7, 14] and len(calls) == 21
    steps = [call for call in calls if call != "reset"]
    for step, (x, y, rate, regularization) in enumerate(steps):
        wanted = one.batches.chunk(step % 6)
        assert np.array_equal(x, wanted[0]) and np.array_equal(y, wanted[1])
        assert rate == pytest.approx(0.1 * min(step + 1, 10) / 10)
        assert np.array_equal(regularization.output_mask, one.regularizer.draw(step, y).output_mask)
    masks = {regularization.output_mask.tobytes() for *_, regularization in steps}
    assert len(masks) > 15
    rows = one.progress.history
    for epoch in (1, 2, 3):
        losses = np.arange(6 * epoch - 5, 6 * epoch + 1)
        assert rows[epoch]["train_loss"] == pytest.approx(np.average(losses, weights=[9, 9, 9, 9, 9, 4]))
        assert rows[epoch]["gradient_norm"] == 100.0 - losses[0]
        assert (rows[epoch]["step"], rows[epoch]["tokens"]) == (6 * epoch, 98 * epoch)


def test_plateau_halves_the_rate_and_puts_the_best_weights_back(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    wild = {"learning_rate": 0.5, "schedule": "plateau", "warmup_steps": 3, "patience": 0, "epochs": 8}
    assert train("c", *options(text, out, **wild)).returncode == 0
    rows = metrics(out)[1:]
    best = math.inf
    rate = 0.5
    stale = 0
    for row in rows:
        assert row["learning_rate"] == pytest.approx(rate)
        if row["validation_loss"] < best:
            best = row["validation_loss"]
        else:
            rate, stale = rate / 2, stale + 1
    assert 0 < stale < len(rows)
    arrays, metadata = state_file.load(out.with_suffix(".resume"))
    if metadata["progress"]["stale"]:
        assert np.array_equal(arrays["params"], arrays["best"])
    assert np.array_equal(checkpoint.load(out).weights.flat_parameters(), arrays["best"])


def test_patience_stops_early(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    arguments = options(text, out, epochs=500, patience=2, learning_rate=0.2, schedule="constant", optimizer="adamw")
    assert train("c", *arguments).returncode == 0
    assert len(checkpoint.load(out).history) < 100


def test_a_run_is_saved_between_evaluations_however_short_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has seven steps of some 20 seconds, a save is due after 180, and evaluations are far apart."""
    seconds = itertools.count(0.0, 10.0)
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    one = small_run(CTrainer, tmp_path, epochs=6, evaluate_every=100)
    saved: list[tuple[int, int]] = []
    save = one.state.save

    def record(*arguments: object) -> None:
        save(*arguments)
        saved.append(one.state.saved_at)

    monkeypatch.setattr(one.state, "save", record)
    monkeypatch.setattr(one.files, "draw", lambda _: None)
    loop.train(one)
    assert saved[0] == (0, 0) and saved[-1] == (6, 0) and len(one.progress.history) == 2
    between = saved[1:-1]
    assert between and all(0 <= step < 7 for _, step in between) and between[-1][0] > 2


@needs_wikitext
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_text(backend: str, tmp_path: Path) -> None:
    result = run(
        backend,
        *("--corpus", f"{WIKITEXT}:wikitext-2-v1", "--embeddings", "train", "--embedding-size", "16"),
        *("--max-tokens", "2000", "--epochs", "1", "--out", str(tmp_path / "real")),
    )
    assert result.returncode == 0, result.stderr
    assert "1,696,744" in result.stderr and "31,266" in result.stderr
