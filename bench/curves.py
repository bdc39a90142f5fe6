"""Draw the validation perplexity of several runs in one picture.

python bench/curves.py docs/reference.png --x epoch weights/ref-1e-5.jsonl weights/ref-1e-4.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rnnlm.language_model import shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("metrics", type=Path, nargs="+", help="metrics files (NAME.jsonl) of runs")
    parser.add_argument("--x", choices=("epoch", "tokens", "seconds"), default="epoch", help="the horizontal axis")
    parser.add_argument("--y", choices=("perplexity", "loss"), default="perplexity", help="the vertical axis")
    options = parser.parse_args()
    for path in options.metrics:
        if not path.is_file():
            parser.error(f"there is no file {path}: training writes it beside the weights, as NAME.jsonl")

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    for path in options.metrics:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [line for line in lines if line["event"] == "evaluation"]
        y = [row["validation_perplexity"] for row in rows]
        shown_y = y if options.y == "perplexity" else [row["validation_loss"] for row in rows]
        axes.plot([row[options.x] for row in rows], shown_y, linewidth=1.5, label=path.stem)
        best = min(rows, key=lambda row: row["validation_loss"])
        print(
            f"{path.stem:<16} start {shown(y[0]):>8}  best {shown(min(y)):>8} at epoch {best['epoch']:>3}"
            f"  last {shown(y[-1]):>8} at epoch {rows[-1]['epoch']:>3}  {rows[-1]['seconds']:>7.1f} s of training"
        )
    unit = ", nats per token" if options.y == "loss" else ""
    axes.set(xlabel=options.x, ylabel=f"validation {options.y}{unit}", yscale="log")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(frameon=False)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture)


if __name__ == "__main__":
    main()
