"""The torch trainer on a GPU, beside the same steps on the processor. Skipped where torch finds no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_weights
from trainers import TorchTrainer, small_run

from rnnlm.regularization import CandidateSampler, Regularizer
from rnnlm.training.config import TrainConfig
from rnnlm.training.loop import train
from rnnlm.training.stopping import Diverged
from rnnlm.training.trainer import Chunk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")

V, E, H, B, T = 1009, 20, 33, 5, 17
RECIPES = {
    "sgd": {"reduction": "sum", "learning_rate": 1e-3},
    "momentum": {"momentum": 0.9, "clip": 1.0, "learning_rate": 0.1},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "clip": 1.0, "weight_decay": 0.1, "average": 0.99},
    "best": {
        "optimizer": "adamw", "learning_rate": 1e-3, "epsilon": 1e-5, "clip": 1.0, "average": 0.99,
        "sampled_softmax": 100, "dropout": 0.5, "input_dropout": 0.1, "word_dropout": 0.1,
    },
}  # fmt: skip


def make(device: str, recipe: str, hidden: int = H, **changed: object) -> TorchTrainer:
    chosen = {"batch_size": B, "hidden_size": hidden, "reduction": "mean", "device": device} | RECIPES[recipe] | changed
    return TorchTrainer(make_weights(V, E, hidden, seed=1), TrainConfig(**chosen))


def chunks(recipe: str, hidden: int = H, count: int = 20) -> list[Chunk]:
    """Random chunks; every seventh is shorter."""
    config = TrainConfig(**RECIPES[recipe])
    rng, counts = np.random.default_rng(2), np.arange(1, V + 1)
    sampler = CandidateSampler(counts, config.sampled_softmax) if config.sampled_softmax else None
    regularizer = Regularizer(
        seed=3,
        input_size=E,
        hidden_size=hidden,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        word_dropout=config.word_dropout,
        vocab_size=V,
        sampler=sampler,
    )
    found = []
    for step in range(count):
        x, y = rng.integers(0, V, (2, T if step % 7 else T - 6, B), dtype=np.int32)
        found.append(Chunk(x, y, config.learning_rate * (1 + step % 3), regularizer.draw(step, y)))
    return found


@pytest.mark.parametrize("hidden", [H, 150])  # one kernel for all steps of the recurrence, and one for each
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gpu_takes_the_steps_of_the_processor(recipe: str, hidden: int) -> None:
    ours, theirs = make("cuda", recipe, hidden), make("cpu", recipe, hidden)
    steps = chunks(recipe, hidden)
    got, want = ours.train_steps(steps), theirs.train_steps(steps)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert len(ours.graphs) == 2  # a whole chunk, and a shorter one
    for name, array in ours.weights().parameters().items():
        np.testing.assert_allclose(array, theirs.weights().parameters()[name], rtol=0, atol=2e-5, err_msg=name)
    ids = np.random.default_rng(4).integers(0, V, 5000, dtype=np.int32)
    assert ours.evaluate(ids) == pytest.approx(theirs.evaluate(ids), rel=1e-5)


@pytest.mark.parametrize("hidden", [H, 150])
@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 5e-4), ("tf32", 2e-3)])
def test_other_precisions_stay_close(precision: str, bound: float, hidden: int) -> None:
    ours = make("cuda", "best", hidden, precision=precision)
    theirs = make("cpu", "best", hidden, precision="float32" if precision == "tf32" else precision)
    steps = chunks("best", hidden)
    got, want = ours.train_steps(steps), theirs.train_steps(steps)
    np.testing.assert_allclose(np.array(got)[:, 0], np.array(want)[:, 0], rtol=bound)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("at", [5, 7])
def test_a_resumed_run_has_the_same_bits(recipe: str, at: int) -> None:
    steps = chunks(recipe)
    whole, first, second = (make("cuda", recipe) for _ in range(3))
    whole.train_steps(steps)
    first.train_steps(steps[:at])
    second.load_state(first.state())
    second.train_steps(steps[at:])
    assert whole.state().keys() == second.state().keys()
    for name, array in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], array, err_msg=name)


def test_a_state_goes_from_the_gpu_to_the_processor_and_back() -> None:
    steps = chunks("best")
    gpu, cpu, want = make("cuda", "best"), make("cpu", "best"), make("cpu", "best")
    gpu.train_steps(steps[:8])
    cpu.load_state(gpu.state())
    cpu.train_steps(steps[8:14])
    gpu.load_state(cpu.state())
    got = gpu.train_steps(steps[14:])
    want.train_steps(steps[:14])
    np.testing.assert_allclose(got, want.train_steps(steps[14:]), rtol=1e-5)


def test_a_run_that_diverges_names_the_step(tmp_path: Path) -> None:
    run = small_run(TorchTrainer, tmp_path, device="cuda", learning_rate=1e30, optimizer="sgd")
    with pytest.raises(Diverged, match=r"at step \d of epoch 1"):
        train(run)


def test_out_of_memory_is_one_line() -> None:
    trainer = make("cuda", "sgd")
    x = np.zeros((2_000_000, B), dtype=np.int32)
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        with pytest.raises(MemoryError, match="CUDA out of memory"):
            trainer.train_step(x, x, 0.1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
