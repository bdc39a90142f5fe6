"""The C library's loss and gradients against torch in float64, at unequal sizes."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS, force_kernels, make_weights, relative_error
from gradients import by_c, by_torch, chunk

from rnnlm.binding import Decoder, Model, Workspace
from rnnlm.checkpoint import PARAMETERS, Weights

SIZES = [  # V, E, H, T, B: all different, and no multiples of a kernel's block
    (13, 9, 6, 11, 1),
    (5, 7, 3, 1, 1),
    (40, 3, 17, 33, 2),
    (31, 8, 99, 13, 3),
    (1031, 20, 101, 70, 5),
    (2, 4, 1, 3, 2),
]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("v,e,h,t,b", SIZES)
def test_gradients_match_float64_on_every_instruction_set(
    v: int, e: int, h: int, t: int, b: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_kernels(isa, monkeypatch)
    test_gradients_match_float64(v, e, h, t, b, seed=7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("v,e,h,t,b", SIZES)
def test_gradients_match_float64(v: int, e: int, h: int, t: int, b: int, seed: int) -> None:
    weights = make_weights(v, e, h, seed)
    x, y, state = chunk(v, h, t, b, seed)
    want_loss, want, want_state = by_torch(weights, x, y, state)
    loss, grads, last = by_c(weights, x, y, state)
    assert loss == pytest.approx(want_loss, rel=1e-5, abs=1e-6)
    assert relative_error(last, want_state) < 1e-5
    for name in PARAMETERS:
        assert relative_error(grads[name], want[name]) < 1e-5, name


def test_one_word_has_all_probability() -> None:
    """V = 1: nothing to learn. Relative errors mean nothing beside gradients of exactly zero."""
    weights = make_weights(1, 4, 3)
    loss, grads, _ = by_c(weights, *chunk(1, 3, 3, 2, 0))
    assert loss == pytest.approx(0.0, abs=1e-6)
    assert all(np.abs(gradient).max() < 1e-6 for gradient in grads.values())


def test_scale_multiplies_only_the_gradient() -> None:
    weights = make_weights(13, 9, 6)
    x, y, state = chunk(13, 6, 7, 2, 0)
    loss, grads, _ = by_c(weights, x, y, state)
    scaled_loss, scaled, _ = by_c(weights, x, y, state, scale=0.125)
    assert scaled_loss == loss
    for name in PARAMETERS:
        assert relative_error(scaled[name], grads[name] * 0.125) < 1e-6, name


def test_directional_derivative() -> None:
    """Without torch: the loss along a direction moves as the gradient says."""
    weights = make_weights(40, 5, 17)
    x, y, state = chunk(40, 17, 12, 3, 1)
    _, grads, _ = by_c(weights, x, y, state)
    flat, gradient = weights.flat_parameters(), np.concatenate([grads[name].ravel() for name in PARAMETERS])
    work = Workspace(40, 5, 17, max_steps=12, max_batch=3, threads=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        direction = rng.standard_normal(flat.size)
        direction /= np.linalg.norm(direction)
        step = 1e-2

        def loss(sign: float, direction: np.ndarray = direction, step: float = step) -> float:
            moved = (flat + sign * step * direction).astype(np.float32)
            return work.loss(moved, weights.embeddings, x, y, state.copy())

        slope = (loss(1) - loss(-1)) / (2 * step)
        assert slope == pytest.approx(float(gradient @ direction), abs=1e-4 * float(np.linalg.norm(gradient)))


def test_two_chunks_with_carried_state_are_one_long_chunk() -> None:
    weights = make_weights(40, 5, 17)
    x, y, start = chunk(40, 17, 20, 3, 2)
    work = Workspace(40, 5, 17, max_steps=20, max_batch=3, threads=1)
    params = weights.flat_parameters()
    whole, parts = start.copy(), start.copy()
    loss = work.loss(params, weights.embeddings, x, y, whole)
    first = work.loss(params, weights.embeddings, x[:7], y[:7], parts)
    second = work.loss(params, weights.embeddings, x[7:], y[7:], parts)
    assert first + second == pytest.approx(loss, rel=1e-6)
    assert np.allclose(parts, whole, atol=1e-6)
    assert not np.allclose(whole, start)


def test_loss_and_loss_grad_agree() -> None:
    weights = make_weights(40, 5, 17)
    x, y, state = chunk(40, 17, 20, 3, 3)
    loss, _, _ = by_c(weights, x, y, state)
    work = Workspace(40, 5, 17, max_steps=20, max_batch=3, threads=2)
    assert work.loss(weights.flat_parameters(), weights.embeddings, x, y, state.copy()) == pytest.approx(loss, rel=1e-7)


def test_log_probabilities_sum_to_the_loss() -> None:
    weights = make_weights(40, 5, 17)
    ids = np.random.default_rng(3).integers(0, 40, 51, dtype=np.int32)
    loss, _, _ = by_c(weights, ids[:-1, None], ids[1:, None], np.zeros((1, 17), dtype=np.float32))
    logprobs = Decoder(Model(weights)).score(ids)
    assert -logprobs.sum(dtype=np.float64) == pytest.approx(loss, rel=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    weights = make_weights(1031, 20, 33)
    x, y, state = chunk(1031, 33, 70, 5, 4)  # more than one tile of tokens, and three blocks of words
    loss, grads, last = by_c(weights, x, y, state, threads=1)
    for threads in (1, 2, 3, 7):
        again, other, other_last = by_c(weights, x, y, state, threads=threads)
        assert again == loss and np.array_equal(other_last, last)
        for name in PARAMETERS:
            assert np.array_equal(other[name], grads[name]), (name, threads)


def test_extreme_logits() -> None:
    """Logits of +-80: softmax without the subtraction of the maximum would overflow."""
    weights = make_weights(33, 4, 5)
    by = np.where(np.arange(33) % 2, 80, -80).astype(np.float32)
    weights = Weights(**{**{n: getattr(weights, n) for n in ("embeddings", *PARAMETERS)}, "by": by})
    x, y, state = chunk(33, 5, 6, 2, 5)
    want_loss, want, _ = by_torch(weights, x, y, state)
    loss, grads, _ = by_c(weights, x, y, state)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    for name in PARAMETERS:
        assert relative_error(grads[name], want[name]) < 1e-5, name
