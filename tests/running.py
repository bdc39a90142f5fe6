"""Run the training programs: in this process, which saves the time of imports, or in one of their own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from conftest import ROOT

from rnnlm import checkpoint

BACKENDS = {"c": "main.py", "torch": "torch_rnn.py"}
REGULARIZED = {"dropout": 0.3, "input_dropout": 0.1, "word_dropout": 0.2, "sampled_softmax": 5}


def options(text: Path, out: Path, **changed: object) -> list[str]:
    """Return options for a run on `text` that takes well under a second, with `changed` ones."""
    chosen = {
        "preset": "demo",
        "corpus": text,
        "vocab_size": 14,
        "embedding_size": 8,
        "hidden_size": 10,
        "epochs": 2,
        "batch_size": 4,
        "bptt": 16,
        "threads": 1,
        "out": out,
    } | changed
    given = ((f"--{name.replace('_', '-')}", str(value)) for name, value in chosen.items() if value is not None)
    return [word for pair in given for word in pair]


def train(backend: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train in this process, as `run` does in another."""
    from trainers import TRAINERS  # imports torch, which tests of `run` need not wait for

    from rnnlm.training import cli

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [BACKENDS[backend], *arguments]),
        mock.patch.dict(os.environ, environment),
        _no_log_handlers(),
    ):
        try:
            code = cli.main(TRAINERS[backend], arguments)
        except SystemExit as end:  # argparse's
            code = end.code
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _no_log_handlers() -> Iterator[None]:
    """Take pytest's log handlers away, so that the program sets up its own as it does in a fresh process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def command(backend: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / BACKENDS[backend]), *arguments]


def run(backend: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(backend, *arguments),
        cwd=cwd or ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a run failed with exit code `code`, no traceback, and `words` in its last line."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


def same_weights(first: Path, second: Path) -> bool:
    a, b = checkpoint.load(first), checkpoint.load(second)
    return all(
        np.array_equal(a.weights.parameters()[name], b.weights.parameters()[name]) for name in checkpoint.PARAMETERS
    )


def metrics(out: Path, event: str = "evaluation") -> list[dict[str, Any]]:
    """Return the lines of one kind of the metrics file that belongs to the weights file `out`."""
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]
