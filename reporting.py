"""What a person sees of a training run: the progress bar, a line for each evaluation, the metrics, the loss curve."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from checkpoint import atomic_write

Row = dict[str, Any]


def perplexity(loss: float) -> float:
    """exp(loss), held at e^700, the largest power that JSON and floats carry."""
    return math.exp(min(loss, 700.0))


def shown(value: float) -> str:
    """A perplexity for people: 142.3, 31,266.0, 4.0e+30."""
    return f"{value:,.1f}" if value < 1e6 else f"{value:.1e}"


class Bar:
    """Progress over the tokens of the whole run, with the time that is left."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, tokens: int, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.3f}, perplexity {shown(perplexity(loss))}", refresh=False)
        self._bar.update(tokens)


@contextmanager
def bar(total: int, done: int) -> Iterator[Bar]:
    """A bar on stderr; log lines pass above it. Where stderr is a file, it is drawn every ten seconds."""
    with (
        logging_redirect_tqdm(),
        tqdm(
            total=total,
            initial=done,
            unit="token",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            smoothing=0.05,
        ) as progress,
    ):
        yield Bar(progress)


def epoch_line(row: Row, epochs: int) -> str:
    """One evaluation, for the log."""
    trained = "" if row["train_loss"] is None else f"  train {row['train_loss']:.4f}"
    rate = f"  {row['tokens_per_second']:,} tokens/s" if row["tokens_per_second"] else ""
    return (
        f"epoch {row['epoch']}/{epochs}{trained}  validation {row['validation_loss']:.4f}"
        f"  perplexity {shown(row['validation_perplexity'])}  rate {row['learning_rate']:.3g}{rate}"
    )


def paths(weights: Path) -> tuple[Path, Path]:
    """(metrics, curve) beside a weights file: NAME.jsonl and NAME.png."""
    return weights.with_suffix(".jsonl"), weights.with_suffix(".png")


def write_metrics(weights: Path, history: Sequence[Row]) -> None:
    """Write the history as JSON lines, one for each evaluation. Raises SaveError."""
    atomic_write(paths(weights)[0], "".join(json.dumps(row) + "\n" for row in history).encode())


def write_curve(weights: Path, history: Sequence[Row]) -> None:
    """Draw the history. Raises SaveError."""
    atomic_write(paths(weights)[1], plot(history, weights.stem))


def plot(history: Sequence[Row], title: str) -> bytes:
    """The loss curve as a PNG: training and validation perplexity over epochs, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no global state of pyplot's
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    for name, label in (("train_loss", "training"), ("validation_loss", "validation")):
        points = [(row["epoch"], perplexity(row[name])) for row in history if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=label)
    axes.set(title=title, xlabel="epoch", ylabel="perplexity", yscale="log")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
