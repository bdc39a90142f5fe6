"""Training with a sampled softmax, where words are taken through the steps of AdamW when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS, force_kernels, make_weights
from trainers import CTrainer, TorchTrainer

from rnnlm.binding import Words, Workspace, adamw_update, average_update
from rnnlm.checkpoint import PARAMETERS, Weights
from rnnlm.library import MAX_STEPS, AdamWOptions
from rnnlm.regularization import CandidateSampler, Regularizer
from rnnlm.training import c_trainer, state_file
from rnnlm.training.config import TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.trainer import Trainer

V, E, H, T, B = 97, 6, 11, 5, 3
STEPS = MAX_STEPS + 30  # all words have caught up once, and some are behind again
LIKE_BEST = {"optimizer": "adamw", "weight_decay": 0.1, "average": 0.9, "clip": 0.5}


def config(**changed: object) -> TrainConfig:
    sampled = {"batch_size": B, "sampled_softmax": 8, "reduction": "mean", "threads": 1, "learning_rate": 0.01}
    return TrainConfig(**sampled | LIKE_BEST | changed)


def regularizer() -> Regularizer:
    counts = np.arange(V, 0, -1)
    return Regularizer(seed=4, input_size=E, hidden_size=H, dropout=0.3, sampler=CandidateSampler(counts, 8))


def steps(trainer: Trainer, first: int, last: int) -> list[tuple[float, float]]:
    """Take steps first .. last - 1 of a run. Returns their losses and norms."""
    draws, results = regularizer(), []
    for step in range(first, last):
        x, y = (np.random.default_rng(step).zipf(1.5, (2, T, B)) % V).astype(np.int32)
        results.append(trainer.train_step(x, y, 0.01 / (1 + step / 50), draws.draw(step, y)))
    return results


def assert_same(a: Weights, b: Weights) -> None:
    for name in PARAMETERS:
        assert (getattr(a, name) == getattr(b, name)).all(), name


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("width", [1, 7, 101])
def test_some_words_are_updated_as_all_are(isa: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(isa, monkeypatch)
    rng = np.random.default_rng(0)
    params = rng.standard_normal((V, width), dtype=np.float32)
    some = [params, np.zeros_like(params), np.zeros_like(params), params.copy()]
    decays = {0.1: slice(-1), 0.0: slice(-1, None)}  # of the columns: the last is a bias
    parts = {decay: [array[:, columns].copy() for array in some] for decay, columns in decays.items()}
    words = Words(*some, threads=2)

    for step in range(1, STEPS):
        ids = np.flatnonzero(rng.random(V) < 0.15).astype(np.int32)
        gradient = rng.standard_normal((ids.size, width), dtype=np.float32)
        rate = 0.1 if step > STEPS // 2 or step % 8 == 0 else 0.0
        words.catch_up(ids)
        for decay, columns in decays.items():
            assert (params[ids, columns] == parts[decay][0][ids]).all()
        words.step(AdamWOptions(0.1 / step, 0.9, 0.999, 1e-8, 0.1, step), rate, ids, gradient, 0.5)
        for decay, columns in decays.items():
            whole = np.zeros_like(parts[decay][0])
            whole[ids] = gradient[:, columns]
            options = AdamWOptions(0.1 / step, 0.9, 0.999, 1e-8, decay, step)
            p, m, v, average = (array.reshape(-1) for array in parts[decay])
            adamw_update(p, whole.reshape(-1), m, v, options, grad_scale=0.5)
            average_update(average, p, rate)
    assert (params[:, -1:] != parts[0.0][0]).any()
    words.catch_up()
    for decay, columns in decays.items():
        for ours, theirs in zip(some, parts[decay], strict=True):
            assert (ours[:, columns] == theirs).all()


@pytest.mark.parametrize(
    "changed",
    [{}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0}, {"optimizer": "sgd", "weight_decay": 0.0}],
    ids=["adamw", "momentum", "sgd"],
)
def test_torch_takes_the_same_steps(changed: dict[str, object]) -> None:
    weights = make_weights(V, E, H)
    ours, theirs = (trainer(weights, config(**changed)) for trainer in (CTrainer, TorchTrainer))
    a, b = np.array(steps(ours, 0, STEPS)), np.array(steps(theirs, 0, STEPS))
    assert np.abs(a - b).max() < 1e-5
    mine, other = ours.weights(), theirs.weights()
    for name in PARAMETERS:
        assert np.abs(getattr(mine, name) - getattr(other, name)).max() < 1e-5, name
        assert np.abs(getattr(mine, name) - getattr(weights, name)).max() > 1e-2, name
    ids = np.arange(V, dtype=np.int32)
    assert ours.evaluate(ids) == pytest.approx(theirs.evaluate(ids), abs=1e-5)


@pytest.mark.parametrize("stop", [1, 40, MAX_STEPS, MAX_STEPS + 7])
def test_looking_changes_nothing(stop: int, tmp_path: Path) -> None:
    """A run that is evaluated, copied and saved, and the run that continues from the file, end as one left in peace."""
    weights = make_weights(V, E, H)
    quiet, watched, resumed = (CTrainer(weights, config()) for _ in range(3))
    steps(quiet, 0, STEPS)
    steps(watched, 0, stop)
    watched.evaluate(np.arange(V, dtype=np.int32))
    copy = watched.weights()
    state_file.save(tmp_path / "x.resume", watched.state(), {})
    resumed.load_state(state_file.load(tmp_path / "x.resume")[0])
    assert_same(resumed.weights(), copy)
    for trainer in (watched, resumed):
        steps(trainer, stop, STEPS)
        assert_same(trainer.weights(), quiet.weights())


@pytest.mark.parametrize(("processes", "most"), [(1, 8 + T * B), (2, 8 + 2 * T * B), (9, V)])
def test_the_room_for_candidates_is_the_same_whatever_chunk_comes_first(
    processes: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be resumed at the short last chunk of an epoch, and the order of summation follows from the room."""
    asked = []

    class Watched(Workspace):
        def __init__(self, *dims: int, **sizes: Any) -> None:
            super().__init__(*dims, **sizes)
            asked.append(sizes.get("max_candidates", 0))

    class Several(Group):
        size = processes

        def threads(self, asked: int | None) -> int:
            return 1

        def sum(self, array: np.ndarray, exchange: str = "float32") -> None:
            pass

    monkeypatch.setattr(c_trainer, "Workspace", Watched)
    for lengths in ([T, 2], [2, T, 2], [1, 2, T]):
        asked.clear()
        trainer = CTrainer(make_weights(V, E, H), config(bptt=T), Several())
        for step, length in enumerate(lengths):
            x, y = np.random.default_rng(step).integers(0, V, (2, length, B), dtype=np.int32)
            trainer.train_step(x, y, 0.01, regularizer().draw(step, y))
        assert asked[0] == 0 and set(asked[1:]) == {most}, lengths  # the first is for evaluations


def test_a_state_that_an_earlier_release_saved_is_continued() -> None:
    weights = make_weights(V, E, H)
    one, other = (CTrainer(weights, config()) for _ in range(2))
    steps(one, 0, 20)
    saved = one.state()
    head = E * H + H * H + H

    def as_weights_files_have_it(buffer: np.ndarray) -> np.ndarray:
        return np.concatenate([buffer[:head], buffer[head:].reshape(V, H + 1).T.ravel()])

    plain = {name.removesuffix(".by_words"): array for name, array in saved.items()}
    assert len(plain) == 6 and "params" in plain and "params" not in saved
    other.load_state({n: as_weights_files_have_it(a) if a.size > head * 2 else a for n, a in plain.items()})
    for trainer in (one, other):
        steps(trainer, 20, 40)
    assert_same(one.weights(), other.weights())


def test_restored_weights_are_those_given() -> None:
    weights = make_weights(V, E, H)
    ours, theirs = (trainer(weights, config()) for trainer in (CTrainer, TorchTrainer))
    for trainer in (ours, theirs):
        steps(trainer, 0, 30)
        trainer.load_weights(weights)
    assert_same(ours.weights(), weights)
    a, b = np.array(steps(ours, 30, 60)), np.array(steps(theirs, 30, 60))
    assert np.abs(a - b).max() < 1e-5
