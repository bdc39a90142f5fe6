"""No run destroys another's files: a fresh one refuses to replace them, and two do not write them at once."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from running import BACKENDS, command, options, refused, train

from rnnlm import checkpoint
from rnnlm.training import distributed, lock, loop, state_file
from rnnlm.training.config import ConfigError

WAYS = ("--resume", "--overwrite", "another --out")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- Files that are there


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fresh_run_replaces_nothing(backend: str, text: Path, tmp_path: Path) -> None:
    """Refused before the corpus is read: this one does not exist."""
    out = tmp_path / "model.safetensors"
    assert train(backend, *options(text, out)).returncode == 0
    before = contents(tmp_path)
    assert set(before) == {"model" + suffix for suffix in (".safetensors", ".resume", ".resume.1", ".jsonl", ".png")}
    refused(train(backend, *options(tmp_path / "none", out)), 2, "model.safetensors exists", *WAYS)
    refused(train(backend, *options(tmp_path / "none", out.with_suffix(""))), 2, "model.safetensors exists", *WAYS)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("ending", [".safetensors", ".resume", ".resume.1", ".jsonl", ".png"])
def test_one_file_of_a_run_is_enough(ending: str, text: Path, tmp_path: Path) -> None:
    (tmp_path / f"model{ending}").symlink_to(tmp_path / "gone")
    refused(train("c", *options(text, tmp_path / "model")), 2, f"model{ending} exists", *WAYS)


def test_overwrite_begins_afresh(text: Path, tmp_path: Path) -> None:
    """With nothing of the run before: its state is not kept as the one to fall back on."""
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, epochs=3)).returncode == 0
    done = train("c", *options(text, out, epochs=1, hidden_size=7), "--overwrite")
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(out).weights.hidden_size == 7
    for name in (".resume", ".resume.1"):
        assert state_file.load(out.with_suffix(name))[1]["config"]["hidden_size"] == 7


def test_an_overwrite_that_fails_leaves_what_was_there(text: Path, tmp_path: Path) -> None:
    assert train("c", *options(text, tmp_path / "model")).returncode == 0
    before = contents(tmp_path)
    refused(train("c", *options(tmp_path / "none", tmp_path / "model"), "--overwrite"), 2, "none")
    assert contents(tmp_path) == before


def test_a_restart_goes_on_with_its_own_run_only(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts a failed run again with the same options: what it was to replace, or not to touch, is not its."""
    out, state = tmp_path / "model.safetensors", tmp_path / "model.resume"
    monkeypatch.setattr(distributed, "restarted", lambda: True)
    assert train("c", *options(text, out, epochs=1)).returncode == 0  # it had died before it saved anything
    for more in ([], ["--overwrite"], ["--resume"]):
        again = train("c", *options(text, out, epochs=1), *more)
        assert again.returncode == 0 and "the run is finished" in again.stderr, again.stderr
    arrays, metadata = state_file.load(state)
    assert tuple(metadata["launch"]) == distributed.launch()
    for launch in (None, [distributed.launch()[0], "1 2"]):  # an earlier release's, and another torchrun's
        state_file.save(state, arrays, metadata | {"launch": launch})
        refused(train("c", *options(text, out)), 2, "model.safetensors exists", *WAYS)
        done = train("c", *options(text, out, epochs=1, hidden_size=7), "--overwrite")
        assert done.returncode == 0 and "epoch 1/1" in done.stderr, done.stderr
    state.write_bytes(b"damaged")
    state.with_suffix(".resume.1").unlink()
    assert "epoch 1/1" in train("c", *options(text, out, epochs=1), "--overwrite").stderr
    state_file.save(state, arrays, metadata | {"launch": ["another machine", "1 2"]})
    assert "the run is finished" in train("c", *options(text, out, epochs=1), "--overwrite").stderr
    os.utime(state, (time.time() - distributed.launched_ago() - 60,) * 2)  # it was there before this torchrun
    refused(train("c", *options(text, out)), 2, "model.safetensors exists", *WAYS)
    assert "epoch 1/1" in train("c", *options(text, out, epochs=1), "--overwrite").stderr


def test_a_script_between_torchrun_and_the_program_does_not_hide_it() -> None:
    code = "from rnnlm.training import distributed; print(distributed.launch()[1], distributed.launched_ago())"
    program, inside = [sys.executable, "-c", code], os.environ | {"TORCHELASTIC_RUN_ID": "1"}
    through = ["bash", "-c", shlex.join(program) + "; true"]  # bash stays between them
    said = [
        subprocess.run(each, cwd=ROOT, env=inside, capture_output=True, text=True, check=True).stdout.split()
        for each in (program, through)
    ]
    assert said[0][:2] == said[1][:2] and int(said[0][0]) == os.getpid()
    assert all(0 < float(each[2]) < 24 * 3600 for each in said)


def test_resume_replaces_no_weights_of_another_origin(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"precious")
    refused(train("c", *options(text, out), "--resume"), 2, "exists, but not model.resume", *WAYS[1:])
    assert out.read_bytes() == b"precious"
    refused(
        train("c", *options(text, out), "--resume", "--overwrite"), 2, "--overwrite", "not allowed with", "--resume"
    )


def test_make_train_and_make_serve_can_be_run_again() -> None:
    done = subprocess.run(["make", "-n", "train"], cwd=ROOT, capture_output=True, text=True)
    trained = [line for line in done.stdout.splitlines() if "--preset demo" in line]
    assert len(trained) == 2 and all(line.endswith("--preset demo --resume") for line in trained), done.stdout
    done = subprocess.run(["make", "-n", "serve"], cwd=ROOT, capture_output=True, text=True)
    assert "main.py --preset demo --resume" in done.stdout


# ---- Two runs at once


@pytest.fixture
def busy(text: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has begun to save, and would take hours."""
    arguments = command("c", *options(text, tmp_path / "model", epochs=10**6, patience=0))
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr and any("epoch 1/" in line for line in process.stderr)
        process.stderr.close()  # which it outlives
        yield process
        process.kill()


def test_two_runs_at_once(busy: subprocess.Popen[str], text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    for more in ([], ["--overwrite"], ["--resume"]):
        refused(train("c", *options(tmp_path / "none", out), *more), 2, "another run", "another --out")
    assert train("c", *options(text, tmp_path / "other", epochs=1)).returncode == 0
    assert busy.poll() is None
    busy.send_signal(signal.SIGTERM)
    assert busy.wait() == 130 and not list(tmp_path.glob(".*")), "a run that ends removes its lock"


def test_a_killed_run_leaves_no_lock(busy: subprocess.Popen[str], text: Path, tmp_path: Path) -> None:
    busy.kill()
    busy.wait()
    for path in tmp_path.glob(".saving-*"):  # of a save that the kill interrupted
        os.utime(path, (1, 1))  # as if long ago: the next save removes it
    config = {"epochs": state_file.load(tmp_path / "model.resume")[1]["progress"]["epoch"] + 2, "patience": 0}
    done = train("c", *options(text, tmp_path / "model", **config), "--resume")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_ends_in_its_first_evaluation_leaves_nothing_to_ask_about(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes minutes if the vocabulary is large, and there is no state yet."""

    def stopped(*_: object) -> None:
        assert not contents(tmp_path).keys() - {".model.safetensors.lock"}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure", stopped)
        assert train("c", *options(text, tmp_path / "model")).returncode == 130
    assert not contents(tmp_path)
    done = train("c", *options(text, tmp_path / "model"))
    assert done.returncode == 0, done.stderr


# ---- The lock


def test_the_lock_follows_no_link_and_writes_nothing(text: Path, tmp_path: Path) -> None:
    victim, name = tmp_path / "victim", tmp_path / ".model.safetensors.lock"
    victim.write_text("precious")
    name.symlink_to(victim)
    refused(train("c", *options(text, tmp_path / "model")), 2, ".model.safetensors.lock: cannot be locked", "remove it")
    name.unlink()
    name.symlink_to(tmp_path / "new")
    refused(train("c", *options(text, tmp_path / "model")), 2, ".model.safetensors.lock: cannot be locked")
    assert not (tmp_path / "new").exists()
    name.unlink()
    os.mkfifo(name)
    refused(train("c", *options(text, tmp_path / "model")), 2, "not a regular file")
    name.unlink()
    os.link(victim, name)  # another name of the same file
    assert train("c", *options(text, tmp_path / "model")).returncode == 0
    assert victim.read_text() == name.read_text() == "precious"


def test_a_lock_whose_file_was_just_removed_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before removes the file between the opening and the locking of this one."""
    really, calls = lock._lock, []

    def after_a_removal(handle: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / ".model.lock").unlink()
        return really(handle)

    monkeypatch.setattr(lock, "_lock", after_a_removal)
    with lock.held(tmp_path / "model"):
        assert len(calls) == 2 and (tmp_path / ".model.lock").exists()
        with pytest.raises(ConfigError, match="another run"), lock.held(tmp_path / "model"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_always_replaced_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_is_at", lambda *_: False)
    with pytest.raises(ConfigError, match="replaced again and again"), lock.held(tmp_path / "model"):
        pass


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", missing)
    with lock.held(tmp_path / "model"):
        assert "no locks (No locks available)" in caplog.text


def test_the_lock_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library, imitated: a lock of one byte, refused with EACCES, on a file that is closed before it is removed."""
    locked: set[int] = set()

    def locking(handle: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        inode = os.fstat(handle).st_ino
        if inode in locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        locked.add(inode)

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(lock, "sys", SimpleNamespace(platform="win32"))
    with lock.held(tmp_path / "model"):
        with pytest.raises(ConfigError, match="another run"), lock.held(tmp_path / "model"):
            pass
        assert (tmp_path / ".model.lock").exists()
    assert not list(tmp_path.iterdir())
