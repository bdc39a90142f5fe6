"""The loop and its command line, as a user meets them: small runs of the real programs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, WIKITEXT, make_weights, needs_wikitext, no_sanitizer
from running import BACKENDS, command, options, refused, run, same_weights

import main
import torch_rnn
from rnnlm import checkpoint, files
from rnnlm.data.corpus import Corpus
from rnnlm.data.text import Vocabulary
from rnnlm.training import reporting
from rnnlm.training.batches import Streams
from rnnlm.training.cli import initial_weights, prepare
from rnnlm.training.config import PRESETS, ConfigError, TrainConfig, parse
from rnnlm.training.distributed import Group
from rnnlm.training.loop import Run, Trainer, learning_rate
from rnnlm.training.runfiles import RunFiles

# ---- A whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_leaves_weights_metrics_and_a_curve_and_learns(backend: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "model.safetensors"
    result = run(backend, *options(text, out, epochs=3))
    assert result.returncode == 0, result.stderr
    saved = checkpoint.load(out)
    assert saved.backend == backend and saved.config["hidden_size"] == 10 and len(saved.vocabulary) == 14
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    perplexities = [row["validation_perplexity"] for row in rows]
    assert perplexities[-1] < perplexities[0]
    assert rows[1]["validation_perplexity"] == pytest.approx(math.exp(rows[1]["validation_loss"]))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "sample: The" in result.stdout or "no sample" in result.stderr
    assert f"{min(perplexities):.1f}" in result.stdout
    assert "epoch 3/3" in result.stderr and "tokens/s" in result.stderr


def test_the_reported_perplexity_is_that_of_the_saved_weights(text: Path, tmp_path: Path) -> None:
    """The metrics' figure, computed again from the file alone, by the other back end's plain forward pass."""
    from rnnlm.data.corpus import load_corpus

    out = tmp_path / "model.safetensors"
    assert run("c", *options(text, out)).returncode == 0
    best = min(row["validation_loss"] for row in checkpoint.load(out).history)
    ids = load_corpus(str(text), vocab_size=14).validation
    assert -torch_rnn.RNN.load(out).log_probabilities(ids).mean() == pytest.approx(best, abs=1e-5)


def test_both_back_ends_train_alike(text: Path, tmp_path: Path) -> None:
    for backend in BACKENDS:
        assert run(backend, *options(text, tmp_path / f"{backend}.safetensors")).returncode == 0
    ours, theirs = (checkpoint.load(tmp_path / f"{backend}.safetensors").history for backend in BACKENDS)
    for a, b in zip(ours, theirs, strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-4)


REGULARIZED = {"dropout": 0.3, "input_dropout": 0.1, "sampled_softmax": 5}


def test_both_back_ends_train_alike_under_the_same_regularization(text: Path, tmp_path: Path) -> None:
    """The perplexity is that of the full softmax, whatever was trained with."""
    from rnnlm.data.corpus import load_corpus

    for backend in BACKENDS:
        assert run(backend, *options(text, tmp_path / f"{backend}.safetensors", **REGULARIZED)).returncode == 0
    assert run("c", *options(text, tmp_path / "plain.safetensors")).returncode == 0
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
    assert run("c", *options(text, full, epochs=1)).returncode == 0
    assert run("c", *options(text, sampled, epochs=1, sampled_softmax=1500)).returncode == 0
    assert same_weights(full, sampled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_regularized_run_goes_on_with_the_masks_and_candidates_it_would_have_seen(
    backend: str, text: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    chosen = REGULARIZED | {"schedule": "constant"}  # the cosine's rates depend on how long the run is to be
    assert run(backend, *options(text, whole, epochs=3, **chosen)).returncode == 0
    assert run(backend, *options(text, stopped, epochs=1, **chosen)).returncode == 0
    result = run(backend, *options(text, stopped, epochs=3, **chosen), "--resume")
    assert result.returncode == 0 and "epoch 1/" not in result.stderr and "epoch 3/" in result.stderr
    assert same_weights(whole, stopped)


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


# ---- Stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend,number,epochs", [("c", signal.SIGINT, 40), ("c", signal.SIGTERM, 40), ("torch", signal.SIGINT, 12)]
)
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_never_stopped(
    backend: str, number: signal.Signals, epochs: int, text: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    long = {"epochs": epochs, "patience": 0}
    assert run(backend, *options(text, whole, **long)).returncode == 0
    arguments = command(backend, *options(text, stopped, **long))
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "epoch 2/" in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest and "--resume" in rest.splitlines()[-1]
    result = run(backend, *options(text, stopped, **long), "--resume")
    assert result.returncode == 0, result.stderr
    assert "epoch 1/" not in result.stderr and f"epoch {epochs}/" in result.stderr
    assert same_weights(whole, stopped)
    losses = [[row["validation_loss"] for row in checkpoint.load(path).history] for path in (whole, stopped)]
    assert losses[0] == losses[1]


def test_a_killed_run_goes_on_from_its_last_epoch(text: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    long = {"epochs": 40, "patience": 0}
    assert run("c", *options(text, whole, **long)).returncode == 0
    process = subprocess.Popen(command("c", *options(text, killed, **long)), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not killed.with_suffix(".resume.1").exists():  # the state after the first epoch, or a later one, is there
        time.sleep(0.01)
    process.kill()
    process.wait()
    result = run("c", *options(text, killed, **long), "--resume")
    assert result.returncode == 0, result.stderr
    assert "epoch 1/" not in result.stderr and "epoch 40/" in result.stderr
    assert same_weights(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("backend,epochs", [("c", 400), ("torch", 60)])
def test_runs_killed_at_random_moments_end_as_if_never_stopped(
    backend: str, epochs: int, text: Path, tmp_path: Path
) -> None:
    """Five kills, wherever they hit: while modules are imported, within an epoch, within a save."""
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    long = {"epochs": epochs, "patience": 0, "schedule": "plateau", "dropout": 0.2}
    begun = time.monotonic()
    assert run(backend, *options(text, whole, **long)).returncode == 0
    seconds = time.monotonic() - begun
    rng = np.random.default_rng()
    for _ in range(5):
        arguments = command(backend, *options(text, killed, **long), "--resume")
        with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            time.sleep(float(rng.uniform(0.0, 0.7)) * seconds)
            process.kill()
    result = run(backend, *options(text, killed, **long), "--resume")
    assert result.returncode == 0, result.stderr
    assert same_weights(whole, killed)
    losses = [[row["validation_loss"] for row in checkpoint.load(path).history] for path in (whole, killed)]
    assert losses[0] == losses[1]


def test_plateau_halves_the_rate_and_puts_the_best_weights_back(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    wild = {"learning_rate": 0.2, "schedule": "plateau", "warmup_steps": 3, "patience": 0, "epochs": 8}
    assert run("c", *options(text, out, **wild)).returncode == 0
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()][1:]
    best = math.inf
    rate = 0.2
    stale = 0
    for row in rows:
        assert row["learning_rate"] == pytest.approx(rate)
        if row["validation_loss"] < best:
            best = row["validation_loss"]
        else:
            rate, stale = rate / 2, stale + 1
    assert 0 < stale < len(rows)
    arrays, metadata = checkpoint.load_state(out.with_suffix(".resume"))
    if metadata["progress"]["stale"]:
        assert np.array_equal(arrays["params"], arrays["best"])
    assert np.array_equal(checkpoint.load(out).weights.flat_parameters(), arrays["best"])


def small_run(trainer_class: type[Trainer], folder: Path, group: Group | None = None, **changed: object) -> Run:
    """A run on 100 random tokens of 11 words, not begun."""
    weights = make_weights(11, 4, 5)
    words = ("<EOS>", *"abcdefghij")
    chosen = {"batch_size": 2, "bptt": 8, "optimizer": "adamw", "reduction": "mean", "epochs": 3, "threads": 1}
    chosen |= changed
    config = TrainConfig(**{"learning_rate": 0.1, "hidden_size": 5, "out": str(folder / "small")} | chosen)
    ids = np.random.default_rng(0).integers(0, 11, 100, dtype=np.int32)
    corpus = Corpus("small", "plain", Vocabulary(words), np.ones(11, dtype=np.int64), ids, ids, ids, None, {})
    return Run(config, corpus, trainer_class(weights, config), weights.embeddings, group or Group())


def test_a_run_says_how_long_it_takes_and_is_not_changed_by_measuring(text: Path, tmp_path: Path) -> None:
    result = run("c", *options(text, tmp_path / "model", epochs=7, patience=0))
    assert re.search(
        r"(\d+\.\d s|\d+ s|\d+ min) for 7 epochs: 24,7\d\d tokens at [\d,]+/s, 7 evaluations", result.stderr
    )
    for trainer_class in (main.Trainer, torch_rnn.Trainer):
        states = []
        for measured in (False, True):
            one = small_run(trainer_class, tmp_path)
            if measured:
                assert "for 3 epochs: 294 tokens" in one.estimate()
            for step in range(3):
                one.step(step, 8 * step, 0.1)
            if measured:
                assert "for 3 epochs" in one.estimate()
            one.step(3, 24, 0.1)
            states.append(one.trainer.state())
        assert states[0].keys() == states[1].keys()
        assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("epochs", [9, 10, 11, 12])
def test_the_evaluations_that_are_announced_are_those_to_come(epochs: int, tmp_path: Path) -> None:
    one = small_run(main.Trainer, tmp_path, epochs=epochs, evaluate_every=5)
    for one.progress.epoch in range(epochs):
        to_come = sum(one.is_evaluated(epoch) for epoch in range(one.progress.epoch + 1, epochs + 1))
        assert f", {to_come} evaluations of" in one.estimate()


def test_many_epochs_are_no_reason_to_wait_for_the_first(tmp_path: Path) -> None:
    one = small_run(main.Trainer, tmp_path, epochs=10**12, evaluate_every=5, patience=2)
    assert ", 200,000,000,000 evaluations of" in one.estimate()


def test_sampling_follows_the_tokens_that_are_trained_on(tmp_path: Path) -> None:
    """With --max-tokens the shares of the whole split would correct for targets that never come."""
    one = small_run(main.Trainer, tmp_path, sampled_softmax=5)
    one.corpus = dataclasses.replace(one.corpus, train=one.corpus.whole_train[:30])
    share = one.make_regularizer(4)._sampler._share
    assert share == pytest.approx(np.bincount(one.corpus.train, minlength=11) / 30)


def test_resume_refuses_another_run(text: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "model.safetensors", tmp_path / "mine.txt"
    mine.write_text(text.read_text())
    assert run("c", *options(mine, out)).returncode == 0
    refused(run("c", *options(mine, out, learning_rate=0.5), "--resume"), 2, "learning_rate", "0.5", "0.003")
    refused(run("torch", *options(mine, out), "--resume"), 2, "back end")
    refused(run("c", *options(text, out), "--resume"), 2, "corpus", "mine.txt")
    mine.write_text(text.read_text() + "\nthe king sat.")
    refused(run("c", *options(mine, out), "--resume"), 2, "text or vectors")


@pytest.mark.parametrize("trainer_class", [main.Trainer, torch_rnn.Trainer])
def test_resume_holds_no_array_twice(trainer_class: type[Trainer], tmp_path: Path) -> None:
    """Between processes arrays go as they are, not pickled; the best weights do not keep the optimiser's memory."""
    shared: list[object] = []

    class Watched(Group):
        def from_first(self, make: Callable[[], object]) -> object:
            shared.append(made := make())
            return made

    one = small_run(trainer_class, tmp_path)
    one.evaluate(None)
    one.step(0, 0, 0.1)
    one.best = one.trainer.weights()
    assert one.best.embeddings is one.vectors
    one.save_state()
    again = small_run(trainer_class, tmp_path, group=Watched())
    shared.clear()
    assert again.resume() and again.best
    assert len(pickle.dumps(shared)) < 5000 and "array(" not in str(shared)
    flat = again.best.Whh
    while flat.base is not None:
        flat = flat.base
    assert flat.size == again.best.flat_parameters().size
    states = one.trainer.state(), again.trainer.state()
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_resume_refuses_fewer_epochs_than_were_begun(tmp_path: Path) -> None:
    """There would be nothing to train, and perhaps nothing evaluated: the summary would be of another model."""
    one = small_run(main.Trainer, tmp_path, epochs=6, evaluate_every=20)
    one.evaluate(None)
    one.progress.epoch, one.progress.step = 5, 3
    one.save_state()
    with pytest.raises(ConfigError, match=r"small\.resume: it is in epoch 6, .* --epochs 5; give --epochs 6"):
        small_run(main.Trainer, tmp_path, epochs=5, evaluate_every=20).resume()
    assert small_run(main.Trainer, tmp_path, epochs=6, evaluate_every=20).resume()
    one.progress.epoch, one.progress.step = 5, 0
    one.save_state()
    assert small_run(main.Trainer, tmp_path, epochs=5, evaluate_every=20).resume()


def test_resume_with_more_epochs_says_that_the_cosine_is_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = small_run(main.Trainer, tmp_path, schedule="cosine", epochs=2)
    one.evaluate(None)
    one.progress.epoch = 2
    one.save_state()
    assert small_run(main.Trainer, tmp_path, schedule="cosine", epochs=2).resume() and not caplog.text
    assert small_run(main.Trainer, tmp_path, schedule="cosine", epochs=4).resume()
    assert "--epochs 4 instead of 2" in caplog.text and "at 0.0505 instead of 0.001" in caplog.text
    caplog.clear()
    second = small_run(main.Trainer, tmp_path, schedule="cosine", epochs=4)
    second.group.rank = 1  # of several processes the first has said so
    second.warn_of_another_rate(2)
    assert not caplog.text


def test_resume_with_nothing_there_begins(text: Path, tmp_path: Path) -> None:
    """As a supervisor that always gives --resume needs it: a run may be killed before it has saved anything."""
    out = tmp_path / "model.safetensors"
    result = run("c", *options(text, out), "--resume")
    assert result.returncode == 0 and "nothing to resume" in result.stderr and "model.resume" in result.stderr


def test_a_damaged_state_falls_back_to_the_one_before(text: Path, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    assert run("c", *options(text, whole, epochs=6)).returncode == 0
    assert run("c", *options(text, damaged, epochs=4)).returncode == 0
    last, before = damaged.with_suffix(".resume"), damaged.with_suffix(".resume.1")
    good = last.read_bytes()
    for bad in (b"damaged", good[:-100], good[:-100] + bytes(100), None):
        last.write_bytes(bad) if bad is not None else last.unlink()
        result = run("c", *options(text, damaged, epochs=6), "--resume")
        assert result.returncode == 0, result.stderr
        assert bad is None or ("damaged.resume: " in result.stderr and "saved before it" in result.stderr)
        assert "epoch 3/" not in result.stderr and "epoch 6/" in result.stderr
        assert same_weights(whole, damaged)
    last.write_bytes(b"damaged")
    before.write_bytes(b"damaged too")
    refused(run("c", *options(text, damaged, epochs=6), "--resume"), 2, "damaged.resume")


def test_a_state_of_another_version_is_said(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert run("c", *options(text, out, epochs=1)).returncode == 0
    file = out.with_suffix(".resume")
    file.write_bytes(file.read_bytes().replace(b'"version":"3"', b'"version":"1"', 1))
    refused(run("c", *options(text, out), "--resume"), 2, "model.resume", "version is '1'", "--resume")
    arrays, metadata = checkpoint.load_state(out.with_suffix(".resume.1"))
    del metadata["progress"]["epoch"], arrays["hidden"]
    checkpoint.save_state(file, arrays, metadata)
    refused(run("c", *options(text, out), "--resume"), 2, "model.resume", "hidden")


def test_patience_stops_early(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    arguments = options(text, out, epochs=500, patience=2, learning_rate=0.2, schedule="constant", optimizer="adamw")
    assert run("c", *arguments).returncode == 0
    assert len(checkpoint.load(out).history) < 100


# ---- What is seen ----------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_reached_and_where_it_lies(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    wild = {"epochs": 50, "patience": 1, "learning_rate": 0.2, "schedule": "constant", "prompt": "king"}
    result = run("c", *options(text, out, **wild), "--tensorboard")
    assert result.returncode == 0, result.stderr
    rows = checkpoint.load(out).history
    assert f"at epoch {rows[-1]['epoch']} of" in result.stdout and "of training" in result.stdout
    assert "epochs early (--patience 1)" in result.stdout and "sample: king " in result.stdout
    for ending in (".safetensors", ".jsonl", ".png", ".resume", ".tensorboard"):
        path = out.with_suffix(ending)
        assert path.exists() and f"{path}  " in result.stdout


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_events_also_of_a_run_that_went_on(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert run("c", *options(text, out, epochs=2, patience=0), "--tensorboard").returncode == 0
    assert run("c", *options(text, out, epochs=3, patience=0), "--tensorboard", "--resume").returncode == 0
    seen, rows = scalars(out.with_suffix(".tensorboard")), checkpoint.load_state(out.with_suffix(".resume"))[1]
    rows = rows["progress"]["history"]
    assert [step for step, _ in seen["train/loss"]] == list(range(1, rows[-1]["step"] + 1))
    for tag, name in (("validation/loss", "validation_loss"), ("validation/perplexity", "validation_perplexity")):
        assert [step for step, _ in seen[tag]] == [row["step"] for row in rows]
        assert [value for _, value in seen[tag]] == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_tensorboard_that_is_not_there(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorboard.py").write_text("raise ImportError('not here')")
    refused(run("c", *options(text, tmp_path / "m"), "--tensorboard", PYTHONPATH=str(tmp_path)), 2, "pip install")


def test_events_on_a_full_disk_are_given_up_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    files = RunFiles(tmp_path / "model.safetensors", tensorboard=True)
    (tmp_path / "model.tensorboard").write_text("in the way")
    files.step(1, 1.0, 1.0, 1.0)
    files.step(2, 1.0, 1.0, 1.0)
    assert caplog.text.count("cannot be saved") == 1 and "events" in files.unsaved
    (tmp_path / "model.tensorboard").unlink()
    row = {"step": 2, "validation_loss": 2.0, "validation_perplexity": 7.4, "tokens_per_second": None}
    files.evaluation(row)
    files.step(3, 1.5, 1.0, 1.0)
    files.close()
    assert not files.unsaved and scalars(tmp_path / "model.tensorboard")["train/loss"] == [(3, 1.5)]


@pytest.mark.parametrize(
    "seconds,words", [(0.42, "0.4 s"), (35, "35 s"), (119, "2 min"), (2 * 3600, "2.0 h"), (3e5, "3.5 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert reporting.duration(seconds) == words


# ---- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diverging_run_names_the_step_and_keeps_the_last_good_weights(
    backend: str, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    assert run(backend, *options(text, out)).returncode == 0
    before = out.read_bytes()
    wild = {"optimizer": "sgd", "clip": 0, "schedule": "constant", "learning_rate": 1e38}
    refused(run(backend, *options(text, out, **wild)), 1, "not finite", "step", "epoch 1", "--learning-rate")
    assert out.read_bytes() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "changed,words",
    [
        ({"epochs": 0}, ["--epochs", "0"]),
        ({"learning_rate": 1e39}, ["--learning-rate", "1e+39"]),
        ({"learning_rate": 0}, ["--learning-rate", "0"]),
        ({"learning_rate": "nan"}, ["--learning-rate", "nan"]),
        ({"learning_rate": "-1"}, ["--learning-rate", "-1"]),
        ({"hidden_size": 0}, ["--hidden-size", "0"]),
        ({"batch_size": 1000000}, ["--batch-size", "1000000"]),
        ({"vocab_size": 1000}, ["1000", "16"]),
        ({"max_tokens": 1}, ["--max-tokens must be 2 or more, got 1"]),
        ({"validation_tokens": 1}, ["--validation-tokens", "1"]),
        ({"corpus": "no-such-corpus"}, ["no-such-corpus"]),
        ({"embeddings": "no-such-vectors"}, ["no-such-vectors"]),
        ({"optimizer": "magic"}, ["magic"]),
        ({"bptt": "many"}, ["many"]),
    ],
)
def test_bad_options(backend: str, changed: dict[str, object], words: list[str], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"precious")
    refused(run(backend, *options(text, out, **changed)), 2, *words)
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize("content", ["", "\n\n  \n", "1 2 3 4.\n5 6"])
def test_a_text_without_words(content: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    refused(run("c", *options(path, tmp_path / "model")), 2, "empty.txt")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_corpus_without_a_network(backend: str, tmp_path: Path) -> None:
    """The hub is asked at an address where nothing listens: one line at once, and no stand-in."""
    result = run(
        backend,
        *("--out", str(tmp_path / "model")),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hub"),
    )
    refused(result, 2, "wikitext", "demo")
    assert not (tmp_path / "model.safetensors").exists()


def test_an_output_folder_that_cannot_be_made(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused(run("c", *options(text, tmp_path / "file" / "model.safetensors")), 1, "file")


def test_a_full_disk_is_said_and_harms_nothing(text: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: every save fails, and the old file stays."""
    import resource

    out = tmp_path / "model.safetensors"
    large = {"hidden_size": 400, "epochs": 1}
    assert run("c", *options(text, out, **large)).returncode == 0
    before = out.read_bytes()
    assert out.with_suffix(".png").stat().st_size < len(before)

    def limit(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (1024, len(before) - 1000):  # nothing can be saved; all but the weights and the state can
        result = subprocess.run(
            command("c", *options(text, out, **large)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            preexec_fn=functools.partial(limit, size),
        )
        refused(result, 1, "model")
        assert out.read_bytes() == before and not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".saving*"))


def test_a_run_stopped_before_an_epochs_short_last_chunk_goes_on(text: Path, tmp_path: Path) -> None:
    """The workspace is then first asked for the short chunk, and next for a whole one."""
    config = TrainConfig(batch_size=2, learning_rate=0.1, reduction="mean", threads=1)
    trainer = main.Trainer(make_weights(11, 4, 5), config)
    ids = np.zeros((9, 2), dtype=np.int32)
    for rows in (3, 9):
        assert math.isfinite(trainer.train_step(ids[:rows], ids[:rows], 0.1)[0])


def test_an_output_that_is_no_file_name(text: Path, tmp_path: Path) -> None:
    for out in (Path("."), tmp_path, Path("..")):
        refused(run("c", *options(text, out)), 2, "--out", str(out))


def test_cuda_where_there_is_none(tmp_path: Path) -> None:
    """Said before a corpus is looked for, which may take minutes."""
    missing = options(tmp_path / "no-such-corpus", tmp_path / "model", device="cuda")
    refused(run("c", *missing), 2, "cuda")
    refused(run("torch", *missing, CUDA_VISIBLE_DEVICES=""), 2, "cuda")


def test_a_library_that_is_missing_is_said_before_the_corpus_is_read(tmp_path: Path) -> None:
    missing = options(tmp_path / "no-such-corpus", tmp_path / "model")
    refused(run("c", *missing, RNNLIB_PATH=str(tmp_path / "none.so")), 1, "none.so", "make lib")


@pytest.mark.parametrize("backend", BACKENDS)
def test_options_that_there_are_not_are_told_in_one_line(backend: str) -> None:
    for arguments, said in {
        ("--learning-rat", "0.1"): "unrecognized arguments: --learning-rat 0.1",  # and not taken for --learning-rate
        ("--preset", "dmo"): "argument --preset: invalid choice: 'dmo'",
        ("--hidden-size", "abc"): "argument --hidden-size: invalid int value: 'abc'",
    }.items():
        refused(run(backend, *arguments), 2, said, "--help")
    shown = run(backend, "--help").stdout
    assert f"or demo ({'wikitext-103-v1' if backend == 'c' else 'wikitext-2-v1'})" in " ".join(shown.split())


@no_sanitizer
@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_memory_names_the_options_that_help(backend: str, text: Path, tmp_path: Path) -> None:
    import resource

    program = "import sys, {0}; from rnnlm.training import cli; sys.exit(cli.main({0}.Trainer, {0}.RNN, sys.argv[1:]))"
    arguments = options(text, tmp_path / "model", hidden_size=16384, embeddings="train")
    result = subprocess.run(
        [sys.executable, "-c", program.format(BACKENDS[backend].removesuffix(".py")), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )
    refused(result, 1, "out of memory", "--batch-size", "--bptt", "--hidden-size", "--embedding-size")


@no_sanitizer
def test_torchs_own_words_for_too_little_memory() -> None:
    with pytest.raises(MemoryError, match="allocate"), torch_rnn._plain_errors(Group()):
        torch_rnn.torch.empty(1 << 50)
    with pytest.raises(MemoryError, match="CUDA out of memory"), torch_rnn._plain_errors(Group()):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    with pytest.raises(RuntimeError, match="another"), torch_rnn._plain_errors(Group()):
        raise RuntimeError("another bug")


def test_weights_that_could_not_be_saved_are_saved_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best weights of a full disk's time reach the disk once there is room, though no better ones come."""
    one = small_run(main.Trainer, tmp_path)
    one.evaluate(None)
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(files.SaveError("full")))
    one.best = one.trainer.weights()
    one.save_weights(one.best)
    assert "weights" in one.files.unsaved and not one.files.weights.exists()
    monkeypatch.setattr(checkpoint, "save", save)
    one.step(0, 0, 0.1)
    one.save_state()
    assert not one.files.unsaved
    assert np.array_equal(checkpoint.load(one.files.weights).weights.Why, one.best.Why)


def test_weights_that_could_not_be_saved_before_a_kill_are_saved_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state was saved and the weights were not: the file still has those of the epoch before."""
    one = small_run(main.Trainer, tmp_path)
    one.evaluate(None)
    one.best, one.progress.best_epoch = one.trainer.weights(), 1
    one.save_weights(one.best)
    one.step(0, 0, 0.1)
    one.best, one.progress.best_epoch = one.trainer.weights(), 2
    monkeypatch.setattr(one, "save_weights", lambda _: None)
    one.save_state()
    assert not one.files.holds(one.best)
    again = small_run(main.Trainer, tmp_path)
    assert again.resume()
    assert again.files.holds(one.best)
    written = again.files.weights.stat().st_ino
    assert small_run(main.Trainer, tmp_path).resume()
    assert again.files.weights.stat().st_ino == written


def test_a_run_is_saved_between_evaluations_however_short_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps of ten seconds are an epoch; evaluations are far apart."""
    seconds = itertools.count(0.0, 10.0)
    one = small_run(main.Trainer, tmp_path, epochs=100, evaluate_every=100)
    one.evaluate(None)
    monkeypatch.setattr("rnnlm.training.loop.time.monotonic", lambda: next(seconds))
    one.save_state()
    for _ in range(2):
        assert one.saved_at == (0, 0)
        with reporting.bar(0, 0, hidden=True) as bar:
            one.train_epoch(bar, lambda: False)
        assert one.finish_epoch() is None
    assert one.saved_at and one.saved_at[0] == 1


# ---- rnn.py's command line -------------------------------------------------------------------------------------------


def rnn_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "rnn.py"), *arguments], capture_output=True, text=True, cwd=ROOT)


def test_generate_and_score_from_the_command_line(weights_file: Path) -> None:
    first = rnn_command(str(weights_file), "waa nonsense wab", "--seed", "3")
    assert (
        first.returncode == 0
        and first.stdout == rnn_command(str(weights_file), "waa nonsense wab", "--seed", "3").stdout
    )
    assert first.stdout.startswith("waa nonsense wab ") and "nonsense" in first.stderr and "seed 3" in first.stderr
    score = rnn_command(str(weights_file), "waa wab.", "--score")
    assert score.returncode == 0
    assert re.search(
        r"^waa +-\d+\.\d+\nwab +-\d+\.\d+\n<EOS> +-\d+\.\d+\nperplexity \d+\.\d+ over 3 tokens\n$", score.stdout
    )


@pytest.mark.parametrize("prompt", ["", "  ", "1 2 3", "nonsense entirely"])
def test_prompts_that_cannot_be_used(prompt: str, weights_file: Path) -> None:
    refused(rnn_command(str(weights_file), prompt), 2, "prompt")


@pytest.mark.parametrize(
    "extra,word",
    [
        (["--max-tokens", "0"], "max_tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-k", "-1"], "top_k"),
        (["--top-k", "2147483648"], "top_k"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_generation_options_out_of_range(extra: list[str], word: str, weights_file: Path) -> None:
    refused(rnn_command(str(weights_file), "waa", *extra), 2, word)


def test_missing_and_damaged_weights(weights_file: Path, tmp_path: Path) -> None:
    refused(rnn_command(str(tmp_path / "none.safetensors"), "waa"), 2, "none.safetensors")
    weights_file.write_bytes(weights_file.read_bytes()[:-10])
    refused(rnn_command(str(weights_file), "waa"), 2, "tiny.safetensors")


# ---- Parts -----------------------------------------------------------------------------------------------------------


def test_streams_are_the_text_shifted_by_one() -> None:
    x, y = Streams(np.arange(11, dtype=np.int32), 3).chunk(0, 9)
    assert x.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert y.tolist() == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    x, y = Streams(np.arange(11, dtype=np.int32), 1).chunk(0, 99)
    assert x.shape == (10, 1) and y[-1, 0] == 10
    x, y = Streams(np.arange(11, dtype=np.int32), 1).chunk(4, 6)
    assert x.tolist() == [[4], [5]] and y.tolist() == [[5], [6]] and x.flags.c_contiguous


def test_processes_share_the_streams_of_one() -> None:
    ids = np.arange(100, dtype=np.int32)
    whole = Streams(ids, 6).chunk(0, 5)
    parts = [Streams(ids, 2, rank, 3).chunk(0, 5) for rank in range(3)]
    for name in (0, 1):
        assert np.array_equal(np.hstack([part[name] for part in parts]), whole[name])


def test_initial_weights() -> None:
    """One seed, one start; `unigram` changes the output bias alone, to what makes the word frequencies."""
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
    config, _ = parse("c", options(text, tmp_path / "model", init="unigram", max_tokens=40))
    made = prepare(config, main.Trainer, Group())
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_preset_is_the_documented_recipe(backend: str) -> None:
    config, resume = parse(backend, [])
    assert not resume and config.preset == "reference"
    assert (config.hidden_size, config.learning_rate, config.epochs, config.max_tokens) == (100, 1e-5, 600, 5000)
    assert (config.batch_size, config.bptt, config.clip, config.optimizer, config.reduction) == (
        1,
        None,
        0,
        "sgd",
        "sum",
    )
    assert config.embeddings == "word2vec-google-news-300"
    assert config.corpus == {"c": "wikitext-103-v1", "torch": "wikitext-2-v1"}[backend]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_line_wins_over_the_preset(preset: str) -> None:
    config, _ = parse("c", ["--preset", preset, "--hidden-size", "7"])
    assert config.hidden_size == 7 and config.as_dict() == TrainConfig(**config.as_dict()).as_dict()


@pytest.mark.parametrize(
    "changed",
    [
        {"momentum": 1.0},
        {"dropout": 1.0},
        {"input_dropout": -0.1},
        {"sampled_softmax": -1},
        {"momentum": 0.5, "optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"clip": math.inf},
        {"threads": 0},
    ],
)
def test_options_that_do_not_fit(changed: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changed)).replace("_", "-")):
        TrainConfig(**changed)


def rnn_into(target: str, *arguments: str) -> tuple[int, str]:
    """rnn.py with its output going to `target`, a shell's way to write it. (exit code, what it said on stderr)."""
    shell = f'"{sys.executable}" "{ROOT / "rnn.py"}" "$@" {target}; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", shell, "rnn", *arguments], capture_output=True, text=True, cwd=ROOT)
    return result.returncode, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_cannot_be_written(weights_file: Path) -> None:
    code, said = rnn_into("> /dev/full", str(weights_file), "waa")
    assert code == 1 and "rnn.py: the output cannot be written: No space left" in said and "Traceback" not in said
    code, said = rnn_into("| true", str(weights_file), "waa " * 20_000, "--score")
    assert code == 0 and "Traceback" not in said and "BrokenPipe" not in said


def test_a_prompt_that_is_not_text(weights_file: Path) -> None:
    result = subprocess.run(
        [sys.executable.encode(), bytes(ROOT / "rnn.py"), bytes(weights_file), b"waa \xff"],
        capture_output=True,
        cwd=ROOT,
    )
    assert result.returncode == 2 and result.stderr.startswith(b"rnn.py: the prompt is not text")


def test_a_hopeless_score_has_a_perplexity(weights_file: Path) -> None:
    """Of a loss beyond what exp() takes."""
    from rnnlm.language_model import Score, Token

    assert math.isfinite(Score((Token(0, "a", -5000.0),), ()).perplexity)


@pytest.mark.parametrize("name", ["corpus", "prompt", "out"])
def test_options_that_are_not_text(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{name} must be text in UTF-8, got a\\udcff"):
        TrainConfig(**{name: "a\udcff"})


@pytest.mark.parametrize("name", ["seed", "epochs", "warmup_steps", "max_tokens"])
def test_numbers_that_no_file_holds(name: str) -> None:
    with pytest.raises(ConfigError, match=r"below 2\^63"):
        TrainConfig(**{name: 1 << 63})


@pytest.mark.parametrize("program", ["main.py", "torch_rnn.py", "rnn.py"])
def test_ctrl_c_while_modules_are_imported(program: str, tmp_path: Path) -> None:
    """A numpy that takes its time stands for all that is imported."""
    (tmp_path / "numpy.py").write_text(
        "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    arguments = [sys.executable, str(ROOT / program), "x"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGINT
