"""Draw the results of bench.py: docs/bench-training.png, docs/bench-generation.png and docs/bench-growth.png.

python bench/plots.py          draws them again, from the results of the last run
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
ENGINES = {"c": ("C", "#1f5fbf"), "torch": ("PyTorch, eager", "#e08214"), "compile": ("PyTorch, compiled", "#8f8f8f")}

Row = dict[str, Any]


def panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    axes = list(FigureCanvasAgg(figure).figure.subplots(1, count))
    for one in axes:
        one.grid(axis="y", alpha=0.3, linewidth=0.5)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def name_engines(figure: Figure, axes: Axes) -> None:
    """Draw one legend above all panels, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)


def plain(value: float, _: int = 0) -> str:
    """Format a number: 9,000, but 200k."""
    return f"{value / 1000:,.0f}k" if value >= 10_000 and value % 1000 == 0 else f"{value:,.0f}"


def bars(axes: Axes, rows: list[Row], title: str) -> None:
    """Draw tokens per second of each engine and case; above C's bars stands its speed relative to eager PyTorch."""
    engines = [engine for engine in ENGINES if any(f"{engine}_tokens_per_second" in row for row in rows)]
    width = 0.8 / len(engines)
    for place, engine in enumerate(engines):
        label, color = ENGINES[engine]
        key = f"{engine}_tokens_per_second"
        shown = [(i + (place - (len(engines) - 1) / 2) * width, row) for i, row in enumerate(rows) if key in row]
        axes.bar([x for x, _ in shown], [row[key] for _, row in shown], width * 0.92, label=label, color=color)
        for x, row in shown if engine == "c" else ():
            above = f"{row['ratio_to_torch']:.1f}x" if "ratio_to_torch" in row else "no room\nfor PyTorch"
            axes.annotate(above, (x, row[key]), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(rows)), [row["case"].replace(" ", "") for row in rows], fontsize=9)
    axes.set(title=title, xlabel="batch rows x steps of a chunk")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(FuncFormatter(plain))


def lines(axes: Axes, rows: list[Row], size: Callable[[Row], float], title: str, xlabel: str) -> None:
    """Draw tokens per second over a size, on logarithmic axes."""
    ticks = sorted({size(row) for row in rows})
    for engine, (label, color) in ENGINES.items():
        key = f"{engine}_tokens_per_second"
        points = sorted((size(row), row[key]) for row in rows if key in row)
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, color=color)
    axes.set(title=title, xlabel=xlabel, xscale="log", yscale="log")
    axes.set_xticks(ticks, [plain(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw(rows: list[Row]) -> list[Path]:
    """Draw the three pictures of a full run. Returns their paths."""

    def of(group: str) -> list[Row]:
        return [row for row in rows if row["group"] == group]

    figure, (small, large) = panels(2)
    bars(small, of("train"), "V = 31,266")
    bars(large, of("train V=200k"), "V = 200,000")
    small.set_ylabel("tokens trained per second")
    name_engines(figure, small)
    figure.savefig(DOCS / "bench-training.png")

    figure, (sequences, vocabulary) = panels(2)
    together = [row for row in of("generate") if re.fullmatch(r"\d+ sequences?", row["case"])]
    lines(
        sequences, together, lambda row: row["sequences"], "all sequences together", "sequences that advance together"
    )
    lines(vocabulary, of("generate by V"), lambda row: row["vocab"], "one sequence", "words of the vocabulary")
    sequences.set_ylabel("tokens generated per second")
    name_engines(figure, sequences)
    figure.savefig(DOCS / "bench-generation.png")

    figure, (by_v, by_h, one) = panels(3)
    lines(by_v, of("train by V"), lambda row: row["vocab"], "training, 32 x 35", "words of the vocabulary")
    lines(by_h, of("train by H"), lambda row: row["hidden"], "training, 32 x 35", "hidden units")
    lines(one, of("generate by H"), lambda row: row["hidden"], "generation, one sequence", "hidden units")
    by_v.set_ylabel("tokens per second")
    name_engines(figure, by_v)
    figure.savefig(DOCS / "bench-growth.png")
    return [DOCS / f"bench-{name}.png" for name in ("training", "generation", "growth")]


def main() -> None:
    first, rows = figures.read("bench")
    figures.write(figures.RESULTS / "bench.jsonl", first | {"pictures": figures.digests(draw(rows))}, rows)


if __name__ == "__main__":
    main()
