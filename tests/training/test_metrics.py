"""The metrics file, its step lines, the sampled loss, the test split."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from running import BACKENDS, metrics, options, refused, train
from trainers import CTrainer, small_run

import torch_rnn
from rnnlm import checkpoint, files, progress
from rnnlm.training import curve, loop
from rnnlm.training.metrics import Metrics, read
from rnnlm.training.reporting import Report

SPLITS = {"max_tokens": 450}  # 7 steps an epoch


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the runs of this process stop after `step` steps, as by Ctrl-C."""
    original = Report.step

    def stop(self: Report, *arguments: float) -> None:
        original(self, *arguments)
        if self._run.step == step - 1:  # the request is seen at the end of the next step
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Report, "step", stop)


def test_the_metrics_begin_with_the_configuration(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, learning_rate=0.0125)).returncode == 0
    first = lines(out)[0]
    assert first["event"] == "config" and first["backend"] == "c" and first["processes"] == 1
    assert first["config"]["learning_rate"] == 0.0125 and first["config"]["corpus"] == str(text)
    assert first["config"].items() <= checkpoint.load(out).config.items()
    assert [line["event"] for line in lines(out)[1:]] == ["evaluation"] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_every(backend: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    chosen = options(text, out, epochs=3, log_every=2, warmup_steps=30, **SPLITS)
    assert train(backend, *chosen).returncode == 0
    steps = metrics(out, "step")
    assert [row["step"] for row in steps] == list(range(2, 22, 2))
    for row in steps:
        assert 0 < row["train_loss"] < 10 and row["gradient_norm"] > 0 and row["train_loss_sampled"] is False
        assert row["learning_rate"] == pytest.approx(0.003 * row["step"] / 30) and row["tokens_per_second"] > 0
        assert row["epoch"] == pytest.approx(row["step"] / 7)
    order = [row["step"] for row in lines(out)[1:]]
    assert order == sorted(order) and [row["step"] for row in metrics(out)] == [0, 7, 14, 21]


def test_the_step_lines_of_a_resumed_run_are_those_of_one_that_was_not_stopped(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    chosen = {"epochs": 2, "log_every": 1, "evaluate_every": 0.5, **SPLITS}
    assert train("c", *options(text, whole, **chosen)).returncode == 0
    with monkeypatch.context() as patch:
        stop_before(5, patch)
        refused(train("c", *options(text, stopped, **chosen)), 130, "after 5 of 7 steps in epoch 1")
    # As after a kill: later steps were logged, the last line is cut.
    with stopped.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps({"event": "step", "step": 6, "train_loss": -1.0}) + '\n{"event": "st')
    assert train("c", *options(text, stopped, **chosen), "--resume").returncode == 0
    assert metrics(whole, "step") and len(metrics(whole)) == 5
    for event in ("step", "evaluation"):
        ours, theirs = ([timeless(row) for row in metrics(out, event)] for out in (whole, stopped))
        assert ours == theirs
    assert len(metrics(stopped, "config")) == 1


def timeless(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")}


def test_a_new_run_forgets_the_lines_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "model.jsonl"
    first = Metrics(path)
    first.begin({"config": 1}, [], 0)
    first.add("step", {"step": 3})
    first.flush()
    assert [row["event"] for row in read(path)] == ["config", "step"]
    second = Metrics(path)
    second.begin({"config": 2}, [], 0)
    second.flush()
    assert read(path) == [{"event": "config", "config": 2}]


def test_metrics_of_a_full_disk_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Metrics(tmp_path / "model.jsonl")
    one.begin({}, [], 0)
    one.flush()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        for step in (1, 2):
            one.add("step", {"step": step})
            with pytest.raises(files.SaveError, match=r"model\.jsonl cannot be saved \(No space left"):
                one.flush()
    with one.path.open("ab") as file:  # half of a line reached the disk
        file.write(b'{"event": "step", "st')
    one.add("step", {"step": 3})
    one.flush()
    assert [row.get("step") for row in read(one.path)] == [None, 1, 2, 3]
    one.path.unlink()
    one.add("step", {"step": 4})
    one.flush()
    assert [row["event"] for row in read(one.path)] == ["config", "step"]


def test_a_disk_that_is_full_at_the_start_gets_the_whole_file_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.jsonl"
    path.write_text("what another run left\n" * 100)
    one = Metrics(path)
    one.begin({"config": 1}, [], 0)
    with monkeypatch.context() as patch:
        patch.setattr("rnnlm.training.metrics.atomic_write", lambda *_: (_ for _ in ()).throw(files.SaveError("full")))
        with pytest.raises(files.SaveError):
            one.flush()
    assert path.read_text().startswith("what another")
    one.add("step", {"step": 1})
    one.flush()
    assert [row["event"] for row in read(path)] == ["config", "step"]


# ---- --evaluate-every


def test_evaluations_within_an_epoch(tmp_path: Path) -> None:
    """An evaluation's training loss is that of the steps since the one before, and its weights may be the best."""
    one = small_run(CTrainer, tmp_path, evaluate_every="3steps", epochs=2)  # 7 steps an epoch, the last one of 1 token
    loop.train(one)
    rows = one.progress.history
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12, 14]
    assert [row["epoch"] for row in rows] == pytest.approx([0, 3 / 7, 6 / 7, 9 / 7, 12 / 7, 2])
    assert [row["tokens"] for row in rows] == [0, 48, 96, 98 + 32, 98 + 80, 196]
    best = min(rows[1:], key=lambda row: row["validation_loss"])
    assert one.progress.best_epoch == best["epoch"]
    saved = checkpoint.load(one.files.weights)
    assert saved.history == rows[: rows.index(best) + 1]
    again = small_run(CTrainer, tmp_path, evaluate_every=1, epochs=2)
    again.trainer.load_weights(saved.weights)
    assert again.trainer.evaluate(again.validation) == pytest.approx(best["validation_loss"], abs=1e-6)


def test_the_training_loss_of_an_evaluation_is_that_of_the_steps_before_it(tmp_path: Path) -> None:
    one = small_run(CTrainer, tmp_path, evaluate_every="3steps", log_every=1, epochs=1)
    loop.train(one)
    rows = [json.loads(line) for line in one.files.metrics.path.read_text().splitlines()]
    losses = [row["train_loss"] for row in rows if row["event"] == "step"]
    evaluated = [row for row in rows if row["event"] == "evaluation"]
    assert [row["train_loss"] for row in evaluated] == [
        None,
        *(pytest.approx(np.mean(losses[start : start + 3])) for start in (0, 3)),
        pytest.approx(losses[6]),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stop_at", [4, 6, 7])
def test_a_run_stopped_around_an_evaluation_ends_as_if_never_stopped(
    backend: str, stop_at: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is between two evaluations, just before one, and at the end of an epoch."""
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    chosen = {"evaluate_every": 0.36, "epochs": 2, "learning_rate": 0.1, "schedule": "plateau", **SPLITS}
    assert train(backend, *options(text, whole, **chosen)).returncode == 0
    with monkeypatch.context() as patch:
        stop_before(stop_at, patch)
        refused(train(backend, *options(text, stopped, **chosen)), 130, f"after {stop_at} of 7 steps")
    assert train(backend, *options(text, stopped, **chosen), "--resume").returncode == 0
    ours, theirs = ([timeless(row) for row in metrics(out)] for out in (whole, stopped))
    assert ours == theirs and [row["step"] for row in ours] == [0, 3, 6, 8, 11, 13, 14]


def test_a_resumed_run_keeps_its_interval(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, evaluate_every="5steps")).returncode == 0
    refused(train("c", *options(text, out, evaluate_every=0.5), "--resume"), 2, "--evaluate-every 0.5 (it was 5steps)")
    refused(train("c", *options(text, out, evaluate_every="never")), 2, "--evaluate-every", "never", "500steps")


# ---- A sampled loss


def test_a_sampled_loss_is_labelled(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: (titles.append(k["label"]), plot(self, *a, **k))[1])
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for sampled, words in ((5, "(sampled)"), (0, None), (1500, None)):  # a sample of all words is the full softmax
        titles.clear()
        out = tmp_path / f"{sampled}.safetensors"
        result = train("c", *options(text, out, log_every=5, sampled_softmax=sampled))
        assert result.returncode == 0
        assert ("(sampled)" in result.stderr) == ("sampled loss" in result.stderr) == bool(words)
        assert {row["train_loss_sampled"] for row in metrics(out) + metrics(out, "step")} == {bool(words)}
        assert titles == [f"training{', over sampled words' if words else ''}", "validation"]


def test_the_curve_of_an_earlier_release_can_be_drawn() -> None:
    rows = [{"epoch": epoch, "train_loss": 2.0, "validation_loss": 3.0} for epoch in range(3)]
    assert curve.plot(rows, "old").startswith(b"\x89PNG")


# ---- The test split


@pytest.fixture
def splits(text: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "splits"
    folder.mkdir()
    sentences = text.read_text().splitlines()
    for name, part in (("train", sentences[:-40]), ("valid", sentences[-40:-20]), ("test", sentences[-20:])):
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n")
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_ends_with_the_test_perplexity_of_its_best_weights(backend: str, splits: Path, tmp_path: Path) -> None:
    """Here they are not the last weights. The figure is that of every token, after an <EOS>."""
    out = tmp_path / "model.safetensors"
    wild = {"epochs": 5, "patience": 0, "learning_rate": 0.5, "schedule": "constant", "average": 0.5}
    result = train(backend, *options(splits, out, **wild))
    assert result.returncode == 0, result.stderr
    saved = checkpoint.load(out)
    best = saved.history[-1]
    assert best["epoch"] < 5, "the last weights are the best: a poor test"
    [row] = metrics(out, "test")
    assert row["test_loss"] == best["test_loss"] and row["epoch"] == best["epoch"]
    model = torch_rnn.RNN.load(out)
    ids = [model.vocabulary.eos]
    for line in (splits / "test.txt").read_text().splitlines():
        ids += [span.id for span in model.vocabulary.encode(line)]
    loss = -model.log_probabilities(np.array(ids, dtype=np.int32)).mean()
    assert best["test_loss"] == pytest.approx(loss, abs=1e-5) and best["test_tokens"] == len(ids) - 1
    assert best["test_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.stdout.count("test perplexity") == 1
    assert f"test perplexity {best['test_perplexity']:.1f} ({loss:.4f} nats per token)" in result.stdout

    again = train(backend, *options(splits, out, **wild), "--resume")  # it had finished
    told = "the run is finished: there is nothing left to train after 5 epochs"
    assert told in again.stderr and "finished" not in result.stderr
    assert again.stdout.count("test perplexity") == 1 and metrics(out, "test") == [row]
    assert checkpoint.load(out).history == saved.history


def test_without_a_test_split_none_is_reported(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert "test" not in train("c", *options(text, out)).stdout.replace(str(tmp_path), "")
    assert not metrics(out, "test") and "test_loss" not in checkpoint.load(out).history[-1]


def test_a_stopped_run_has_not_seen_the_test_split(
    splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.safetensors"
    stop_before(3, monkeypatch)
    assert train("c", *options(splits, out)).returncode == 130
    assert not metrics(out, "test")
