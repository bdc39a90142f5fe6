"""Several runs side by side: a table of what differs and what came of it, and their curves in one picture."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnlm import terminal
from rnnlm.errors import ArgumentParser, Failure, UserError, exit_code_of, reason, show_path
from rnnlm.files import atomic_write
from rnnlm.language_model import shown
from rnnlm.progress import duration
from rnnlm.training import curve, metrics
from rnnlm.training.progress import Row

PROGRAM = "python -m rnnlm.compare"

# Options that say nothing about how a run learns, nor how fast.
_IGNORED = ("out", "prompt", "tensorboard", "log_every", "preset")
_NO_VALUE = object()  # no value is that of more than half of the runs
_AXES = {"epoch": "epoch", "tokens": "tokens seen", "seconds": "seconds of training"}


@dataclass(frozen=True)
class Trained:
    """One run, as its metrics tell it.   options: empty in the files of release 0.1, which keep none."""

    name: str
    options: dict[str, Any]
    evaluations: list[Row]
    test_perplexity: float | None

    @property
    def best(self) -> Row:
        """The evaluation of the saved weights, which has the lowest loss.

        That of epoch 0 does not count, since it saves none: with --init-from it may be the lowest.
        """
        learned = [row for row in self.evaluations if row["epoch"] > 0]
        return min(learned or self.evaluations, key=lambda row: row["validation_loss"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and draw the picture. Returns the exit code; an error is one line on stderr."""
    terminal.prepare()
    parser = ArgumentParser(
        prog=PROGRAM, description="Compare training runs: a table, and their curves in one picture."
    )
    parser.add_argument("metrics", type=Path, nargs="+", help="metrics files of runs, such as weights/*.jsonl")
    parser.add_argument("--out", type=Path, help="the picture, a PNG; default: comparison.png beside the first file")
    parser.add_argument("--x", choices=_AXES, default="epoch", help="the horizontal axis (%(default)s)")
    parser.add_argument(
        "--y", choices=("perplexity", "loss"), default="perplexity", help="the vertical axis (%(default)s)"
    )
    options = parser.parse_args(arguments)
    picture = options.out or options.metrics[0].with_name("comparison.png")

    def work() -> None:
        runs = [read(path, name) for path, name in zip(options.metrics, _names(options.metrics), strict=True)]
        for line in table(runs):
            print(line)
        sys.stdout.flush()
        atomic_write(picture, _drawn(runs, options.x, options.y))
        print(f"{show_path(picture)}  the curves")

    return exit_code_of(PROGRAM, work)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the files without their ending, or if two are the same, the paths."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [os.fspath(path) for path in paths]


def read(path: Path, name: str) -> Trained:
    """Read a metrics file, also that of a run that is still going on. Raises UserError."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"cannot read {show_path(path)} ({reason(error)}): give metrics files, NAME.jsonl") from error
    rows = metrics.read(path)
    first = rows[0] if rows and rows[0].get("event") == "config" else {}
    options = first.get("config") if isinstance(first.get("config"), dict) else {}
    evaluations = [row for row in rows if all(isinstance(row.get(key), int | float) for key in _NUMBERS)]
    if not evaluations:
        raise UserError(f"{show_path(path)} has no evaluation of a run: give a file that training wrote, NAME.jsonl")
    tested = [row["test_perplexity"] for row in rows if row.get("event") == "test"]
    return Trained(
        name=name,
        options={"backend": first.get("backend"), "processes": first.get("processes"), **options} if first else {},
        evaluations=evaluations,
        test_perplexity=tested[-1] if tested else None,
    )


_NUMBERS = ("epoch", "tokens", "seconds", "validation_loss", "validation_perplexity")


def differences(runs: Sequence[Trained]) -> list[str]:
    """Return for each run what sets it apart from most runs, as `learning_rate 0.01, hidden_size 50`.

    If the runs differ in one option only, all have it.
    """
    usual = _usual(runs)
    own = [{name: run.options.get(name) for name in usual} if run.options else {} for run in runs]
    return [_listed({name: v for name, v in of.items() if repr(v) != repr(usual[name])}) for of in own]


def _usual(runs: Sequence[Trained]) -> dict[str, Any]:
    """Return the options in which the runs differ, each with its value in more than half of them, or _NO_VALUE."""
    told = [run.options for run in runs if run.options]
    usual = {}
    for name in dict.fromkeys(name for options in told for name in options if name not in _IGNORED):
        values = {repr(options.get(name)): options.get(name) for options in told}
        if len(values) > 1:
            [(text, count)] = Counter(repr(options.get(name)) for options in told).most_common(1)
            usual[name] = values[text] if 2 * count > len(told) else _NO_VALUE
    return usual if len(usual) > 1 else dict.fromkeys(usual, _NO_VALUE)


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in options.items())


def _value(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def table(runs: Sequence[Trained]) -> Iterator[str]:
    """Yield the lines of a table, the lowest perplexity first, and of what its last column leaves out."""
    lines = [("run", "perplexity", "epoch", "test", "training", "tokens/s", "what differs")]
    what = dict(zip((run.name for run in runs), differences(runs), strict=True))
    for run in sorted(runs, key=lambda run: run.best["validation_loss"]):
        last = run.evaluations[-1]
        rate = last.get("tokens_per_second")
        lines.append(
            (
                show_path(run.name),
                shown(run.best["validation_perplexity"]),
                f"{run.best['epoch']:.4g} of {last['epoch']:.4g}",
                "-" if run.test_perplexity is None else shown(run.test_perplexity),
                duration(last["seconds"]),
                f"{rate:,}" if isinstance(rate, int) else "-",
                what[run.name],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *numbers, differs in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True))
        yield f"{name:<{widths[0]}}  {'  '.join(cells)}  {differs}".rstrip()
    if shared := _listed({name: value for name, value in _usual(runs).items() if value is not _NO_VALUE}):
        yield f"most runs have {shared}"


def _drawn(runs: Sequence[Trained], x: str, y: str) -> bytes:
    """Draw the validation curves of all runs. Returns a PNG. Raises Failure."""
    try:
        figure, axes = curve.new_figure()
        for run, what in zip(runs, differences(runs), strict=True):
            points = [(row[x], row[f"validation_{y}"]) for row in run.evaluations]
            label = f"{run.name}: {what}" if 0 < len(what) <= 50 else run.name
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=label)
        unit = ", nats per token" if y == "loss" else ""
        axes.set(xlabel=_AXES[x], ylabel=f"validation {y}{unit}")
        curve.use_log_scale(axes)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.legend(frameon=False, fontsize="small")
        image = io.BytesIO()
        figure.savefig(image, format="png")
        return image.getvalue()
    except Exception as error:  # matplotlib is missing, or whatever it raises
        raise Failure(f"no picture, since matplotlib fails ({type(error).__name__}: {error}): install it") from error
