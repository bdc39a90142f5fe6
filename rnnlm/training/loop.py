"""The training loop: one for both back ends, one process or many.

    text -> batches -> trainer.train_step -> evaluation -> weights file, resume file, metrics, curve

The hidden state is carried from chunk to chunk, and is zero at the start of each epoch.
"""

from __future__ import annotations

import time

from rnnlm.language_model import perplexity
from rnnlm.training import reporting, schedule, stopping
from rnnlm.training.progress import Row
from rnnlm.training.run import Run


def train(run: Run) -> None:
    """Train to the end of the run. Raises Diverged, Interrupted, PeerLost; SaveError if the last save failed."""
    config, at, batches, trainer = run.config, run.progress, run.batches, run.trainer
    with stopping.in_order(run) as stop_requested, reporting.report(run) as report:
        if not at.history:  # the untrained model, to compare with
            report.evaluation(evaluate(run))
            run.save_state()
        while not schedule.is_finished(config, at):
            if at.step == 0:
                trainer.reset_state()
            while at.step < len(batches):
                started = time.monotonic()
                step = run.step
                x, y = batches.chunk(at.step)
                regularization = run.regularizer.draw(step, batches.all_targets(at.step)).of_rows(batches.rows)
                rate = run.learning_rate(step)
                loss, norm = trainer.train_step(x, y, rate, regularization)
                # All processes must take the same decisions: what one of them asks for, all do.
                asks = stop_requested(), run.state.is_due()
                loss_sum, tokens, stop, save = run.group.totals(loss * x.size, x.size, *asks)
                stopping.check_loss(loss_sum / tokens)
                at.step += 1
                at.loss_sum += loss_sum
                at.norm_max = max(at.norm_max, norm)
                at.seconds += time.monotonic() - started
                report.step(int(tokens), loss_sum / tokens, norm, rate)
                if stop:
                    raise stopping.interrupted(run)
                if save:
                    run.save_state()
            row = finish_epoch(run)
            if row:
                report.evaluation(row)
    if run.group.rank == 0:
        run.files.draw(at.history)
    run.files.check()


def finish_epoch(run: Run) -> Row | None:
    """Close the epoch; evaluate and save if the configuration says so. Returns the new line of the history."""
    at, config = run.progress, run.config
    train_loss = at.loss_sum / run.batches.tokens
    at.epoch, at.step = at.epoch + 1, 0
    row = None
    if schedule.is_evaluated(config, at.epoch):
        row = evaluate(run, train_loss)
        if at.best_loss is None or row["validation_loss"] < at.best_loss:
            at.best_loss, at.best_epoch, at.stale = row["validation_loss"], at.epoch, 0
            run.best = run.trainer.weights()
            run.save_weights(run.best)
        else:
            at.stale += 1
            if config.schedule == "plateau" and not schedule.is_out_of_patience(config, at) and run.best is not None:
                at.rate_scale *= 0.5
                run.trainer.load_weights(run.best)
    at.loss_sum = at.norm_max = 0.0
    if row:
        run.save_state()
    return row


def evaluate(run: Run, train_loss: float | None = None) -> Row:
    """Add the validation loss of the current weights to the history, and return its new line."""
    at = run.progress
    started = time.monotonic()
    try:
        loss = run.group.from_first(lambda: run.trainer.evaluate(run.validation))
        stopping.check_loss(loss)
    except FloatingPointError as error:
        where = f"on the validation split after epoch {at.epoch}"
        raise stopping.diverged(run, where, run.config.learning_rate) from error
    at.evaluation_seconds += time.monotonic() - started
    tokens = at.epoch * run.batches.tokens
    row = {
        "epoch": at.epoch,
        "step": run.step,
        "tokens": tokens,
        "train_loss": train_loss,
        "validation_loss": loss,
        "validation_perplexity": perplexity(loss),
        "learning_rate": run.learning_rate(max(run.step - 1, 0)),
        "precision": run.config.precision,
        "gradient_norm": at.norm_max,
        "seconds": round(at.seconds, 3),
        "tokens_per_second": round(tokens / at.seconds) if at.seconds else None,
    }
    at.history.append(row)
    return row
