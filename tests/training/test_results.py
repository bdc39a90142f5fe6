"""The command that fills the README's table of results, on a text of a few hundred words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from results import END, START


@pytest.mark.slow
def test_results_trains_once_and_writes_the_same_table_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(["A", "dog", "bites", "no", "man"], 6)) + "." for _ in range(300)))
    picture, document = tmp_path / "results.png", tmp_path / "results.md"
    document.write_text(f"before\n{START}an old table\n{END}after\n")
    command = [sys.executable, str(ROOT / "bench" / "results.py"), "--corpus", str(text), "--folder", str(tmp_path)]
    command += ["--models", "c-100", "torch-100", "--threads", "1"]
    command += ["--picture", str(picture), "--document", str(document)]

    def table() -> list[list[str]]:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
        written = document.read_text()
        assert written.startswith(f"before\n{START}| model |") and written.endswith(f"{END}after\n")
        assert "an old table" not in written
        lines = written.split(START)[1].split(END)[0].splitlines()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]

    first = table()
    assert [cells[0].split()[0] for cells in first] == ["unigram", "interpolated", "`best`", "`best`"]
    assert all(4.0 < float(cells[5]) < 8.0 for cells in first)  # five words at random, and the end of a sentence
    for name in ("c-100", "torch-100"):
        assert json.loads((tmp_path / f"{name}.cost.json").read_text())["processor_seconds"] > 0.1
    assert all(30 < float(cells[4].removesuffix(" MB").replace(",", "")) < 5000 for cells in first)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert table() == first  # nothing is trained again
