"""What a person sees of a training run: progress bar, a line for each evaluation, metrics, loss curve, TensorBoard."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rnnlm.files import SaveError, atomic_write
from rnnlm.language_model import perplexity, shown
from rnnlm.training.config import ConfigError

Row = dict[str, Any]


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 35 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


class Bar:
    """Progress over the tokens of the whole run, with the time that is left."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, tokens: int, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.3f}, perplexity {shown(perplexity(loss))}", refresh=False)
        self._bar.update(tokens)


@contextmanager
def bar(total: int, done: int, *, hidden: bool = False) -> Iterator[Bar]:
    """A bar on stderr; log lines pass above it. Where stderr is a file, it is drawn every ten seconds."""
    with (
        logging_redirect_tqdm(),
        tqdm(
            total=total,
            initial=done,
            disable=hidden,
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


class Events:
    """TensorBoard's event files. One file for each start of a run; what a killed run wrote too much is then hidden.

    Written here with the library's records rather than by its writer, whose thread waits for ever on a full disk.
    Raises ConfigError where the library is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            ) from error
        self.folder = folder
        self._event, self._summary, self._records = event_pb2.Event, summary_pb2.Summary, RecordWriter
        self._session_start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event of these scalars. Raises SaveError."""
        try:
            if self._writer is None:
                self._open(step)
            scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._add(step=step, summary=self._summary(value=scalars))
        except OSError as error:
            self.close()  # the file may end in half an event: go on in another
            raise SaveError(f"{self.folder}: events cannot be saved ({error.strerror or error}): make room") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = self._records((self.folder / name).open("wb", buffering=0))
        self._add(file_version="brain.Event:2")
        self._add(step=step, session_log=self._session_start)

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
