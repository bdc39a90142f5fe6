"""Draw what bench.py measured: docs/bench-training.png and docs/bench-generation.png.

python bench/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
ENGINES = {"c": "C", "torch": "PyTorch, eager", "compile": "PyTorch, compiled"}


def axes_of(ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 3.6), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.set(ylabel=ylabel)
    axes.grid(axis="y", alpha=0.3, linewidth=0.5)
    return figure, axes


def training(rows: list[dict[str, Any]]) -> None:
    """Bars: tokens per second of each engine at each shape."""
    figure, axes = axes_of("tokens per second, trained")
    for offset, (engine, label) in enumerate(ENGINES.items()):
        key = f"{engine}_tokens_per_second"
        bars = [(i + (offset - 1) * 0.27, row[key]) for i, row in enumerate(rows) if key in row]
        if bars:
            axes.bar(*zip(*bars, strict=True), width=0.25, label=label)
    axes.set_xticks(range(len(rows)), [row["case"] for row in rows])
    axes.set(xlabel="streams x steps of a chunk (V = 31,266, E = 300, H = 100)")
    axes.legend(frameon=False)
    figure.savefig(DOCS / "bench-training.png")


def generation(rows: list[dict[str, Any]]) -> None:
    """Lines: total tokens per second against the number of streams that advance together."""
    figure, axes = axes_of("tokens per second, all streams together")
    for engine, label in ENGINES.items():
        key = f"{engine}_tokens_per_second"
        points = [(row["streams"], row[key]) for row in rows if key in row and "streams" in row["case"]]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.set(xlabel="streams", xscale="log", yscale="log")
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.legend(frameon=False)
    figure.savefig(DOCS / "bench-generation.png")


def main() -> None:
    rows = [json.loads(line) for line in (HERE / "results" / "bench.jsonl").read_text().splitlines()]
    DOCS.mkdir(exist_ok=True)
    training([row for row in rows if row["group"] == "train"])
    generation([row for row in rows if row["group"] == "generate"])


if __name__ == "__main__":
    main()
