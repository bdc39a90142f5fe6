"""The training loop: one for both back ends, one process or many.

    text -> batches -> trainer.train_steps -> evaluation -> weights file, resume file, metrics, curve

The hidden state is carried from chunk to chunk, and is zero at the start of each epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from rnnlm.arrays import I32
from rnnlm.language_model import perplexity
from rnnlm.progress import progress
from rnnlm.training import reporting, schedule, sharing, stopping
from rnnlm.training.progress import Row
from rnnlm.training.run import Run
from rnnlm.training.trainer import Chunk


def train(run: Run) -> None:
    """Train to the end of the run. Raises Diverged, Interrupted, PeerLost; SaveError if the last save failed."""
    config, at = run.config, run.progress
    run.begin_metrics()
    with stopping.in_order(run) as stop_requested, reporting.report(run) as report:
        while True:
            if is_evaluation_due(run):
                report.evaluation(evaluate(run))
            if schedule.is_finished(config, at):
                break
            if at.step == 0:
                run.trainer.reset_state()
                at.forget_losses()
            stop, save = take_steps(run, report, stop_requested)
            if stop:
                raise stopping.interrupted(run)
            if save:
                run.save_state()
        if run.corpus.test is not None and run.best is not None:
            report.test(test(run))
    if run.group.rank == 0:
        run.files.draw(at.history)
    run.files.check()


def take_steps(run: Run, report: reporting.Report, stop_requested: Callable[[], bool]) -> tuple[bool, bool]:
    """Train until something must be decided. Returns whether to stop, and whether to save the state.

    All processes must take the same decisions: what one of them asks for, all do.
    """
    at, started = run.progress, time.monotonic()
    first, count = run.step, steps_until_decision(run)
    sizes, rates = [], [run.learning_rate(first + index) for index in range(count)]

    def chunks() -> Iterator[Chunk]:
        for index, rate in enumerate(rates):
            x, y = run.batches.chunk(at.step + index)
            drawn = run.regularizer.draw(first + index, run.batches.all_targets(at.step + index))
            sizes.append(x.size)
            yield Chunk(x, y, rate, drawn.of_rows(run.batches.rows))

    results = run.trainer.train_steps(chunks())
    losses = [loss * size for (loss, _), size in zip(results, sizes, strict=True)]
    asks = stop_requested(), run.state.is_due()
    *sums, stop, save = run.group.totals(*losses, *sizes, *asks)
    seconds = (time.monotonic() - started) / count
    for (_, norm), rate, loss_sum, tokens in zip(results, rates, sums[:count], sums[count:], strict=True):
        stopping.check_loss(loss_sum / tokens, norm)
        at.add(loss_sum, int(tokens), norm)
        at.seconds += seconds
        at.step += 1
        if at.step == len(run.batches):
            at.epoch, at.step = at.epoch + 1, 0
        report.step(int(tokens), loss_sum / tokens, norm, rate)
    return bool(stop), bool(save)


def steps_until_decision(run: Run) -> int:
    """Return how many steps may be begun at once: none but the last ends an epoch, or is followed by an evaluation."""
    count, steps = 1, len(run.batches)
    while count < min(run.trainer.steps_ahead, steps - run.progress.step) and not schedule.is_evaluated(
        run.config, run.step + count, steps
    ):
        count += 1
    return count


def is_evaluation_due(run: Run) -> bool:
    """Return whether the current weights are to be evaluated: the untrained ones, and then as --evaluate-every says.

    A run may have been stopped just before its evaluation, and is resumed with it, or just after.
    """
    history = run.progress.history
    if history and history[-1]["step"] >= run.step:
        return False
    return run.step == 0 or schedule.is_evaluated(run.config, run.step, len(run.batches))


def evaluate(run: Run) -> Row:
    """Evaluate the current weights, keep them if they are the best, and save. Returns the new line of the history."""
    at, config = run.progress, run.config
    row = measure(run)
    at.history.append(row)
    if run.step > 0:
        if at.best_loss is None or row["validation_loss"] < at.best_loss:
            at.best_loss, at.best_epoch, at.stale = row["validation_loss"], row["epoch"], 0
            run.best = run.trainer.weights()
            run.save_weights(run.best)
        else:
            at.stale += 1
            if config.schedule == "plateau" and run.best is not None:
                at.rate_scale *= 0.5
                run.trainer.load_weights(run.best)
    at.forget_losses()
    run.save_state()
    return row


def measure(run: Run) -> Row:
    """Return what the history keeps of the current weights."""
    at = run.progress
    started = time.monotonic()
    try:
        loss = evaluate_on(run, "validation", run.validation)
        stopping.check_loss(loss)
    except FloatingPointError as error:
        where = f"on the validation split after epoch {run.epochs:g}"
        raise stopping.diverged(run, where, run.config.learning_rate) from error
    at.evaluation_seconds += time.monotonic() - started
    return {
        "epoch": run.epochs,
        "step": run.step,
        "tokens": run.tokens,
        "train_loss": at.mean_loss,
        "train_loss_sampled": run.is_sampled,
        "validation_loss": loss,
        "validation_perplexity": perplexity(loss),
        "learning_rate": run.learning_rate(max(run.step - 1, 0)),
        "precision": run.config.precision,
        "gradient_norm": at.norm_max,
        "seconds": round(at.seconds, 3),
        "tokens_per_second": round(run.tokens / at.seconds) if at.seconds else None,
    }


def test(run: Run) -> Row:
    """Evaluate the best weights on the test split, every token of it, and keep the result in the weights file.

    Returns the line of the history that belongs to these weights, to which the result is added.
    """
    at, split = run.progress, run.corpus.test
    assert split is not None and run.best is not None
    # The first token is predicted too: a sentence begins after the <EOS> of the one before.
    ids = np.concatenate([np.array([run.corpus.vocabulary.eos], dtype=np.int32), split])
    run.trainer.load_weights(run.best)
    try:
        loss = evaluate_on(run, "test", ids)
    except FloatingPointError as error:
        raise stopping.diverged(run, "on the test split", run.config.learning_rate) from error
    row = at.best_row
    row |= {"test_loss": loss, "test_perplexity": perplexity(loss), "test_tokens": int(split.size)}
    run.save_weights(run.best)
    return row


def evaluate_on(run: Run, split: str, ids: I32) -> float:
    """Return the mean nats per token of the current weights over `ids` (N,), and show how far the evaluation is.

    The processes share the text. Raises FloatingPointError on all of them, PeerLost.
    """
    with progress(f"evaluating on {split}", ids.size - 1, "tokens") as shown:
        return sharing.evaluate(run.trainer, run.group, ids, shown.advance, f"{split}, step {run.step}")
