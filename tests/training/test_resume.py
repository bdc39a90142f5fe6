"""Stopping and resuming: a resumed run ends with the weights of one that was never stopped."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from running import BACKENDS, REGULARIZED, command, options, refused, run, same_weights, train
from trainers import TRAINERS, CTrainer, small_run, take_step

from rnnlm import checkpoint, files
from rnnlm.training import loop, state_file
from rnnlm.training.config import ConfigError
from rnnlm.training.distributed import Group
from rnnlm.training.progress import Progress
from rnnlm.training.reporting import Report
from rnnlm.training.run import Run, fingerprint
from rnnlm.training.stopping import Interrupted, after


def same_losses(first: Path, second: Path) -> bool:
    a, b = ([row["validation_loss"] for row in checkpoint.load(path).history] for path in (first, second))
    return a == b


# ---- Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_never_stopped(
    number: signal.Signals, text: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    long = {"epochs": 40, "patience": 0}
    assert train("c", *options(text, whole, **long)).returncode == 0
    arguments = command("c", *options(text, stopped, **long))
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "epoch 2/" in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest and "--resume" in rest.splitlines()[-1]
    result = train("c", *options(text, stopped, **long), "--resume")
    assert result.returncode == 0, result.stderr
    assert "epoch 1/" not in result.stderr and "epoch 40/" in result.stderr
    assert same_weights(whole, stopped) and same_losses(whole, stopped)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        REGULARIZED,
        {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine"},
        {"precision": "bfloat16"},
        {"average": 0.9},
        {"optimizer": "adamw", "epsilon": 1e-4, "vector_lengths": "root"},
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_stopped_within_an_epoch_ends_as_if_never_stopped(
    backend: str, changed: dict[str, object], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped twice: after the third step, and after the last step of the second epoch, before it is evaluated."""
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    chosen = {"max_tokens": 450} | changed  # 7 steps an epoch
    assert train(backend, *options(text, whole, epochs=3, **chosen)).returncode == 0
    step = Report.step
    for stop_at, where in ((3, "after 3 of 7 steps in epoch 1"), (14, "after 7 of 7 steps in epoch 2")):

        def stop(self: Report, *arguments: float, at: int = stop_at) -> None:
            step(self, *arguments)
            if self._run.step == at - 1:  # the request is seen at the end of the next step
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Report, "step", stop)
            result = train(backend, *options(text, stopped, epochs=3, **chosen), "--resume")
        refused(result, 130, where, f"saved {stopped.with_suffix('.resume')}", "--resume")
        assert stopped.exists()
    result = train(backend, *options(text, stopped, epochs=3, **chosen), "--resume")
    assert result.returncode == 0 and "epoch 1/" not in result.stderr and "epoch 3/" in result.stderr
    assert same_weights(whole, stopped) and same_losses(whole, stopped)


def test_a_run_that_lost_patience_goes_on_with_more_of_it_as_if_never_stopped(text: Path, tmp_path: Path) -> None:
    """Also the evaluation at which it stopped halves the rate and puts the best weights back."""
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    wild = {"learning_rate": 0.2, "schedule": "plateau", "epochs": 12}
    assert train("c", *options(text, whole, patience=3, **wild)).returncode == 0
    assert train("c", *options(text, stopped, patience=1, **wild)).returncode == 0
    arrays, metadata = state_file.load(stopped.with_suffix(".resume"))
    assert metadata["progress"]["stale"] == 1 and np.array_equal(arrays["params"], arrays["best"])
    assert train("c", *options(text, stopped, patience=3, **wild), "--resume").returncode == 0
    states = [state_file.load(path.with_suffix(".resume")) for path in (whole, stopped)]
    losses = [[row["validation_loss"] for row in saved["progress"]["history"]] for _, saved in states]
    assert losses[0] == losses[1] and len(losses[0]) > len(metadata["progress"]["history"])
    assert all(np.array_equal(states[0][0][name], states[1][0][name]) for name in arrays)


def test_weights_that_were_never_evaluated_have_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only evaluation is that of the untrained weights, and the file has those of the second step."""
    one = small_run(CTrainer, tmp_path)
    step = Report.step

    def stop(self: Report, *arguments: float) -> None:
        step(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Report, "step", stop)
    with pytest.raises(Interrupted):
        loop.train(one)
    assert [row["step"] for row in one.progress.history] == [0]
    assert checkpoint.load(one.files.weights).history == []
    monkeypatch.undo()
    again = small_run(CTrainer, tmp_path)
    assert again.resume()
    loop.train(again)
    assert [row["step"] for row in checkpoint.load(one.files.weights).history][:2] == [0, 7]


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = small_run(CTrainer, tmp_path)
    step = CTrainer.train_step

    def twice(*arguments: object) -> tuple[float, float]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(CTrainer, "train_step", twice)
    with pytest.raises(KeyboardInterrupt):
        loop.train(one)
    assert one.progress.step == 0 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_on_a_full_disk_says_that_nothing_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = small_run(CTrainer, tmp_path)
    step = CTrainer.train_step

    def stop(*arguments: object) -> tuple[float, float]:
        monkeypatch.setattr(state_file, "save", lambda *_, **__: (_ for _ in ()).throw(files.SaveError("full")))
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(CTrainer, "train_step", stop)
    with pytest.raises(Interrupted, match="after 1 of 7 steps in epoch 1: not saved: full"):
        loop.train(one)


@pytest.mark.parametrize(
    ("epochs", "step", "steps", "says"),
    [
        (0, 0, 7, "after 0 of 7 steps in epoch 1"),
        (1, 0, 1, "after 1 of 1 step in epoch 1"),
        (1233, 4567, 12345, "after 4,567 of 12,345 steps in epoch 1,234"),
    ],
)
def test_where_a_run_is(epochs: int, step: int, steps: int, says: str) -> None:
    assert after(epochs, step, steps) == says


# ---- Killed


def test_a_killed_run_goes_on_from_its_last_epoch(text: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    long = {"epochs": 40, "patience": 0}
    assert train("c", *options(text, whole, **long)).returncode == 0
    process = subprocess.Popen(command("c", *options(text, killed, **long)), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not killed.with_suffix(".resume.1").exists():  # the state after the first epoch, or a later one, is there
        time.sleep(0.01)
    process.kill()
    process.wait()
    result = train("c", *options(text, killed, **long), "--resume")
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
    assert same_weights(whole, killed) and same_losses(whole, killed)


def test_weights_that_could_not_be_saved_are_saved_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best weights of a full disk's time reach the disk once there is room, though no better ones come."""
    one = small_run(CTrainer, tmp_path)
    loop.evaluate(one)
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(files.SaveError("full")))
    one.best = one.trainer.weights()
    one.save_weights(one.best)
    assert "weights" in one.files.unsaved and not one.files.weights.exists()
    monkeypatch.setattr(checkpoint, "save", save)
    take_step(one, 0)
    one.save_state()
    assert not one.files.unsaved
    assert np.array_equal(checkpoint.load(one.files.weights).weights.Why, one.best.Why)


def test_weights_that_could_not_be_saved_before_a_kill_are_saved_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state was saved and the weights were not: the file still has those of the epoch before."""
    one = small_run(CTrainer, tmp_path)
    loop.evaluate(one)
    one.best, one.progress.best_epoch = one.trainer.weights(), 1
    one.save_weights(one.best)
    take_step(one, 0)
    one.best, one.progress.best_epoch = one.trainer.weights(), 2
    monkeypatch.setattr(one, "save_weights", lambda _: None)
    one.save_state()
    assert not one.files.holds(one.best)
    again = small_run(CTrainer, tmp_path)
    assert again.resume()
    assert again.files.holds(one.best)
    written = again.files.weights.stat().st_ino
    assert small_run(CTrainer, tmp_path).resume()
    assert again.files.weights.stat().st_ino == written


# ---- What is resumed, and what is refused


@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_holds_no_array_twice(backend: str, tmp_path: Path) -> None:
    """Between processes arrays go as they are, not pickled; the best weights do not keep the optimizer's memory."""
    shared: list[object] = []

    class Watched(Group):
        def from_first(self, make: Callable[[], object]) -> object:
            shared.append(made := make())
            return made

    one = small_run(TRAINERS[backend], tmp_path)
    loop.evaluate(one)
    take_step(one, 0)
    one.best = one.trainer.weights()
    assert one.best.embeddings is one.trainer.embeddings
    one.save_state()
    again = small_run(TRAINERS[backend], tmp_path, group=Watched())
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


def begin(one: Run, epoch: int, step: int) -> None:
    """Save a state at that step."""
    loop.evaluate(one)
    one.progress.epoch, one.progress.step = epoch, step
    one.save_state()


def test_the_paths_of_another_machine_may_differ(tmp_path: Path) -> None:
    """What was read there is compared instead."""
    begin(small_run(CTrainer, tmp_path, corpus="/data/text.txt", embeddings="/data/vectors.bin"), 1, 3)
    there = small_run(CTrainer, tmp_path, corpus="/mnt/text.txt", embeddings="/mnt/vectors.bin")
    assert there.resume() and there.step == 10
    there.state._identity["data"] = "another text"
    with pytest.raises(ConfigError, match=r"small\.resume: its text or vectors are \w+, this run's are another text"):
        there.state.load()


def test_resume_with_more_epochs_warns_that_the_cosine_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(small_run(CTrainer, tmp_path, schedule="cosine", epochs=2), 2, 0)
    assert small_run(CTrainer, tmp_path, schedule="cosine", epochs=2).resume() and not caplog.text
    assert small_run(CTrainer, tmp_path, schedule="cosine", epochs=4).resume()
    assert "--epochs 4 instead of 2" in caplog.text and "at 0.0505 instead of 0.001" in caplog.text
    caplog.clear()
    second = small_run(CTrainer, tmp_path, schedule="cosine", epochs=4)
    second.group.rank = 1  # rank 0 has warned already
    monkeypatch.setattr(second.state, "load", lambda: (Progress(epoch=2), None, 2))
    assert second.resume() and not caplog.text


def test_resume_with_nothing_there_begins(text: Path, tmp_path: Path) -> None:
    """A supervisor, and `make train`, may always pass --resume. That there is nothing to resume is no failure."""
    out = tmp_path / "model.safetensors"
    result = train("c", *options(text, out), "--resume")
    said = f"training starts from the beginning: there is no {tmp_path / 'model.resume'} to resume"
    assert result.returncode == 0 and said in result.stderr.splitlines()


def test_resume_refuses_another_run(text: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "model.safetensors", tmp_path / "mine.txt"
    mine.write_text(text.read_text())
    assert train("c", *options(mine, out)).returncode == 0
    refused(train("c", *options(mine, out, learning_rate=0.5), "--resume"), 2, "--learning-rate 0.5 (it was 0.003)")
    refused(train("torch", *options(mine, out), "--resume"), 2, "torch_rnn.py (it was main.py)")
    refused(train("c", *options(text, out), "--resume"), 2, "--corpus", "mine.txt")
    mine.write_text(text.read_text() + "\nthe king sat.")
    refused(train("c", *options(mine, out), "--resume"), 2, "text or vectors")


def test_a_resumed_run_may_have_another_test_split(text: Path, tmp_path: Path) -> None:
    """It changes nothing of the training. The result is that of the text that was given last."""
    out, test = tmp_path / "model.safetensors", tmp_path / "test.txt"
    test.write_text("The queen sat on the mat. " * 5)
    assert train("c", *options(text, out, epochs=1)).returncode == 0
    assert "test_loss" not in checkpoint.load(out).history[-1]
    assert train("c", *options(text, out, epochs=1, test=test), "--resume").returncode == 0
    first = checkpoint.load(out).history[-1]["test_loss"]
    test.write_text("The king sat there. The queen walked. " * 5)
    assert train("c", "--resume", "--out", str(out), "--test", str(test)).returncode == 0
    assert checkpoint.load(out).history[-1]["test_loss"] != first


def test_the_processes_compare_the_test_split(tmp_path: Path) -> None:
    facts: list[dict[str, object]] = []

    class Watched(Group):
        def agree(self, theirs: dict[str, object]) -> None:
            facts.append(theirs)

    one = small_run(CTrainer, tmp_path, group=Watched())
    for test in (one.corpus.train, one.corpus.train[::-1]):
        corpus = dataclasses.replace(one.corpus, test=test)
        Run(one.config, corpus, one.trainer, one.trainer.embeddings, one.group)
    assert facts[0]["test split"] == "none" and len({fact["test split"] for fact in facts}) == 3
    assert len({fact["text or vectors"] for fact in facts}) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_of_release_0_1_goes_on(backend: str, tmp_path: Path) -> None:
    """Its names, spelled out: a renamed option, array or field of the progress would lose the runs that people have."""
    one = small_run(TRAINERS[backend], tmp_path)
    config = {
        **{"preset": "reference", "corpus": "wikitext-2-v1", "vocab_size": None, "max_tokens": None},
        **{"validation_tokens": 250_000, "embeddings": "word2vec-google-news-300", "embedding_size": 300},
        **{"hidden_size": 5, "init": "uniform", "epochs": 3, "batch_size": 2, "bptt": 8, "reduction": "mean"},
        **{"optimizer": "adamw", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0, "dropout": 0.0},
        **{"input_dropout": 0.0, "sampled_softmax": 0, "clip": 0.0, "schedule": "constant", "warmup_steps": 0},
        **{"patience": 0, "evaluate_every": 1, "seed": 1, "threads": 1, "device": "auto", "out": None},
        **{"prompt": "The", "tensorboard": False},
    }
    progress = {
        **{"epoch": 1, "step": 3, "loss_sum": 2.5, "norm_max": 1.5, "seconds": 9.0, "evaluation_seconds": 2.0},
        **{"rate_scale": 0.5, "best_epoch": 1, "best_loss": 2.25, "stale": 0, "history": []},
    }
    data = fingerprint(one.corpus, one.trainer.embeddings)
    metadata = {"config": config, "data": data, "backend": backend, "processes": 1, "progress": progress}
    rng = np.random.default_rng(3)
    shapes = {"c": [(4 * 5 + 5 * 5 + 5 + 5 * 11 + 11,)], "torch": [(5, 4), (5, 5), (5,), (11, 5), (11,)]}[backend]
    names = {"c": ["params", "m", "v"], "torch": ["parameter", "exp_avg", "exp_avg_sq"]}[backend]
    arrays = {
        f"{name}.{index}" if backend == "torch" else name: rng.random(shape, dtype=np.float32)
        for index, shape in enumerate(shapes)
        for name in names
    }
    if backend == "c":
        arrays["updates"] = np.array([10])
    else:
        arrays |= {f"step.{index}": np.array(10, dtype=np.float32) for index in range(5)}
    arrays["hidden"] = rng.random((2, 5), dtype=np.float32)
    state_file.save(one.files.resume, arrays | {"best": one.trainer.weights().flat_parameters()}, metadata)
    assert one.resume() and dataclasses.asdict(one.progress) == progress | {"loss_tokens": 48}
    state = one.trainer.state()
    assert state.keys() == arrays.keys()
    assert all(np.array_equal(state[name], array) for name, array in arrays.items())
    del config["dropout"]  # an option that a release lacks has its default
    state_file.save(one.files.resume, arrays, metadata)
    assert one.resume()
    loop.train(one)
    assert (one.progress.epoch, one.progress.step) == (3, 0)


def test_a_damaged_state_falls_back_to_the_one_before(text: Path, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    assert train("c", *options(text, whole, epochs=6)).returncode == 0
    assert train("c", *options(text, damaged, epochs=4)).returncode == 0
    last, before = damaged.with_suffix(".resume"), damaged.with_suffix(".resume.1")
    good = last.read_bytes()
    for bad in (b"damaged", good[:-100], good[:-100] + bytes(100), None):
        last.write_bytes(bad) if bad is not None else last.unlink()
        result = train("c", *options(text, damaged, epochs=6), "--resume")
        assert result.returncode == 0, result.stderr
        assert bad is None or ("damaged.resume: " in result.stderr and "saved before it" in result.stderr)
        assert "epoch 3/" not in result.stderr and "epoch 6/" in result.stderr
        assert same_weights(whole, damaged)
    last.write_bytes(b"damaged")
    before.write_bytes(b"damaged too")
    refused(train("c", *options(text, damaged, epochs=6), "--resume"), 2, "damaged.resume")


def test_a_state_of_another_version_is_refused(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, epochs=1)).returncode == 0
    file = out.with_suffix(".resume")
    file.write_bytes(file.read_bytes().replace(b'"version":"3"', b'"version":"1"', 1))
    refused(train("c", *options(text, out), "--resume"), 2, "model.resume", "version is '1'", "--resume")
    arrays, metadata = state_file.load(out.with_suffix(".resume.1"))
    del metadata["progress"]["epoch"], arrays["hidden"]
    state_file.save(file, arrays, metadata)
    refused(train("c", *options(text, out), "--resume"), 2, "model.resume", "hidden")
