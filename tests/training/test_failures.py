"""What ends a run: a loss that is not finite, too little memory or disk, a missing corpus or device."""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_weights, no_sanitizer
from running import BACKENDS, command, options, refused, run, train
from trainers import CTrainer

from rnnlm.training import torch_trainer
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diverging_run_names_the_step_and_keeps_the_last_good_weights(
    backend: str, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    assert train(backend, *options(text, out)).returncode == 0
    before = out.read_bytes()
    wild = {"optimizer": "sgd", "clip": 0, "schedule": "constant", "learning_rate": 1e38}
    refused(
        train(backend, *options(text, out, **wild), "--overwrite"),
        1,
        "not finite",
        "step",
        "epoch 1",
        "--learning-rate",
    )
    assert out.read_bytes() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"optimizer": "adamw"}, "at step 2 of epoch 1"),
        ({"optimizer": "sgd", "clip": 0}, "at step 2 of epoch 1"),
        ({"optimizer": "sgd", "bptt": 100_000, "batch_size": 1}, "on the validation split after epoch 1"),  # one step
    ],
)
def test_a_loss_that_is_finite_and_absurd_ends_the_run(
    backend: str, changed: dict[str, object], where: str, text: Path, tmp_path: Path
) -> None:
    """At such a rate the weights stay finite, since tanh and the softmax saturate."""
    wild = changed | {"embeddings": "random", "schedule": "constant", "learning_rate": 1e10}
    result = train(backend, *options(text, tmp_path / "model", **wild))
    refused(result, 1, where, "above 700 nats per token", "1e+10", "--learning-rate")
    assert result.stdout == "" and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("content", ["", "\n\n  \n", "1 2 3 4.\n5 6"])
def test_a_text_without_words(content: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    refused(train("c", *options(path, tmp_path / "model")), 2, "empty.txt")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_corpus_without_a_network(backend: str, tmp_path: Path) -> None:
    """Nothing listens at the hub's address: one line at once, and no substitute corpus."""
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
    refused(train("c", *options(text, tmp_path / "file" / "model.safetensors")), 1, "file")


def test_a_full_disk_is_reported_and_harms_nothing(text: Path, tmp_path: Path) -> None:
    """A limit on the size of files imitates a full disk: every save fails, and the old file stays."""
    import resource

    out = tmp_path / "model.safetensors"
    large = {"hidden_size": 400, "epochs": 1}
    assert train("c", *options(text, out, **large)).returncode == 0
    before = out.read_bytes()
    assert out.with_suffix(".png").stat().st_size < len(before)

    def limit(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (1024, len(before) - 1000):  # nothing can be saved; all but the weights and the state can
        result = subprocess.run(
            command("c", *options(text, out, **large), "--overwrite"),
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
    trainer = CTrainer(make_weights(11, 4, 5), config)
    ids = np.zeros((9, 2), dtype=np.int32)
    for rows in (3, 9):
        assert math.isfinite(trainer.train_step(ids[:rows], ids[:rows], 0.1)[0])


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported before the corpus is read, which may take minutes."""
    missing = options(tmp_path / "no-such-corpus", tmp_path / "model", device="cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for backend in BACKENDS:
        refused(train(backend, *missing), 2, "cuda")


def test_a_missing_library_is_reported_before_the_corpus_is_read(tmp_path: Path) -> None:
    missing = options(tmp_path / "no-such-corpus", tmp_path / "model")
    refused(run("c", *missing, RNNLIB_PATH=str(tmp_path / "none.so")), 1, "none.so", "make lib")


@no_sanitizer
@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_memory_names_the_options_that_help(backend: str, text: Path, tmp_path: Path) -> None:
    import resource

    limit = {"c": 5 << 28, "torch": 2 << 30}[backend]  # enough to start, and too little for 1 GiB of Whh beside that
    result = subprocess.run(
        command(backend, *options(text, tmp_path / "model", hidden_size=16384)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit)),
    )
    refused(result, 1, "out of memory", "--batch-size", "--bptt", "--hidden-size", "--embedding-size")


@no_sanitizer
def test_torchs_errors_for_too_little_memory() -> None:
    with pytest.raises(MemoryError, match="allocate"), torch_trainer._plain_errors(Group()):
        torch.empty(1 << 50)
    with pytest.raises(MemoryError, match="CUDA out of memory"), torch_trainer._plain_errors(Group()):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    with pytest.raises(RuntimeError, match="another"), torch_trainer._plain_errors(Group()):
        raise RuntimeError("another bug")


@pytest.mark.parametrize("program", ["main.py", "torch_rnn.py", "rnn.py"])
def test_ctrl_c_while_modules_are_imported(program: str, tmp_path: Path) -> None:
    """A numpy that sleeps imitates slow imports."""
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
