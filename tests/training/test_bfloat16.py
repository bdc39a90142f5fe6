"""What bfloat16 operands cost a whole run: next to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import train

from rnnlm import checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_reaches_the_perplexity_of_float32(seed: int, tmp_path: Path) -> None:
    best = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / f"{precision}.safetensors"
        result = train("c", "--preset", "demo", "--precision", precision, "--seed", str(seed), "--out", str(out))
        assert result.returncode == 0, result.stderr
        best[precision] = min(row["validation_perplexity"] for row in checkpoint.load(out).history)
    assert best["bfloat16"] == pytest.approx(best["float32"], rel=0.01)
    assert best["bfloat16"] != best["float32"]
