"""What the terminal shows during a run: a progress bar, a line for each evaluation, the time that is left."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rnnlm.language_model import perplexity, shown
from rnnlm.training import schedule
from rnnlm.training.progress import Row
from rnnlm.training.run import Run

log = logging.getLogger(__name__)

ESTIMATE_SECONDS = 2.0  # of training, after which the time that is left is estimated


@contextmanager
def report(run: Run) -> Iterator[Report]:
    """Yield a report with a bar on stderr; log lines pass above it. If stderr is a file, it is drawn every ten seconds.

    Of several processes only rank 0 has a bar.
    """
    with (
        logging_redirect_tqdm(),
        tqdm(
            total=run.config.epochs * run.batches.tokens,
            initial=run.tokens,
            disable=run.group.rank > 0,
            unit="token",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            smoothing=0.05,
        ) as bar,
    ):
        yield Report(run, bar)


class Report:
    """Reports the steps and the evaluations of a run to the terminal, and to TensorBoard."""

    def __init__(self, run: Run, bar: tqdm[Any]) -> None:
        self._run, self._bar = run, bar
        self._start: tuple[float, int] | None = None  # (seconds, tokens) of training after this process's first step
        self._has_estimated = False

    def step(self, tokens: int, loss: float, norm: float, rate: float) -> None:
        """Report one training step, of `tokens` tokens over all processes; `loss` is their mean, in nats."""
        run, at = self._run, self._run.progress
        mean = at.loss_sum / run.batches.tokens_before(at.step)  # of the epoch so far
        self._bar.set_postfix_str(f"loss {mean:.3f}, perplexity {shown(perplexity(mean))}", refresh=False)
        self._bar.update(tokens)
        run.files.step(run.step, loss, norm, rate)
        if self._start is None:  # the first step is not timed: it also allocates what the others use
            self._start = at.seconds, run.tokens
        elif not self._has_estimated and at.seconds - self._start[0] >= ESTIMATE_SECONDS:
            self._has_estimated = True
            log.info(time_left(run, (run.tokens - self._start[1]) / (at.seconds - self._start[0])))

    def evaluation(self, row: Row) -> None:
        """Report a new line of the history."""
        self._run.files.evaluation(row)
        log.info(epoch_line(row, self._run.config.epochs))


def epoch_line(row: Row, epochs: int) -> str:
    """Return one evaluation as a line for the log."""
    trained = "" if row["train_loss"] is None else f"  train {row['train_loss']:.4f}"
    rate = f"  {row['tokens_per_second']:,} tokens/s" if row["tokens_per_second"] else ""
    return (
        f"epoch {row['epoch']}/{epochs}{trained}  validation {row['validation_loss']:.4f}"
        f"  perplexity {shown(row['validation_perplexity'])}  rate {row['learning_rate']:.3g}{rate}"
    )


def time_left(run: Run, rate: float) -> str:
    """Return how long the rest of the run takes, at `rate` tokens per second, evaluations included."""
    at, config = run.progress, run.config
    tokens = config.epochs * run.batches.tokens - run.tokens
    evaluations = schedule.evaluations_left(config, at.epoch)
    each = at.evaluation_seconds / max(len(at.history), 1)
    return (
        f"{'at most' if config.patience else 'about'} {duration(tokens / rate + evaluations * each)} left: {tokens:,} "
        f"tokens at {rate:,.0f}/s, {evaluations:,} evaluation{'s' * (evaluations != 1)} of {duration(each)}"
    )


def duration(seconds: float) -> str:
    """A time for people: 0.4 s, 35 s, 12 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
