"""The command that makes the tables of results, on a text of a few hundred words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT


@pytest.mark.slow
def test_results_trains_once_and_writes_the_same_table_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(["A", "dog", "bites", "no", "man"], 6)) + "." for _ in range(300)))
    picture = tmp_path / "results.png"
    command = [sys.executable, str(ROOT / "bench" / "results.py"), "--corpus", str(text), "--folder", str(tmp_path)]
    command += ["--models", "c-100", "torch-100", "ensemble", "--threads", "1"]
    command += ["--picture", str(picture), "--results", str(tmp_path)]

    def table() -> list[dict[str, Any]]:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
        first, *rows = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
        assert len(first["pictures"]) == 1 and str(tmp_path) not in first["command"]
        return rows

    first = table()
    assert [row["model"].split()[0] for row in first] == ["unigram", "interpolated", "`best`", "`best`", "an"]
    assert all(4.0 < row["validation"] < 8.0 for row in first)  # five words at random, and the end of a sentence
    for name in ("c-100", "torch-100", "member-1", "member-4"):
        assert json.loads((tmp_path / f"{name}.cost.json").read_text())["processor_seconds"] > 0.1
    assert all(30 < row["megabytes"] < 5000 for row in first)
    assert all(row["minutes"] >= 0 for row in first[2:])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert table() == first  # nothing is trained again


@pytest.mark.slow
def test_the_start_on_a_large_corpus_is_measured(tmp_path: Path) -> None:
    options = ["--tokens", "100000", "--words", "2000", "--keep", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "bench/large_corpus.py", *options], capture_output=True, text=True, cwd=ROOT, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "second start  tokens after" in done.stdout and done.stdout.count("tokens at ") == 2
