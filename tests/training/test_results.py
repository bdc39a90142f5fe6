"""The command that fills the README's table of results, on a text of a few hundred words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT


@pytest.mark.slow
def test_results_trains_once_and_tells_the_same_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(rng.choice(["A", "dog", "bites", "no", "man"], 6)) + "." for _ in range(300)))
    picture = tmp_path / "results.png"
    command = [sys.executable, str(ROOT / "bench" / "results.py"), "--corpus", str(text), "--folder", str(tmp_path)]
    command += ["--models", "c-100", "torch-100", "--threads", "1", "--picture", str(picture)]

    def rows() -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
        return re.findall(r"^(?:unigram|Kneser|best).*$", done.stdout, re.MULTILINE)

    first = rows()
    assert [row.split()[0] for row in first] == ["unigram", "Kneser-Ney", "best,", "best,"]
    assert all(4.0 < float(row.split()[-1]) < 8.0 for row in first)  # five words at random, and the end of a sentence
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert rows() == first  # nothing is trained again
