"""What a run reports: the summary, the time that is left, TensorBoard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from running import metrics, options, refused, run, train
from trainers import CTrainer, small_run

from rnnlm import checkpoint
from rnnlm.progress import duration
from rnnlm.training import reporting, state_file
from rnnlm.training.runfiles import RunFiles


def test_the_summary_says_what_was_reached_and_where_it_lies(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    wild = {"epochs": 50, "patience": 1, "learning_rate": 0.2, "schedule": "constant", "prompt": "king"}
    result = train("c", *options(text, out, **wild), "--tensorboard")
    assert result.returncode == 0, result.stderr
    rows = checkpoint.load(out).history
    assert f"at epoch {rows[-1]['epoch']} of" in result.stdout and "of training" in result.stdout
    assert "epochs early (--patience 1)" in result.stdout and "sample: king " in result.stdout
    for ending in (".safetensors", ".jsonl", ".png", ".resume", ".tensorboard"):
        path = out.with_suffix(ending)
        assert path.exists() and f"{path}  " in result.stdout


# ---- The time that is left


def test_the_time_left_is_reported_once_from_the_first_steps(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps take longer than no time at all; the first one is not timed."""
    monkeypatch.setattr(reporting, "ESTIMATE_SECONDS", 0.0)
    chosen = options(text, tmp_path / "model", epochs=7, patience=0, max_tokens=1281)  # 20 steps of 64 tokens an epoch
    result = train("c", *chosen)
    [line] = re.findall(r"(?:about|at most) .* left: .*", result.stderr)
    assert re.fullmatch(r"about \d+\.\d s left: 8,832 tokens at [\d,]+/s, 7 evaluations of \d+\.\d s", line), line
    again = train("c", *options(text, tmp_path / "model", epochs=8, patience=3, max_tokens=1281), "--resume")
    assert re.search(r"at most \d+\.\d s left: 1,152 tokens at [\d,]+/s, 1 evaluation of ", again.stderr)


def test_a_short_run_is_not_estimated(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "ESTIMATE_SECONDS", 1e9)
    assert " left: " not in train("c", *options(text, tmp_path / "model")).stderr


def test_the_time_left_counts_steps_and_evaluations(tmp_path: Path) -> None:
    one = small_run(CTrainer, tmp_path, epochs=10, evaluate_every=5)  # 98 tokens an epoch
    one.progress.epoch, one.progress.step = 4, 3
    one.progress.history, one.progress.evaluation_seconds = [{}, {}], 14.0
    assert reporting.time_left(one, 5.0) == "about 2 min left: 540 tokens at 5/s, 2 evaluations of 7.0 s"
    one.progress.epoch = 9
    assert reporting.time_left(one, 5.0) == "about 17 s left: 50 tokens at 5/s, 1 evaluation of 7.0 s"


def test_the_pace_is_that_of_the_steps_after_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first step takes a minute, the others a second each."""
    caplog.set_level("INFO")
    one = small_run(CTrainer, tmp_path, epochs=10)  # 98 tokens an epoch, 16 a step
    with reporting.report(one) as report:
        for step, seconds in enumerate((60.0, 61.0, 62.0, 63.0), start=1):
            one.progress.step, one.progress.seconds = step, seconds
            report.step(16, 2.0, 1.0, 0.1)
    assert caplog.messages == ["about 58 s left: 932 tokens at 16/s, 10 evaluations of 0.0 s"]


@pytest.mark.parametrize(
    "seconds,words", [(0.42, "0.4 s"), (35, "35 s"), (119, "2 min"), (2 * 3600, "2.0 h"), (3e5, "3.5 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ---- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hyperparameters(folder: Path) -> dict[str, object]:
    """What TensorBoard's hparams plugin reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_tensorboard_gets_the_hyperparameters_and_each_logged_step(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    chosen = options(text, out, log_every=7, learning_rate=0.0125, sampled_softmax=5, evaluate_every="10steps")
    assert train("c", *chosen, "--tensorboard").returncode == 0
    found = hyperparameters(out.with_suffix(".tensorboard"))
    assert found["learning_rate"] == 0.0125 and found["optimizer"] == "adamw" and found["tensorboard"] is True
    assert found["evaluate_every"] == "10steps" and "max_tokens" not in found  # not given: there is no number
    seen, rows = scalars(out.with_suffix(".tensorboard")), metrics(out, "step")
    assert (
        [step for step, _ in seen["train/sampled_loss"]]
        == [row["step"] for row in rows]
        == [*range(7, 7 * len(rows) + 1, 7)]
    )
    for tag, name in (("train/sampled_loss", "train_loss"), ("train/gradient_norm", "gradient_norm")):
        assert [value for _, value in seen[tag]] == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert "train/loss" not in seen and seen["train/tokens_per_second"]


def test_tensorboard_reads_the_events_even_of_a_resumed_run(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, epochs=2, patience=0), "--tensorboard").returncode == 0
    assert train("c", *options(text, out, epochs=3, patience=0), "--tensorboard", "--resume").returncode == 0
    seen, rows = scalars(out.with_suffix(".tensorboard")), state_file.load(out.with_suffix(".resume"))[1]
    rows = rows["progress"]["history"]
    assert [step for step, _ in seen["train/loss"]] == list(range(1, rows[-1]["step"] + 1))
    for tag, name in (("validation/loss", "validation_loss"), ("validation/perplexity", "validation_perplexity")):
        assert [step for step, _ in seen[tag]] == [row["step"] for row in rows]
        assert [value for _, value in seen[tag]] == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_a_missing_tensorboard_is_reported_before_the_corpus_is_read(tmp_path: Path) -> None:
    (tmp_path / "tensorboard.py").write_text("raise ImportError('not here')")
    missing = options(tmp_path / "no-such-corpus", tmp_path / "m")
    refused(run("c", *missing, "--tensorboard", PYTHONPATH=str(tmp_path)), 2, "pip install")


def test_events_that_cannot_be_written_are_tried_again_at_the_next_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    files = RunFiles(tmp_path / "model.safetensors", tensorboard=True)
    (tmp_path / "model.tensorboard").write_text("in the way")
    step = {"train_loss": 1.5, "train_loss_sampled": False, "gradient_norm": 1.0, "learning_rate": 1.0}
    files.step(step | {"step": 1, "tokens_per_second": None}, in_metrics=False)
    files.step(step | {"step": 2, "tokens_per_second": 9}, in_metrics=False)
    assert caplog.text.count("cannot be saved") == 1 and "events" in files.unsaved
    (tmp_path / "model.tensorboard").unlink()
    row = {"step": 2, "validation_loss": 2.0, "validation_perplexity": 7.4, "tokens_per_second": None}
    files.evaluation(row)
    files.step(step | {"step": 3, "tokens_per_second": 9}, in_metrics=False)
    files.close()
    assert not files.unsaved and scalars(tmp_path / "model.tensorboard")["train/loss"] == [(3, 1.5)]
