"""The exponential average of the weights: what it is, and that it is what is evaluated and saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import BACKENDS, options, refused, train
from trainers import TRAINERS, small_run, take_step

from rnnlm import checkpoint
from rnnlm.training import loop
from rnnlm.training.run import Run
from rnnlm.training.schedule import AVERAGE_EVERY, average_decay
from rnnlm.training.trainer import Trainer

trainers = pytest.mark.parametrize("trainer_class", TRAINERS.values(), ids=TRAINERS)


def current(one: Run) -> np.ndarray:
    """The parameters that the steps change, (P,), not averaged."""
    state = one.trainer.state()
    if "params" in state:
        return state["params"].copy()
    return np.concatenate([state[name].ravel() for name in sorted(state) if name.startswith("parameter")])


def average(one: Run) -> np.ndarray:
    """Their average, in the same order."""
    state = one.trainer.state()
    return np.concatenate([state[name].ravel() for name in sorted(state) if name.startswith("average")])


@trainers
@pytest.mark.parametrize(("evaluate_every", "usual"), [("2", AVERAGE_EVERY), ("1", 1)])  # epochs of six steps
def test_the_average_is_the_sum_that_defines_it(
    trainer_class: type[Trainer], evaluate_every: str, usual: int, tmp_path: Path
) -> None:
    one = small_run(trainer_class, tmp_path, average=0.7, evaluate_every=evaluate_every, epochs=4)
    want = current(one)
    for update in range(1, 3 * AVERAGE_EVERY + 3):
        take_step(one, update % 6)
        every = 1 if update <= AVERAGE_EVERY else usual
        if update % every == 0:
            decay = min(0.7, (1 + update) / (10 + update)) ** every
            want = decay * want + (1 - decay) * current(one)
    assert np.abs(average(one) - want).max() < 1e-6
    assert np.abs(want - current(one)).max() > 1e-3


@trainers
@pytest.mark.parametrize("sampled_softmax", [0, 5])
def test_no_two_evaluations_see_the_same_average(
    trainer_class: type[Trainer], sampled_softmax: int, tmp_path: Path
) -> None:
    """The epoch is one step, and after each comes an evaluation: the run must not stop for want of improvement."""
    chosen = {"epochs": 20, "patience": 3, "learning_rate": 1e-3, "bptt": None, "sampled_softmax": sampled_softmax}
    one = small_run(trainer_class, tmp_path, average=0.9, **chosen)
    first = one.trainer.weights()
    loop.train(one)
    losses = [row["validation_loss"] for row in one.progress.history]
    assert len(losses) == 21 and losses == sorted(set(losses), reverse=True)
    assert not np.array_equal(first.Why, one.trainer.weights().Why)


@pytest.mark.parametrize("evaluate_every", [1, 2])
def test_both_back_ends_average_alike(evaluate_every: int, tmp_path: Path) -> None:
    chosen = {"average": 0.9, "learning_rate": 0.01, "evaluate_every": evaluate_every}
    runs = [small_run(trainer_class, tmp_path, **chosen) for trainer_class in TRAINERS.values()]
    for step in range(20):
        for one in runs:
            one.trainer.train_step(*one.batches.chunk(step % 6), 0.01)
    mine, theirs = (one.trainer.weights().parameters() for one in runs)
    assert all(np.abs(mine[name] - theirs[name]).max() < 1e-5 for name in mine)


@trainers
def test_the_average_is_what_is_evaluated_and_saved(trainer_class: type[Trainer], tmp_path: Path) -> None:
    averaged, plain = (small_run(trainer_class, tmp_path, average=decay) for decay in (0.9, 0.0))
    for index in range(2 * AVERAGE_EVERY):
        take_step(averaged, index % 6)
        take_step(plain, index % 6)
    assert np.array_equal(current(averaged), current(plain))  # the steps themselves do not change
    weights, ids = averaged.trainer.weights(), averaged.validation
    assert np.abs(weights.Why - plain.trainer.weights().Why).max() > 1e-3
    loss = averaged.trainer.evaluate(ids)
    plain.trainer.load_weights(weights)
    assert plain.trainer.evaluate(ids) == pytest.approx(loss, rel=1e-6)
    assert np.array_equal(averaged.trainer.weights().Why, weights.Why)  # also after an evaluation
    take_step(averaged, 0)
    assert not np.array_equal(averaged.trainer.state()[next(iter(averaged.trainer.state()))], weights.Why)


@trainers
def test_weights_that_are_put_back_begin_a_new_average(trainer_class: type[Trainer], tmp_path: Path) -> None:
    one = small_run(trainer_class, tmp_path, average=0.99)
    start = one.trainer.weights()
    for index in range(AVERAGE_EVERY):
        take_step(one, index % 6)
    one.trainer.load_weights(start)
    assert np.array_equal(average(one), current(one))


def test_without_an_average_nothing_is_kept(tmp_path: Path) -> None:
    for trainer_class in TRAINERS.values():
        one = small_run(trainer_class, tmp_path)
        assert not any(name.startswith("average") for name in one.trainer.state())
        assert average_decay(one.config, AVERAGE_EVERY) == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_without_an_average_cannot_go_on_with_one(backend: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train(backend, *options(text, out, epochs=1)).returncode == 0
    result = train(backend, *options(text, out, epochs=2, average=0.9), "--resume")
    refused(result, 2, "cannot resume", "--average 0.9 (it was 0.0)")


def test_the_average_is_in_the_saved_configuration(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert train("c", *options(text, out, epochs=1, average=0.9)).returncode == 0
    assert checkpoint.load(out).config["average"] == 0.9


@pytest.mark.parametrize("value", ["1", "-0.1", "nan"])
def test_a_decay_out_of_range(value: str, text: Path, tmp_path: Path) -> None:
    refused(train("c", *options(text, tmp_path / "x", average=value)), 2, "--average must be from 0 to below 1", value)
