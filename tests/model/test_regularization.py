"""Dropout and sampled softmax: what is drawn, and what both back ends make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS, force_kernels, make_weights, relative_error
from gradients import by_c, by_torch, chunk, some_regularization

from rnnlm.binding import Workspace
from rnnlm.checkpoint import PARAMETERS
from rnnlm.library import RNNError, RNNInputError, RNNNonFiniteError
from rnnlm.regularization import NO_REGULARIZATION, Candidates, CandidateSampler, Regularization, Regularizer

SIZES = [  # V, E, H, T, B, words sampled
    (13, 9, 6, 11, 1, 4),
    (40, 3, 17, 33, 2, 1),
    (1031, 20, 101, 70, 5, 600),
    (1500, 8, 99, 13, 3, 1500),
]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("v,e,h,t,b,sampled", SIZES)
@pytest.mark.parametrize("full", [False, True])
def test_gradients_match_float64(
    v: int, e: int, h: int, t: int, b: int, sampled: int, full: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_kernels(isa, monkeypatch)
    weights = make_weights(v, e, h, seed=5)
    x, y, state = chunk(v, h, t, b, seed=6)
    regularization = some_regularization(v, e, h, y, 0 if full else sampled)
    want_loss, want, want_state = by_torch(weights, x, y, state, regularization)
    loss, grads, last = by_c(weights, x, y, state, regularization)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    assert relative_error(last, want_state) < 1e-5
    for name in PARAMETERS:
        assert relative_error(grads[name], want[name]) < 1e-5, name


def test_words_that_are_no_candidates_have_no_gradient() -> None:
    weights = make_weights(100, 5, 7, seed=1)
    x, y, state = chunk(100, 7, 4, 2, seed=2)
    regularization = some_regularization(100, 5, 7, y, 10)
    _, grads, _ = by_c(weights, x, y, state, regularization)
    others = np.setdiff1d(np.arange(100), regularization.candidates.ids)
    assert others.size > 50
    assert not grads["Why"][:, others].any() and not grads["by"][others].any()
    assert grads["by"][regularization.candidates.ids].all()


def test_a_sample_of_all_words_is_the_full_softmax() -> None:
    weights = make_weights(300, 5, 7, seed=1)
    x, y, state = chunk(300, 7, 6, 2, seed=2)
    sampler = CandidateSampler(np.arange(300), 300)
    regularization = Regularization(candidates=sampler.draw(y, np.random.default_rng(0)))
    assert (regularization.candidates.ids == np.arange(300)).all() and not regularization.candidates.correction.any()
    loss, grads, _ = by_c(weights, x, y, state, regularization)
    want_loss, want, _ = by_c(weights, x, y, state, NO_REGULARIZATION)
    assert loss == want_loss
    for name in PARAMETERS:
        assert (grads[name] == want[name]).all(), name


def test_the_mean_of_many_samples_is_the_full_gradient() -> None:
    """The claim on which sampled softmax rests: corrected gradients scatter, and have next to no bias."""
    weights = make_weights(400, 5, 16, seed=1)
    rng = np.random.default_rng(2)
    share = 1.0 / np.arange(1, 401)
    share /= share.sum()
    counts = np.maximum((share * 1e5).astype(int), 1)
    total, errors = {name: 0.0 for name in PARAMETERS}, {}
    full = {name: 0.0 for name in PARAMETERS}
    sampler = CandidateSampler(counts, 120)
    for _ in range(300):
        x, y = rng.choice(400, (2, 10, 8), p=share).astype(np.int32)
        state = np.zeros((8, 16), np.float32)
        for sums, regularization in (
            (total, Regularization(candidates=sampler.draw(y, rng))),
            (full, NO_REGULARIZATION),
        ):
            _, grads, _ = by_c(weights, x, y, state, regularization, threads=1)
            for name in PARAMETERS:
                sums[name] = sums[name] + grads[name].astype(np.float64)
    for name in PARAMETERS:
        errors[name] = np.linalg.norm(total[name] - full[name]) / np.linalg.norm(full[name])
    assert max(errors.values()) < 0.05, errors


def test_candidates_hold_the_targets_and_come_as_often_as_they_should() -> None:
    counts = np.array([100_000, 5000, 300, 20, 20, 1, 1, 1, 1, 0] + [5] * 90)
    sampler = CandidateSampler(counts, 20)
    y = np.array([[7], [42]], dtype=np.int32)
    rng = np.random.default_rng(3)
    seen = np.zeros(100)
    for _ in range(4000):
        drawn = sampler.draw(y, rng)
        assert (np.diff(drawn.ids) > 0).all()
        assert (drawn.ids[drawn.targets] == y).all()
        seen[drawn.ids] += 1
    assert seen[0] == 4000  # so frequent that it is always there
    assert (seen[[7, 42]] == 4000).all()
    others = np.setdiff1d(np.arange(100), [7, 42])
    assert np.abs(seen[others] / 4000 - sampler._chance[others]).max() < 0.04
    assert sampler._chance.sum() == pytest.approx(20)


def test_the_correction_is_that_of_how_often_a_word_is_a_candidate() -> None:
    """Among the sampled words or the chunk's own: over chunks of independent words, as the text has them."""
    counts = np.array([400, 100, 60, 30, 30, 10, 5, 5, 1, 1, 1, 0] + [3] * 20)
    share, draws = counts / counts.sum(), 20_000
    sampler, rng = CandidateSampler(counts, 6), np.random.default_rng(4)
    seen, corrections = np.zeros(counts.size), np.full(counts.size, np.nan)
    for y in rng.choice(counts.size, (draws, 4, 3), p=share).astype(np.int32):
        drawn = sampler.draw(y, rng)
        seen[drawn.ids] += 1
        corrections[drawn.ids] = drawn.correction
    chance = np.exp(-corrections)
    error = np.sqrt(chance * (1.0 - chance) / draws)
    assert (np.abs(seen / draws - chance) <= 4.5 * error + 1e-6).all()
    assert chance.min() < 0.1 and chance.max() == pytest.approx(1.0, abs=1e-3)


def test_regularization_depends_on_seed_and_step_only() -> None:
    y = np.zeros((3, 2), dtype=np.int32)

    def draw(seed: int, step: int) -> Regularization:
        return Regularizer(seed=seed, input_size=5, hidden_size=50, dropout=0.5, input_dropout=0.1).draw(step, y)

    first, again = draw(1, 7), draw(1, 7)
    assert (first.output_mask == again.output_mask).all() and (first.input_mask == again.input_mask).all()
    assert (draw(1, 8).output_mask != first.output_mask).any()
    assert (draw(2, 7).output_mask != first.output_mask).any()
    assert set(np.unique(first.output_mask)) == {0.0, 2.0}
    assert first.candidates is None


def test_no_dropout_means_no_mask() -> None:
    regularization = Regularizer(seed=1, input_size=5, hidden_size=50).draw(0, np.zeros((3, 2), dtype=np.int32))
    assert regularization.input_mask is None and regularization.output_mask is None
    masks = [Regularizer(seed=1, input_size=5, hidden_size=50, **{name: 0.5}) for name in ("dropout", "input_dropout")]
    drawn = [regularizer.draw(0, np.zeros((3, 2), dtype=np.int32)) for regularizer in masks]
    assert [(one.input_mask is None, one.output_mask is None) for one in drawn] == [(True, False), (False, True)]


def test_dropped_words_are_a_share_of_the_vocabulary_drawn_for_each_step() -> None:
    y = np.zeros((3, 2), dtype=np.int32)
    regularizer = Regularizer(seed=1, input_size=5, hidden_size=50, word_dropout=0.2, vocab_size=5000)
    first, second = (regularizer.draw(step, y) for step in (0, 1))
    assert first.dropped_words.shape == (5000,) and abs(first.dropped_words.mean() - 0.2) < 0.03
    assert (first.dropped_words != second.dropped_words).any()
    assert first.of_rows(slice(1, 2)).dropped_words is first.dropped_words  # the same in all processes
    assert first.output_mask is None and first.candidates is None


def test_a_dropped_word_is_read_as_zeros_and_stays_a_target() -> None:
    weights = make_weights(12, 5, 7, seed=1)
    x, y, state = chunk(12, 7, 9, 2, seed=2)
    dropped = np.isin(np.arange(12), [x[0, 0], y[0, 0]])
    loss, grads, _ = by_c(weights, x, y, state, Regularization(dropped_words=dropped))
    zeroed = replace(weights, embeddings=np.where(dropped[:, None], np.float32(0), weights.embeddings))
    want_loss, want, _ = by_c(zeroed, x, y, state)
    assert loss == want_loss and loss != by_c(weights, x, y, state)[0]
    for name in PARAMETERS:
        assert np.array_equal(grads[name], want[name]), name


class TestRefusals:
    """Nothing is written where the library says no."""

    V, E, H = 20, 3, 4

    def call(self, regularization: Regularization, max_candidates: int = 0, y: np.ndarray | None = None) -> None:
        weights = make_weights(self.V, self.E, self.H, seed=1)
        x, targets, state = chunk(self.V, self.H, 2, 2, seed=1)
        work = Workspace(self.V, self.E, self.H, max_steps=2, max_batch=2, threads=1, max_candidates=max_candidates)
        params, before = weights.flat_parameters(), state.copy()
        grads = np.full(work.gradient_count(regularization.candidates), 7.0, dtype=np.float32)
        try:
            work.loss_grad(
                params, weights.embeddings, x, targets if y is None else y, state, grads, 1.0, regularization
            )
        finally:
            assert (grads == 7.0).all() and (state == before).all()

    def candidates(self, ids: list[int], targets: int = 0, correction: float = 0.0) -> Regularization:
        return Regularization(
            candidates=Candidates(
                ids=np.array(ids, dtype=np.int32),
                correction=np.full(len(ids), correction, dtype=np.float32),
                targets=np.full((2, 2), targets, dtype=np.int32),
            )
        )

    @pytest.mark.parametrize("ids", [[3, 3], [4, 2], [-1, 2], [3, 20]])
    def test_ids_that_do_not_ascend_or_are_no_words(self, ids: list[int]) -> None:
        with pytest.raises(RNNInputError, match="outside the vocabulary"):
            self.call(self.candidates(ids), max_candidates=5)

    @pytest.mark.parametrize("target", [-1, 3])
    def test_a_target_that_is_no_candidate(self, target: int) -> None:
        with pytest.raises(RNNInputError, match="outside the vocabulary"):
            self.call(self.candidates([1, 2, 3], targets=target), max_candidates=5)

    def test_more_candidates_than_the_workspace_takes(self) -> None:
        with pytest.raises(RNNInputError, match="out of range"):
            self.call(self.candidates([1, 2, 3]), max_candidates=2)

    def test_a_workspace_of_the_other_kind(self) -> None:
        with pytest.raises(RNNInputError, match="option"):
            self.call(self.candidates([1, 2, 3]))
        with pytest.raises(RNNInputError, match="option"):
            self.call(NO_REGULARIZATION, max_candidates=3)

    @pytest.mark.parametrize("most", [-1, 21])
    def test_a_workspace_for_more_candidates_than_words(self, most: int) -> None:
        with pytest.raises(RNNInputError, match=f"candidates={most}"):
            Workspace(self.V, self.E, self.H, max_steps=2, max_batch=2, threads=1, max_candidates=most)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite(self, bad: float) -> None:
        with pytest.raises(RNNNonFiniteError):
            self.call(self.candidates([1, 2, 3], correction=bad), max_candidates=5)
        for name, width in (("input_mask", self.E), ("output_mask", self.H)):
            mask = np.ones((2, width), dtype=np.float32)
            mask[1, 1] = bad
            with pytest.raises(RNNNonFiniteError):
                self.call(Regularization(**{name: mask}))

    def test_a_loss_without_gradient_needs_a_workspace_for_all_words(self) -> None:
        work = Workspace(self.V, self.E, self.H, max_steps=2, max_batch=2, threads=1, max_candidates=5)
        weights = make_weights(self.V, self.E, self.H, seed=1)
        x, y, state = chunk(self.V, self.H, 2, 2, seed=1)
        with pytest.raises(RNNError, match="option"):
            work.loss(weights.flat_parameters(), weights.embeddings, x, y, state)

    def test_dropped_words_of_another_shape_and_tokens_that_are_no_words(self) -> None:
        with pytest.raises(RNNInputError, match="shape"):
            self.call(Regularization(dropped_words=np.zeros(self.V + 1, dtype=np.bool_)))
        work = Workspace(self.V, self.E, self.H, max_steps=1, max_batch=1, threads=1)
        weights = make_weights(self.V, self.E, self.H, seed=1)
        y, state, grads = np.zeros((1, 1), np.int32), np.zeros((1, self.H), np.float32), weights.flat_parameters()
        nothing = Regularization(dropped_words=np.zeros(self.V, dtype=np.bool_))
        for token in (-1, self.V):
            x = np.full((1, 1), token, dtype=np.int32)
            with pytest.raises(RNNInputError, match=str(token)):
                work.loss_grad(weights.flat_parameters(), weights.embeddings, x, y, state, grads, 1.0, nothing)

    def test_a_mask_of_another_shape_or_type(self) -> None:
        with pytest.raises(RNNInputError, match="shape"):
            self.call(Regularization(output_mask=np.ones((2, 5), dtype=np.float32)))
        with pytest.raises(RNNInputError, match="float64"):
            self.call(Regularization(output_mask=np.ones((2, 4))))
