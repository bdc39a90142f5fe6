"""The loss curve of a run as a picture."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from rnnlm.language_model import perplexity
from rnnlm.training.progress import Row


def plot(history: Sequence[Row], title: str) -> bytes:
    """Draw training and validation perplexity over epochs, on a logarithmic axis. Returns a PNG."""
    figure, axes = new_figure()
    # The loss over a sample of words is lower than that over all: it is no perplexity to compare with.
    is_sampled = any(row.get("train_loss_sampled") for row in history)
    training = "training, over sampled words" if is_sampled else "training"
    for name, label in (("train_loss", training), ("validation_loss", "validation")):
        points = [(row["epoch"], perplexity(row[name])) for row in history if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=label)
    axes.set(title=title, xlabel="epoch", ylabel="perplexity")
    use_log_scale(axes)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def use_log_scale(axes: Any) -> None:
    """Make the vertical axis logarithmic, with plain numbers: 200 instead of 2 x 10^2."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # up to two decades


def new_figure() -> tuple[Any, Any]:
    """Return a figure of matplotlib's and its axes. They need no display, and none of pyplot's global state."""
    # A notebook exports the name of its own backend, which matplotlib refuses to be imported with anywhere else.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    return figure, FigureCanvasAgg(figure).figure.subplots()
