"""Start the training programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT

from rnnlm import checkpoint

BACKENDS = {"c": "main.py", "torch": "torch_rnn.py"}


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
