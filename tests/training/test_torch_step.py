"""The torch trainer's own loss and gradients, and what it does for a GPU, as far as a processor can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_weights
from gradients import by_torch, chunk, some_regularization
from trainers import TRAINERS, TorchTrainer, small_run

from rnnlm.regularization import NO_REGULARIZATION
from rnnlm.training import torch_evaluation, torch_loss
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.loop import steps_until_decision, train
from rnnlm.training.stopping import Diverged
from rnnlm.training.torch_inputs import Layout, arrays_of, shapes
from rnnlm.training.torch_loss import StepLoss
from rnnlm.training.trainer import Chunk
from torch_rnn import RNN


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize("sampled", [None, 0, 12])
def test_the_loss_has_the_gradients_of_autograd(
    sampled: int | None, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(torch_loss.PIECE, "cpu", piece)
    weights = make_weights(41, 9, 17, seed=5)
    x, y, state = chunk(41, 17, 13, 3, seed=6)
    regularization = NO_REGULARIZATION if sampled is None else some_regularization(41, 9, 17, y, sampled)
    want_loss, want, want_state = by_torch(weights, x, y, state, regularization)
    model = RNN(weights).double()
    targets = regularization.candidates.targets if regularization.candidates else y
    loss, hidden = StepLoss(model)(
        torch.tensor(x), torch.tensor(state).double().unsqueeze(0), torch.tensor(targets).long(), regularization, 0.25
    )
    (loss * 4.0).backward()
    assert loss.item() == pytest.approx(want_loss / 4, rel=1e-12)
    np.testing.assert_allclose(hidden[0].numpy(), want_state, rtol=0, atol=1e-12)
    for name, (tensor, transposed) in model._matrices().items():
        if name != "embeddings":
            got = (tensor.grad.T if transposed else tensor.grad).numpy()
            np.testing.assert_allclose(got, want[name], rtol=0, atol=1e-11, err_msg=name)


def test_the_gradient_of_what_is_almost_certain() -> None:
    """Of two words one has a probability of 0.99 and more: its share of the gradient, p - 1, is a small difference.

    The odds of the other are multiples of 2^-23, so that float32 loses nothing when it adds them to 1.
    """
    odds = torch.arange(1001, 80_001, 1000, dtype=torch.float64) * 2.0**-23
    hidden = (-odds.log()).float().unsqueeze(1).requires_grad_()
    weight, targets = torch.tensor([[1.0], [0.0]]), torch.zeros(len(odds), dtype=torch.long)
    torch_loss.softmax_loss(hidden, weight, torch.zeros(2), targets).backward()
    want = -torch.sigmoid(-hidden.detach().double())
    torch.testing.assert_close(hidden.grad.double(), want, rtol=2e-6, atol=0)


def test_candidates_that_are_filled_up_change_nothing() -> None:
    """On a GPU all steps have the same number of candidates."""
    weights = make_weights(41, 9, 17, seed=5)
    x, y, _ = chunk(41, 17, 13, 3, seed=6)
    config = TrainConfig(batch_size=3, hidden_size=17, reduction="mean", sampled_softmax=12, device="cpu")
    step = Chunk(x, y, 0.1, some_regularization(41, 9, 17, y, 12))
    outcomes, gradients = [], []
    for most in (None, 41):
        trainer = TorchTrainer(weights, config)
        tensors = {name: torch.from_numpy(array) for name, array in arrays_of(step, most).items()}
        outcomes.append(trainer._gradients(tensors))
        gradients.append([parameter.grad for parameter in trainer.parameters])
    assert tensors["ids"].shape == (41,)
    torch.testing.assert_close(*outcomes, rtol=1e-6, atol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_a_layout_keeps_what_is_under_way() -> None:
    x, y, _ = chunk(41, 17, 13, 3, seed=6)
    first = arrays_of(Chunk(x, y, 0.1, some_regularization(41, 9, 17, y, 12)), 41)
    layout = Layout(first, torch.device("cpu"), ahead=2)
    addresses = [tensor.data_ptr() for tensor in layout.tensors.values()]
    for rate in (0.1, 0.2, 0.3):
        arrays = arrays_of(Chunk(y, x, rate, some_regularization(41, 9, 17, y, 12)), 41)
        assert shapes(arrays) == shapes(first)
        layout.put(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(layout.tensors[name].numpy(), array, err_msg=name)
    assert [tensor.data_ptr() for tensor in layout.tensors.values()] == addresses
    assert {float(view["learning_rate"]) for view in layout._views} == {np.float32(0.2), np.float32(0.3)}


@pytest.mark.parametrize("backend", TRAINERS)
def test_steps_that_are_begun_together_are_the_same_steps(backend: str, tmp_path: Path) -> None:
    losses = []
    for ahead in (1, 3):
        run = small_run(TRAINERS[backend], tmp_path / str(ahead), evaluate_every="5steps", clip=1.0)
        run.trainer.steps_ahead = ahead
        train(run)
        losses.append([(row["step"], row["train_loss"], row["validation_loss"]) for row in run.progress.history])
    assert losses[0] == losses[1]
    assert [step for step, *_ in losses[0]] == [0, 5, 10, 15, 20, 21]


def test_steps_are_begun_together_up_to_a_decision(tmp_path: Path) -> None:
    run = small_run(TorchTrainer, tmp_path, evaluate_every="5steps")  # 7 steps an epoch
    run.trainer.steps_ahead = 4
    counts = {}
    for step in range(7):
        run.progress.step = step
        counts[step] = steps_until_decision(run)
    assert counts == {0: 4, 1: 4, 2: 3, 3: 2, 4: 1, 5: 2, 6: 1}


@pytest.mark.parametrize("index", [0, 2])
def test_a_loss_that_is_read_late_names_its_step(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(TorchTrainer, tmp_path)
    run.trainer.steps_ahead = 4
    results = [(1.0, 1.0)] * 4
    results[index] = (1.0, np.inf) if index else (np.nan, 1.0)
    monkeypatch.setattr(run.trainer, "train_steps", lambda chunks: results[: len(list(chunks))])
    with pytest.raises(Diverged, match=f"at step {index + 1} of epoch 1"):
        train(run)


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_tf32_is_refused_where_there_is_none(trainer: type[TorchTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--precision tf32 .* float32 and bfloat16"):
        trainer.check(TrainConfig(precision="tf32"))


@pytest.mark.parametrize("pieces", [1, 3, 16])
@pytest.mark.parametrize(("scale", "size"), [(1.0, 2000), (1.0, 70), (1.0, 2), (30.0, 2000)])
def test_a_text_is_read_as_one_sequence(pieces: int, scale: float, size: int) -> None:
    """With weights 30 times as large the state forgets nothing: the smallest difference grows."""
    weights = make_weights(41, 9, 17, seed=5)
    weights.Whh[:] *= scale
    model = RNN(weights).double()  # in float32 two orders of summation would part in a network that does not forget
    ids = np.random.default_rng(6).integers(0, 41, size, dtype=np.int32)
    want = sum(torch.nn.functional.cross_entropy(logits, y, reduction="sum") for logits, y in model.predictions(ids))
    parts = list(torch_evaluation.losses(StepLoss(model), torch.tensor(ids).long(), pieces))
    assert sum(count for _, count in parts) == size - 1
    assert sum(loss for loss, _ in parts) == pytest.approx(want.item(), rel=1e-6)
    first = (size - 1) // 3
    split = [
        *torch_evaluation.losses(StepLoss(model), torch.tensor(ids[: first + 1]).long(), pieces),
        *torch_evaluation.losses(StepLoss(model), torch.tensor(ids).long(), pieces, first),
    ]
    assert sum(count for _, count in split) == size - 1
    assert sum(loss for loss, _ in split) == pytest.approx(want.item(), rel=1e-6)


def test_a_text_is_read_as_one_sequence_by_a_network_that_forgets_slowly() -> None:
    """Small states, with Whh of spectral radius 0.98: what is left of the start of a piece is below 1e-2 long before
    it no longer matters.
    """
    weights = make_weights(41, 9, 17, seed=5)
    weights.Whh[:] *= 0.98 / np.abs(np.linalg.eigvals(weights.Whh)).max()
    weights.Wxh[:] *= 0.02
    weights.bh[:] *= 0.02
    weights.Why[:] *= 5.0
    model = RNN(weights).double()
    ids = np.random.default_rng(6).integers(0, 41, 2000, dtype=np.int32)
    want = sum(torch.nn.functional.cross_entropy(logits, y, reduction="sum") for logits, y in model.predictions(ids))
    got = sum(loss for loss, _ in torch_evaluation.losses(StepLoss(model), torch.tensor(ids).long(), 16))
    assert got == pytest.approx(want.item(), rel=1e-8)
