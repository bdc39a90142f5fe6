"""--resume needs no memory: the options are in the state, and what may not change is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import BACKENDS, options, refused, same_weights, train

from rnnlm import checkpoint
from rnnlm.training import state_file
from rnnlm.training.beginning import Options, begin
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.resume_options import restored

UNUSUAL = {
    "learning_rate": 0.004,
    "dropout": 0.1,
    "schedule": "constant",
    "warmup_steps": 5,
    "seed": 3,
    "prompt": "king",
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_output_is_enough(backend: str, text: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert train(backend, *options(text, whole, epochs=3, **UNUSUAL)).returncode == 0
    assert train(backend, *options(text, parts, epochs=2, **UNUSUAL)).returncode == 0
    before = parts.read_bytes()
    again = train(backend, "--resume", "--out", str(parts))
    assert again.returncode == 0 and parts.read_bytes() == before, again.stderr
    assert "at epoch 2 of 2" in again.stdout and "sample: king" in again.stdout
    more = train(backend, "--resume", "--out", str(parts.with_suffix("")), "--epochs", "3", "--prompt", "the")
    assert more.returncode == 0 and "sample: the" in more.stdout, more.stderr
    assert same_weights(whole, parts)
    saved, fresh = checkpoint.load(parts).config, checkpoint.load(whole).config
    assert {name for name in saved if saved[name] != fresh[name]} <= {"out", "prompt"}


def test_what_may_not_change_is_listed_in_one_line(text: Path, tmp_path: Path) -> None:
    """Before the corpus is read: the one that is named does not exist."""
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out)).returncode == 0
    arguments = ["--resume", "--out", str(out), "--hidden-size", "9", "--corpus", str(tmp_path / "none"), "--lowercase"]
    arguments += ["--tokenizer", "plain", "--embedding-size", "7", "--batch-size", "3", "--epochs", "1", "--seed", "1"]
    result = train("torch", *arguments, "--precision", "bfloat16", "--threads", "1", "--no-tensorboard")
    refused(
        result,
        2,
        "torch_rnn.py (it was main.py)",
        "--hidden-size 9 (it was 10)",
        f"--corpus {tmp_path / 'none'} (it was {text})",
        "--lowercase (it was off)",
        "--tokenizer plain (it was unicode)",
        "--embedding-size 7 (it was 8)",
        "--batch-size 3 (it was 4)",
        "--epochs 1 (it has had 2)",
        "--precision bfloat16 (it was float32)",
        "another --out",
    )
    assert result.stderr.count("\n") <= 2 and "--seed" not in result.stderr and "--threads" not in result.stderr


def test_a_preset_stands_for_its_options(text: Path, tmp_path: Path) -> None:
    """Those that the command line overrides do not count, nor does what the preset does not name."""
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, dropout=0.1)).returncode == 0
    assert train("c", *options(text, out, hidden_size=None), "--resume").returncode == 0
    bare = train("c", "--preset", "demo", "--resume", "--out", str(out))
    refused(bare, 2, "--corpus demo", "--vocab-size 4000 (it was 14)", "--bptt 32 (it was 16)")
    assert "--hidden-size" not in bare.stderr and "--dropout" not in bare.stderr
    other = train("c", "--preset", "best", "--resume", "--out", str(out), "--bptt", "9")
    refused(other, 2, "--preset best (it was demo)", "--bptt 9 (it was 16)")
    assert "--hidden-size" not in other.stderr


def test_nothing_to_resume(tmp_path: Path) -> None:
    """A misspelt name does not begin the run of the default preset."""
    refused(train("c", "--resume", "--out", str(tmp_path / "typo"), "--epochs", "3"), 2, "typo.resume does not exist")
    assert not list(tmp_path.iterdir())


def saved(**changed: object) -> dict[str, object]:
    config = TrainConfig(batch_size=4, optimizer="adamw", weight_decay=0.1).as_dict()
    progress = {"epoch": 1, "step": 2}
    return {
        "config": config,
        "processes": 2,
        "backend": "c",
        "tokenizer": "plain+lowercase",
        "progress": progress,
    } | changed


@pytest.mark.parametrize("processes,given,rows", [(1, {}, 8), (2, {}, 4), (4, {}, 2), (8, {"batch_size": 1}, 1)])
def test_the_batch_rows_are_shared_among_the_processes(
    processes: int, given: dict[str, int], rows: int, tmp_path: Path
) -> None:
    found = restored(tmp_path / "m.resume", saved(), given, {}, "c", processes)
    assert found["batch_size"] == rows
    with pytest.raises(ConfigError, match=r"3 processes \(it had 8 batch rows in all"):
        restored(tmp_path / "m.resume", saved(), {}, {}, "c", 3)
    with pytest.raises(ConfigError, match=r"--batch-size 5 \(it was 8 over all processes"):
        restored(tmp_path / "m.resume", saved(), {"batch_size": 5}, {}, "c", processes)


def test_fewer_epochs_than_were_begun_are_refused(tmp_path: Path) -> None:
    """There would be nothing to train, and perhaps nothing evaluated: the summary would be of another model."""
    path, within, between = tmp_path / "m.resume", {"epoch": 5, "step": 3}, {"epoch": 5, "step": 0}
    with pytest.raises(ConfigError, match=r"m\.resume with --epochs 5 \(it is in epoch 6\)"):
        restored(path, saved(progress=within), {"epochs": 5}, {}, "c", 2)
    assert restored(path, saved(progress=within), {"epochs": 6}, {}, "c", 2)["epochs"] == 6
    assert restored(path, saved(progress=between), {"epochs": 5}, {}, "c", 2)["epochs"] == 5
    with pytest.raises(ConfigError, match=r"m\.resume with --epochs 4 \(it has had 5\)"):
        restored(path, saved(progress=between), {"epochs": 4}, {}, "c", 2)


def test_a_preset_does_not_shorten_a_run(text: Path, tmp_path: Path) -> None:
    """`make train` gives one; the run that it finds may have been given more epochs, and be finished or not."""
    out = tmp_path / "model.safetensors"
    preset = [*options(text, out, epochs=None), "--resume"]
    assert train("c", *options(text, out, epochs=13, patience=0)).returncode == 0
    before = out.read_bytes()
    again = train("c", *preset)
    assert again.returncode == 0 and "of 13" in again.stdout and out.read_bytes() == before, again.stderr
    assert again.stderr.count("the run is finished: there is nothing left to train after 13 epochs\n") == 1
    refused(train("c", *preset, "--epochs", "12"), 2, "--epochs 12 (it has had 13)")

    path, demo = tmp_path / "m.resume", {"epochs": 12}
    for given, progress in ((3, 2), (12, 12), (20, 5), (20, 13)):
        config = TrainConfig(epochs=given).as_dict()
        state = saved(config=config, progress={"epoch": progress, "step": 3 if progress < 12 else 0}, processes=1)
        assert restored(path, state, {}, demo, "c", 1)["epochs"] == max(given, 12)


@pytest.mark.parametrize(
    "given",
    [{"weight_decay": 0.1}, {"tokenizer": "plain"}, {"lowercase": True}, {"optimizer": "adamw"}, {"test": "new"}],
)
def test_options_that_repeat_the_state_are_accepted(given: dict[str, object], tmp_path: Path) -> None:
    """Also those that would not fit the default of another."""
    assert restored(tmp_path / "m.resume", saved(), given, {}, "c", 2).items() >= given.items()


def test_a_state_of_before_leaves_the_text_to_be_compared(tmp_path: Path) -> None:
    """It does not say how its text was read."""
    old = saved()
    del old["tokenizer"]
    found = restored(tmp_path / "m.resume", old, {"tokenizer": "plain", "lowercase": True}, {}, "c", 2)
    assert found["tokenizer"] == "plain" and found["lowercase"] is True


@pytest.mark.parametrize(
    "forged",
    [
        {"config": {"hidden_size": "many"}},
        {"config": {"run_this": "code"}},
        {"config": {"epochs": 0}},
        {"config": []},
        {"processes": None},
        {"progress": None},
    ],
)
def test_a_state_without_usable_options(forged: dict[str, object], text: Path, tmp_path: Path) -> None:
    assert train("c", *options(text, tmp_path / "m", epochs=1)).returncode == 0
    path = tmp_path / "m.resume"
    arrays, metadata = state_file.load(path)
    state_file.save(path, arrays, metadata | forged)
    refused(train("c", "--resume", "--out", str(tmp_path / "m")), 2, "m.resume: it does not hold the options of a run")


def test_a_damaged_state_gives_way_to_the_one_before(text: Path, tmp_path: Path) -> None:
    assert train("c", *options(text, tmp_path / "m")).returncode == 0
    (tmp_path / "m.resume").write_bytes(b"damaged")
    assert begin(Options("c", {"out": str(tmp_path / "m")}, resume=True))["hidden_size"] == 10
    result = train("c", "--resume", "--out", str(tmp_path / "m"))
    assert result.returncode == 0 and result.stderr.count("saved before it") == 1, result.stderr
