"""What the terminal shows during a run: how far it is, a line for each evaluation, the time that is left."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rnnlm.language_model import perplexity, shown
from rnnlm.progress import Progress, duration, progress
from rnnlm.training import schedule
from rnnlm.training.progress import Row
from rnnlm.training.run import Run

log = logging.getLogger(__name__)

ESTIMATE_SECONDS = 2.0  # of training, after which the time that is left is estimated


@contextmanager
def report(run: Run) -> Iterator[Report]:
    """Yield a report with a bar. Of several processes only rank 0 logs, and has a bar."""
    with progress("training", run.config.epochs * run.batches.tokens, "tokens", done=run.tokens, keep=True) as bar:
        yield Report(run, bar)


class Report:
    """Reports the steps and the evaluations of a run: to the terminal, to the metrics and to TensorBoard."""

    def __init__(self, run: Run, bar: Progress) -> None:
        self._run, self._bar = run, bar
        self._start: tuple[float, int] | None = None  # (seconds, tokens) of training after this process's first step
        self._has_estimated = False
        self._logged = run.progress.seconds, run.tokens  # the same, at the last step that was logged

    def step(self, tokens: int, loss: float, norm: float, rate: float) -> None:
        """Report one training step, of `tokens` tokens over all processes; `loss` is their mean, in nats."""
        run, at = self._run, self._run.progress
        self._bar.advance(
            tokens, f"epoch {run.epochs:.2f}/{run.config.epochs}, {loss_text(at.mean_loss or loss, run.is_sampled)}"
        )
        every = run.config.log_every
        if run.group.rank == 0 and (run.step % every == 0 if every else run.files.events):
            self._log(loss, norm, rate, in_metrics=bool(every))
        if self._start is None:  # the first step is not timed: it also allocates what the others use
            self._start = at.seconds, run.tokens
        elif not self._has_estimated and at.seconds - self._start[0] >= ESTIMATE_SECONDS:
            self._has_estimated = True
            log.info(time_left(run, (run.tokens - self._start[1]) / (at.seconds - self._start[0])))

    def _log(self, loss: float, norm: float, rate: float, *, in_metrics: bool) -> None:
        run, at = self._run, self._run.progress
        seconds, tokens = at.seconds - self._logged[0], run.tokens - self._logged[1]
        self._logged = at.seconds, run.tokens
        row = {
            "epoch": run.epochs,
            "step": run.step,
            "tokens": run.tokens,
            "train_loss": loss,
            "train_loss_sampled": run.is_sampled,
            "gradient_norm": norm,
            "learning_rate": rate,
            "seconds": round(at.seconds, 3),
            "tokens_per_second": round(tokens / seconds) if seconds > 0 else None,
        }
        run.files.step(row, in_metrics=in_metrics)

    def evaluation(self, row: Row) -> None:
        """Report a new line of the history."""
        if self._run.group.rank == 0:
            self._run.files.evaluation(row)
        log.info(epoch_line(row, self._run.config.epochs))

    def test(self, row: Row) -> None:
        """Report the result of the test split; the summary prints it."""
        if self._run.group.rank == 0:
            self._run.files.test(row)


def loss_text(loss: float, is_sampled: bool) -> str:
    """Return a training loss for people. That of a sampled softmax is lower than the full one, and no perplexity."""
    return f"sampled loss {loss:.3f}" if is_sampled else f"loss {loss:.3f}, perplexity {shown(perplexity(loss))}"


def epoch_line(row: Row, epochs: int) -> str:
    """Return one evaluation as a line for the log."""
    sampled = " (sampled)" if row["train_loss_sampled"] else ""
    trained = "" if row["train_loss"] is None else f"  train {row['train_loss']:.4f}{sampled}"
    rate = f"  {row['tokens_per_second']:,} tokens/s" if row["tokens_per_second"] else ""
    return (
        f"epoch {round(row['epoch'], 3):g}/{epochs}{trained}  validation {row['validation_loss']:.4f}"
        f"  perplexity {shown(row['validation_perplexity'])}  rate {row['learning_rate']:.3g}{rate}"
    )


def time_left(run: Run, rate: float) -> str:
    """Return how long the rest of the run takes, at `rate` tokens per second, evaluations included."""
    at, config = run.progress, run.config
    tokens = config.epochs * run.batches.tokens - run.tokens
    evaluations = schedule.evaluations_left(config, run.step, len(run.batches))
    each = at.evaluation_seconds / max(len(at.history), 1)
    return (
        f"{'at most' if config.patience else 'about'} {duration(tokens / rate + evaluations * each)} left: {tokens:,} "
        f"tokens at {rate:,.0f}/s, {evaluations:,} evaluation{'s' * (evaluations != 1)} of {duration(each)}"
    )
