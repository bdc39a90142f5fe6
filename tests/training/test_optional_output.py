"""What no run depends on: the curve, TensorBoard, the sample, and the terminal itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from running import command, options, run, train

from rnnlm import checkpoint
from rnnlm.training import state_file

SENTENCES = "Der König saß im Schloß. Ὁ βασιλεὺς ἐκάθητο. Король сидел. 王様は座った。\n" * 60


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text whose words no encoding of eight bits has."""
    path = tmp_path_factory.mktemp("foreign") / "foreign.txt"
    path.write_text(SENTENCES, encoding="utf-8")
    return path


def epochs_done(out: Path) -> int:
    return state_file.load(out.with_suffix(".resume"))[1]["progress"]["epoch"]


# ---- The curve and TensorBoard


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_the_curve_is_drawn_whatever_the_environment_says(backend: str, text: Path, tmp_path: Path) -> None:
    """A notebook exports MPLBACKEND, and matplotlib refuses to be imported if it cannot load that."""
    out = tmp_path / "model.safetensors"
    done = run("c", *options(text, out, epochs=1), MPLBACKEND=backend)
    assert done.returncode == 0 and "no curve" not in done.stderr, done.stderr
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG") and "the loss curve" in done.stdout


@pytest.mark.parametrize("error", ["ImportError('none here')", "RuntimeError('broken')"])
def test_a_run_without_matplotlib(error: str, text: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(f"raise {error}")
    out = tmp_path / "model.safetensors"
    done = run("c", *options(text, out), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("no curve") == 1 and error.split("'")[1] in done.stderr
    assert not out.with_suffix(".png").exists() and "the loss curve" not in done.stdout


def test_optional_files_that_cannot_be_written(text: Path, tmp_path: Path) -> None:
    """Both names are taken by what is not theirs."""
    out = tmp_path / "model.safetensors"
    out.with_suffix(".png").mkdir()
    out.with_suffix(".tensorboard").write_text("a file")
    done = run("c", *options(text, out), "--tensorboard", "--overwrite")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "model.png: cannot be saved" in done.stderr and "events cannot be saved" in done.stderr
    assert epochs_done(out) == 2 and checkpoint.load(out).history


# ---- Standard output


@pytest.mark.parametrize(
    "backend,encoding",
    [("c", "ascii"), ("torch", "ascii"), ("c", "latin-1"), ("c", "utf-16"), ("c", "ascii:surrogateescape")],
)
def test_a_sample_that_the_encoding_lacks(backend: str, encoding: str, foreign: Path, tmp_path: Path) -> None:
    chosen = options(foreign, tmp_path / "m", epochs=1, vocab_size=None, prompt="Король")
    done = subprocess.run(
        command(backend, *chosen, "--embeddings", "random"),
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    said = done.stdout.decode(encoding.partition(":")[0])
    assert ("sample: Король" if encoding == "utf-16" else r"sample: \u041a\u043e\u0440") in said


def test_rnn_py_in_any_encoding(foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert train("c", *options(foreign, out, epochs=1, vocab_size=None), "--embeddings", "random").returncode == 0
    # The C locale, and Python told not to make UTF-8 of it: the prompt itself cannot be read then.
    minimal = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for environment, prompt, code in (
        ({"PYTHONIOENCODING": "ascii"}, "im saß Король", 0),
        ({"PYTHONIOENCODING": "cp437"}, "im saß Король", 0),
        (minimal, "im", 0),
        (minimal, "Король", 2),
        ({"PYTHONIOENCODING": "undefined"}, "im", 1),  # a codec that takes no text at all
    ):
        for more in ([], ["--score"]):
            arguments = [sys.executable, "rnn.py", str(out), prompt, *more]
            done = subprocess.run(arguments, cwd=ROOT, env=os.environ | environment, capture_output=True)
            assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "backend,ending",
    [("torch", "2>&1 | head -1"), *(("c", ending) for ending in ("2>&1 | head -1", "| true", "2>&-", ">&- 2>&-"))],
)
def test_a_run_outlives_its_readers(backend: str, ending: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    shell = f'"$@" {ending}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *command(backend, *options(text, out, epochs=3))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and epochs_done(out) == 3, done.stderr
    assert not any(word in done.stderr + done.stdout for word in ("Traceback", "BrokenPipe", "Exception"))


@pytest.mark.parametrize("program", ["main.py", "torch_rnn.py", "rnn.py"])
def test_help_without_a_reader(program: str) -> None:
    for ending in ("| true", ">&-"):
        shell = f'"$0" {program} --help {ending}; exit "${{PIPESTATUS[0]}}"'
        done = subprocess.run(["bash", "-c", shell, sys.executable], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr


# ---- The terminal goes


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed(nohup: bool, text: Path, tmp_path: Path) -> None:
    """SIGHUP saves, as SIGTERM does; under nohup, which ignores it, the run goes on."""
    out = tmp_path / "model.safetensors"
    arguments = command("c", *options(text, out, epochs=40, patience=0))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    with process:
        assert process.stderr
        for line in process.stderr:
            if "epoch 2/" in line:
                process.send_signal(signal.SIGHUP)
                break
        rest = process.stderr.read()
    assert process.returncode == (0 if nohup else 130), rest
    assert (epochs_done(out) == 40) == nohup
    assert nohup or "--resume" in rest.splitlines()[-1]


def test_a_terminal_that_is_gone(text: Path, tmp_path: Path) -> None:
    """Its processes get SIGHUP, and whatever they then write fails."""
    out = tmp_path / "model.safetensors"
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, command("c", *options(text, out, epochs=4000, patience=0)))
    while not out.exists():
        time.sleep(0.05)
        os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert epochs_done(out) > 0
