"""Training runs that are killed, stopped, or started twice for one --out.

Each fault strikes at a few random moments in `make test-slow`, and at 50 in `make faults`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, write_text
from running import command, options, train
from serving import needs_library, until

from rnnlm import checkpoint
from rnnlm.training import state_file

pytestmark = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(os.name != "posix", reason="needs signals"),
]

ENDLESS = 10**6  # epochs
AGAIN = "--resume", "--out"  # with the path: all that it takes to go on
SAVING = ".saving-*"


@pytest.fixture(autouse=True)
def hears_of_its_terminal() -> Iterator[None]:
    """The runs inherit SIGHUP as it is here, and under nohup they would not end with it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "grammar.txt", sentences=200)


def training(text: Path, out: Path, *more: str, **changed: object) -> list[str]:
    return command("c", *options(text, out, patience=0, schedule="constant", **changed), *more)


def finish(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def numbers(out: Path) -> str:
    """Return the digest of the parameters only, because the history has times in it."""
    weights = checkpoint.load(out).weights
    return hashlib.sha256(b"".join(array.tobytes() for array in weights.parameters().values())).hexdigest()


def left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def forget_saves(folder: Path) -> None:
    """Make what interrupted saves left look as if long ago: the next save removes it."""
    for path in folder.glob(SAVING):
        os.utime(path, (1, 1))


# ---- Again and again ------------------------------------------------------------------------------------------------


def stop_after_first_epoch(command: list[str], number: signal.Signals, seconds: float) -> tuple[int, str]:
    """Return the exit status, and what the run printed after its first epoch."""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        seen, rest = [], []
        for line in process.stderr:
            seen.append(line)
            if "epoch " in line:
                break
        else:
            raise AssertionError("".join(seen))
        drain = threading.Thread(target=lambda: rest.append(process.stderr.read()))
        drain.start()
        time.sleep(seconds)
        process.send_signal(number)
        drain.join()
    return process.returncode, "".join(rest)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("begun", ["with all options", "with --out only", "from other weights"])
def test_a_run_stopped_again_and_again_ends_as_if_never_stopped(
    begun: str, number: signal.Signals, text: Path, tmp_path: Path, moments: int
) -> None:
    """SIGHUP, a closed terminal, saves first, as Ctrl-C does."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    changed: dict[str, object] = {"epochs": 60 * moments}
    if begun == "from other weights":
        base = tmp_path / "base.safetensors"
        finish(training(text, base, epochs=1))
        changed |= {"init_from": base, "vocab_size": None, "embedding_size": None, "hidden_size": None}
        changed |= {"sampled_softmax": 5, "precision": "bfloat16", "average": 0.99, "dropout": 0.2}

    def going_on(out: Path) -> list[str]:
        if not out.with_suffix(".resume").exists():
            return training(text, out, **changed)
        return training(text, out, "--resume", **changed) if "all" in begun else command("c", *AGAIN, str(out))

    generator = random.Random(0)
    survived = []
    for _ in range(moments):
        code, said = stop_after_first_epoch(going_on(parts), number, generator.uniform(0, 0.3))
        if number == signal.SIGHUP:
            assert code == 130 and f"--resume --out {parts}" in said.splitlines()[-1], said
        state = state_file.load(parts.with_suffix(".resume"))[1]  # whole, whatever was interrupted
        survived.append(len(state["progress"]["history"]))
        if parts.exists():  # of the best epoch so far, so it may be the same file
            checkpoint.check_finite(checkpoint.load(parts).weights)
    assert survived == sorted(survived) and len(set(survived)) > 1, survived  # it went on each time
    forget_saves(tmp_path)
    finish(training(text, whole, **changed))
    finish(going_on(parts))
    assert numbers(whole) == numbers(parts), "the weights differ"
    assert not left_behind(tmp_path)


# ---- At any moment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_after_a_run_that_ends_at_any_moment_the_next_one_starts(
    number: signal.Signals, text: Path, tmp_path: Path, moments: int
) -> None:
    """With --resume if there is a state, and otherwise afresh, without being asked to remove or replace anything."""
    generator = random.Random(3)
    for moment in range(moments):
        out = tmp_path / str(moment) / "model.safetensors"
        lock = out.with_name(".model.safetensors.lock")
        process = subprocess.Popen(training(text, out, epochs=ENDLESS), cwd=ROOT, stderr=subprocess.DEVNULL)
        until(lock.exists)
        time.sleep(generator.uniform(0, 0.6))
        process.send_signal(number)
        process.wait()
        assert lock.exists() or process.returncode == 130  # which removes it
        state = out.with_suffix(".resume")
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:  # it saves, unless it was still reading the text
            assert process.returncode == 130 if state.exists() else process.returncode in (130, -number)
        epochs = state_file.load(state)[1]["progress"]["epoch"] + 2 if state.exists() else 2
        forget_saves(out.parent)
        finish(training(text, out, *(("--resume",) if state.exists() else ()), epochs=epochs))
        assert not left_behind(out.parent)


def test_a_second_run_is_refused_at_any_moment_and_harms_nothing(text: Path, tmp_path: Path, moments: int) -> None:
    out, whole, generator = tmp_path / "model.safetensors", tmp_path / "whole.safetensors", random.Random(4)
    arguments = training(text, out, epochs=ENDLESS)
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until(out.with_name(".model.safetensors.lock").exists)
        for _ in range(moments):
            for more in ([], ["--overwrite"], ["--resume"], ["--preset", "best", "--resume"]):
                done = train("c", *options(text, out, preset=None), *more)
                assert done.returncode == 2 and "another run is writing there" in done.stderr, done.stderr
            time.sleep(generator.uniform(0, 0.05))
        until(out.exists)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 130
    epochs = state_file.load(out.with_suffix(".resume"))[1]["progress"]["epoch"] + 1
    finish(training(text, out, "--resume", epochs=epochs))
    finish(training(text, whole, epochs=epochs))
    assert numbers(out) == numbers(whole) and not left_behind(tmp_path)


def test_of_two_runs_that_start_together_one_is_refused(text: Path, tmp_path: Path, moments: int) -> None:
    """Or the second finds the first one's files, and replaces them."""
    whole, generator = tmp_path / "whole.safetensors", random.Random(5)
    finish(training(text, whole))
    refused = 0
    for moment in range(moments):
        out = tmp_path / str(moment) / "model.safetensors"
        both = []
        for _ in range(2):
            arguments = training(text, out, "--overwrite")
            both.append(subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True))
            time.sleep(generator.uniform(0, 0.02))
        said = {process.communicate()[1].splitlines()[-1]: process.returncode for process in both}
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 0], [0, 2]), said
        refused += codes == [0, 2]
        assert all("another run is writing there" in line for line, code in said.items() if code == 2), said
        assert numbers(out) == numbers(whole) and not left_behind(out.parent)
    assert refused, "they never met"
