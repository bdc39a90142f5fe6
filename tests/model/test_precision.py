"""Products of bfloat16 operands: what they cost, on every instruction set and in torch."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS, force_kernels, make_weights
from gradients import by_c, by_torch, by_torch_rounded, chunk, some_regularization

from rnnlm.binding import Workspace
from rnnlm.checkpoint import PARAMETERS
from rnnlm.library import RNNInputError, RNNNonFiniteError
from rnnlm.regularization import NO_REGULARIZATION

SIZES = [(40, 9, 17, 33, 2, 0), (1031, 20, 101, 70, 5, 600), (577, 300, 33, 20, 8, 100), (1500, 8, 99, 13, 3, 0)]


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """The norm of the difference: numbers that are rounded the other way are few, but off by a whole rounding."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("v,e,h,t,b,sampled", SIZES)
@pytest.mark.parametrize("regularized", [False, True])
def test_c_and_torch_round_the_same_operands(
    v: int, e: int, h: int, t: int, b: int, sampled: int, regularized: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_kernels(isa, monkeypatch)
    weights = make_weights(v, e, h, seed=5)
    x, y, state = chunk(v, h, t, b, seed=6)
    regularization = some_regularization(v, e, h, y, sampled) if regularized else NO_REGULARIZATION
    exact_loss, exact, _ = by_torch(weights, x, y, state, regularization)
    want_loss, want, want_state = by_torch_rounded(weights, x, y, state, regularization)
    loss, grads, last = by_c(weights, x, y, state, regularization, precision="bfloat16")
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert loss != pytest.approx(exact_loss, rel=1e-9)  # something was rounded
    assert distance(last, want_state) < 2e-3
    for name in PARAMETERS:
        assert distance(grads[name], want[name]) < 2e-3, name
        assert 1e-5 < distance(grads[name], exact[name]) < 5e-2, name


def test_an_unknown_precision_is_refused() -> None:
    for precision in ("int8", "float16", ""):
        with pytest.raises(RNNInputError, match=f"float32 or bfloat16 in training, got '{precision}'"):
            Workspace(13, 9, 6, max_steps=1, max_batch=1, threads=1, precision=precision)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
def test_weights_that_rounding_makes_infinite_are_refused(value: float) -> None:
    weights = make_weights(13, 9, 6)
    weights.Why[2, 3] = value  # 3.4e38 is finite until it is rounded
    x, y, state = chunk(13, 6, 4, 2, seed=6)
    with pytest.raises(RNNNonFiniteError):
        by_c(weights, x, y, state, precision="bfloat16")
