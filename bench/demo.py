"""Time the preset `demo`: in C, in torch, and in C with a sampled softmax.

    python bench/demo.py                    two minutes

Prints two tables, and writes bench/results/demo.jsonl, the README and docs/results.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import figures
from tables import demo, sampled

SAMPLED = (1000, 500)


def train(program: str, folder: Path, *options: str) -> dict[str, Any]:
    """Train in one thread per processor, as `make train` does. Returns perplexity and seconds."""
    out = folder / "demo"
    command = [sys.executable, program, "--preset", "demo", "--overwrite", "--out", str(out), *options]
    subprocess.run(command, cwd=figures.ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["event"] == "evaluation"]
    reached = min(line["validation_perplexity"] for line in evaluations)
    return {"perplexity": round(reached, 2), "seconds": round(evaluations[-1]["seconds"], 1)}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exact = train("main.py", folder)
        rows = [
            {"table": "demo", "model": "C", **exact},
            {"table": "demo", "model": "torch", **train("torch_rnn.py", folder)},
            {"table": "sampled", "softmax": "all 4,000 words", **exact},
        ]
        for count in SAMPLED:
            found = train("main.py", folder, "--sampled-softmax", str(count))
            rows.append({"table": "sampled", "softmax": f"{count:,} sampled", **found})
    print(f"{demo({}, rows)}\n{sampled({}, rows)}")
    figures.save("demo", rows)


if __name__ == "__main__":
    main()
