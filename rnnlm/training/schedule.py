"""What changes in the course of a run: the learning rate, when the model is evaluated, when training ends."""

from __future__ import annotations

import math

from rnnlm.training import interval
from rnnlm.training.config import TrainConfig
from rnnlm.training.progress import Progress

AVERAGE_EVERY = 8  # updates between two terms of the average, as a rule


def learning_rate(config: TrainConfig, step: int, total_steps: int, scale: float) -> float:
    """Return the rate of `step`, counted from 0 over the whole run. scale: `Progress.rate_scale`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":  # Loshchilov & Hutter 2017, without restarts, down to a hundredth
        done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))
    return config.learning_rate * scale


def average_every(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the updates between two terms of the average: 1 if two evaluations are fewer than eight updates apart.

    So no two evaluations see the same average. The last evaluation, at the end of the run, may follow another soon.
    """
    every = interval.steps(config.evaluate_every, steps_per_epoch)
    last = config.epochs * steps_per_epoch % every or every
    return AVERAGE_EVERY if min(every, last) >= AVERAGE_EVERY else 1


def average_decay(config: TrainConfig, updates: int, every: int = AVERAGE_EVERY) -> float:
    """Return what the average of the weights is multiplied by after `updates` updates; 1.0: nothing is added.

    every: `average_every`. Eight is enough: an average over a thousand updates hardly differs, and a pass over all
    weights costs as much as an optimizer's. The first eight updates are all in it, since the run may end there.
    At first the decay is smaller, or the initial weights would stay in the average for long.
    """
    if updates <= AVERAGE_EVERY:
        every = 1
    if not config.average or updates % every:
        return 1.0
    return min(config.average, (1 + updates) / (10 + updates)) ** every


def is_evaluated(config: TrainConfig, step: int, steps_per_epoch: int) -> bool:
    """Return whether the weights after `step` steps of the whole run are evaluated. The last ones always are."""
    every = interval.steps(config.evaluate_every, steps_per_epoch)
    return step // every > (step - 1) // every or step == config.epochs * steps_per_epoch


def evaluations_left(config: TrainConfig, step: int, steps_per_epoch: int) -> int:
    """Return how many evaluations follow after `step` steps. Takes no time: --epochs may be a huge number."""
    every = interval.steps(config.evaluate_every, steps_per_epoch)
    total = config.epochs * steps_per_epoch
    count = total // every
    is_last_extra = math.ceil(count * every) < total
    return count - step // every + is_last_extra


def is_out_of_patience(config: TrainConfig, at: Progress) -> bool:
    """Return whether --patience evaluations in a row brought nothing."""
    return 0 < config.patience <= at.stale


def is_finished(config: TrainConfig, at: Progress) -> bool:
    """Return whether all epochs are done, or the patience is used up."""
    return at.epoch >= config.epochs or is_out_of_patience(config, at)
