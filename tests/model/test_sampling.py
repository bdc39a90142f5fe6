"""How a token is drawn: both back ends against a plain NumPy rule, and the options that lead to it."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_checkpoint, make_weights
from hypothesis import given
from hypothesis import strategies as st

import rnn
import torch_rnn
from rnnlm import checkpoint, library
from rnnlm.binding import Decoder, Model, sampling_rows, set_biases
from rnnlm.language_model import LanguageModel
from rnnlm.sampling import BIAS, Biases, PromptError, Sampling, distribution, second_number

VOCAB = 700  # more than one block of the C library
HALF = 0.5 - 2.0**-30

_decoder = Decoder(Model(make_weights(VOCAB, 3, 4)))


def kept_tokens(
    logits: np.ndarray, sampling: Sampling, banned: int | None, biases: np.ndarray
) -> tuple[np.ndarray, bool]:
    """(weight of each token that can be drawn, 0 for the others; whether rounding cannot change which these are)."""
    z = logits.copy()
    z[biases["token"]] += biases["value"]
    z = z.astype(np.float64)
    if banned is not None:
        z[banned] = -np.inf
    weights = np.exp((z - z.max()) / float(np.float32(sampling.temperature)))
    order = np.lexsort((np.arange(z.size), -z))
    kept = min(sampling.top_k, z.size) or z.size
    whole = np.cumsum(weights[order[:kept]])
    certain = True
    if sampling.top_p < 1.0:
        counts = [
            int(np.searchsorted(whole, share * whole[-1])) + 1
            for share in sampling.top_p * np.array([1, 1 - 1e-5, 1 + 1e-5])
        ]
        kept, certain = min(counts[0], kept), len(set(counts)) == 1
    weights[order[kept:]] = 0.0
    return weights, certain


def tokens_at(weights: np.ndarray, u: float) -> np.ndarray:
    """The tokens whose place in the cumulative distribution is that of u: more than one where rounding decides."""
    cumulative = np.cumsum(weights) / weights.sum()
    fits = (cumulative >= u - 1e-5) & (cumulative - weights / weights.sum() <= u + 1e-5)
    return np.flatnonzero(fits & (weights > 0.0))


def possible_draws(
    logits: np.ndarray, sampling: Sampling, u: float, banned: int | None, biases: np.ndarray
) -> list[int] | None:
    """What the rule of rnn_sampling can give, up to rounding; None where that decides what top_p keeps."""
    kept, certain = kept_tokens(logits, sampling, banned, biases)
    if not certain:
        return None
    whole, _ = kept_tokens(logits, replace(sampling, top_p=1.0), banned, biases)
    first = tokens_at(whole, u)
    drawn = set(first[kept[first] > 0.0].tolist())
    if (kept[first] == 0.0).any():
        drawn |= set(tokens_at(kept, second_number(u)).tolist())
    return sorted(drawn)


def draw_in_c(logits: np.ndarray, sampling: Sampling, u: float, banned: int | None, biases: np.ndarray) -> int:
    """By rnn_sample, which no Python code calls otherwise."""
    row = sampling_rows(1, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, banned=banned)
    row["u"] = u
    set_biases(row, biases)
    token, logprob = ctypes.c_int32(), ctypes.c_float()
    status = library.library().rnn_sample(_decoder._handle, logits, row, ctypes.byref(token), ctypes.byref(logprob))
    assert status == 0
    z = logits.astype(np.float64)
    assert logprob.value == pytest.approx(z[token.value] - z.max() - math.log(np.exp(z - z.max()).sum()), abs=1e-4)
    return token.value


def draw_in_torch(logits: np.ndarray, sampling: Sampling, u: float, banned: int | None, biases: np.ndarray) -> int:
    return torch_rnn.draw(torch.tensor(logits).double(), sampling, u, banned, biases)


@st.composite
def draws(draw: st.DrawFn) -> tuple[np.ndarray, Sampling, int | None, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.standard_normal(VOCAB) * draw(st.sampled_from([0.0, 0.1, 1.0, 3.0, 20.0]))
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    if draw(st.booleans()):
        logits -= np.log1p(np.arange(VOCAB))
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.1, 0.7, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 40, VOCAB - 1, VOCAB, 2**31 - 1])),
        top_p=draw(st.sampled_from([1e-6, 0.25, 0.5, 0.9, 0.99, 1.0])),
    )
    tokens = np.unique(rng.integers(0, VOCAB, draw(st.integers(0, 12))))
    biases = np.zeros(tokens.size, dtype=BIAS)
    biases["token"], biases["value"] = tokens, rng.uniform(-5, 5, tokens.size)
    return logits.astype(np.float32), sampling, draw(st.none() | st.integers(0, VOCAB - 1)), biases


@pytest.mark.parametrize("one", [draw_in_c, draw_in_torch])
@given(case=draws(), us=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8))
def test_a_draw_follows_the_rule(one, case, us: list[float]) -> None:
    """Without top_p, the order of u is that of the tokens."""
    logits, sampling, banned, biases = case
    before = -1
    for u in sorted(us):
        token = one(logits, sampling, u, banned, biases)
        assert 0 <= token < VOCAB and token != banned
        possible = possible_draws(logits, sampling, u, banned, biases)
        assert possible is None or token in possible
        if sampling.top_p == 1.0:
            assert token >= before
            before = token


@given(case=draws(), u=st.floats(0, 1, exclude_max=True))
def test_both_back_ends_draw_the_same(case, u: float) -> None:
    logits, sampling, banned, biases = case
    possible = possible_draws(logits, sampling, u, banned, biases)
    if possible is not None and len(possible) == 1:  # where rounding cannot decide
        assert draw_in_c(logits, sampling, u, banned, biases) == draw_in_torch(logits, sampling, u, banned, biases)


@given(case=draws())
def test_the_distribution_is_that_of_the_draws(case) -> None:
    logits, sampling, banned, _ = case
    weights, certain = kept_tokens(logits, sampling, banned, np.zeros(0, dtype=BIAS))
    shown = distribution(logits, sampling, banned)
    assert shown.sum() == pytest.approx(1.0) and (banned is None or shown[banned] == 0.0)
    if certain:
        assert np.allclose(shown, weights / weights.sum(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-46, 1e-40])
def test_the_smallest_temperatures(temperature: float) -> None:
    """Below the range of the C library's floats they are 0, everywhere."""
    logits = np.full(VOCAB, 0.5, dtype=np.float32)
    logits[[1, 2, 3]] = 2.0, 3.0, 2.0
    sampling, none = Sampling(temperature=temperature), np.zeros(0, dtype=BIAS)
    is_greedy = temperature < 1e-45
    assert distribution(logits, sampling, banned=2)[:4].tolist() == [
        0.0,
        *([1.0, 0.0, 0.0] if is_greedy else [0.5, 0.0, 0.5]),
    ]
    for one in (draw_in_c, draw_in_torch):
        assert [one(logits, sampling, u, 2, none) for u in (0.0, 0.4, 0.6, 0.99)] == [
            1,
            1,
            *([1, 1] if is_greedy else [3, 3]),
        ]


@pytest.mark.parametrize("one", [draw_in_c, draw_in_torch])
def test_ties_and_edges_of_top_p(one) -> None:
    """Of equal tokens the lowest ids are kept, as few as reach the share."""
    none = np.zeros(0, dtype=BIAS)
    logits = np.full(VOCAB, -60.0, dtype=np.float32)
    logits[[5, 100, 600, 650]] = 2.0
    for top_p, kept in (
        (1e-6, {5}),
        (0.25, {5}),
        (0.26, {5, 100}),
        (0.5, {5, 100}),
        (0.75, {5, 100, 600}),
        (0.76, {5, 100, 600, 650}),
        (0.9999, {5, 100, 600, 650}),
    ):
        us = [*np.arange(64) / 64, 1 - 2.0**-53]
        assert {one(logits, Sampling(top_p=top_p), u, None, none) for u in us} == kept
    # One that is kept stays as drawn; another is drawn again, by the second number, of the two that share the whole.
    assert one(logits, Sampling(top_p=0.5), HALF, None, none) == 100
    for u in (0.5, 0.6, 0.7, 0.8, 0.9, 1 - 2.0**-53):
        assert one(logits, Sampling(top_p=0.5), u, None, none) == (5 if second_number(u) < 0.5 else 100)
    # top_p is of what top_k has left, and neither counts the banned token.
    assert one(logits, Sampling(top_k=2, top_p=0.5), 1 - 2.0**-53, None, none) == 5
    assert one(logits, Sampling(top_k=2, top_p=0.51), 1 - 2.0**-53, None, none) == 100
    assert one(logits, Sampling(top_p=0.33), 1 - 2.0**-53, 5, none) == 100


def test_the_second_number() -> None:
    """As SplitMix64 gives it for its first seeds; over many u, and over those close together, it is uniform."""
    assert second_number(0.0) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53
    assert second_number(2.0**-53) == (0x910A2DEC89025CC1 >> 11) * 2.0**-53
    for us in (np.random.default_rng(3).random(20_000), 0.95 + np.arange(20_000) * 2.0**-50):
        counts = np.histogram([second_number(float(u)) for u in us], bins=50, range=(0.0, 1.0))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 49 + 5 * math.sqrt(98)


@pytest.mark.parametrize(("one", "draws"), [(draw_in_c, 200_000), (draw_in_torch, 20_000)])
@pytest.mark.parametrize(("top_k", "top_p"), [(300, 0.8), (0, 0.9), (0, 0.3)])
def test_chi_square_of_top_p(one, draws: int, top_k: int, top_p: float) -> None:
    """Draws of a fixed seed follow the renormalized distribution of what is kept, also where most are drawn again."""
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(VOCAB) * 2).astype(np.float32)
    sampling, none = Sampling(temperature=1.3, top_k=top_k, top_p=top_p), np.zeros(0, dtype=BIAS)
    weights, certain = kept_tokens(logits, sampling, None, none)
    assert certain
    tokens = [one(logits, sampling, u, None, none) for u in rng.random(draws)]
    counts = np.bincount(tokens, minlength=VOCAB)
    kept = weights > 0
    expected = draws * weights[kept] / weights.sum()
    assert counts[~kept].sum() == 0
    square = ((counts[kept] - expected) ** 2 / expected).sum()
    assert abs(square - (kept.sum() - 1)) < 5 * math.sqrt(2 * kept.sum())


# ---- The options of a generation -----------------------------------------------------------------------------------


@pytest.fixture
def both(weights_file: Path) -> list[LanguageModel]:
    return [rnn.RNN.load(weights_file), torch_rnn.RNN.load(weights_file)]


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.5},
        {"top_p": 0.9, "top_k": 7},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7, "temperature": 0.0},
        {"frequency_penalty": -0.5, "presence_penalty": 0.3, "top_p": 0.8},
        {"logit_bias": {3: 4.0, 9: -100.0, 0: -1.5}},
        {"logit_bias": {3: 4.0}, "frequency_penalty": 1.0, "presence_penalty": 1.0, "temperature": 0.6},
    ],
)
def test_both_back_ends_write_the_same(both: list[LanguageModel], options: dict) -> None:
    options = {"max_tokens": 60, "temperature": 1.0, "seed": 11, "ignore_eos": True} | options
    ours, theirs = (model.generate("waa wab wac", **options) for model in both)
    plain = both[0].generate("waa wab wac", max_tokens=60, temperature=options["temperature"], seed=11, ignore_eos=True)
    assert [token.id for token in ours.tokens] == [token.id for token in theirs.tokens]
    assert [token.logprob for token in ours.tokens] == pytest.approx([t.logprob for t in theirs.tokens], abs=1e-5)
    assert ours.text != plain.text
    assert [token.id for token in both[0].stream("waa wab wac", **options)] == [token.id for token in ours.tokens]


def test_the_log_probability_is_that_of_the_model(both: list[LanguageModel]) -> None:
    """Whatever sampling does to the logits."""
    for model in both:
        written = model.generate("waa", top_p=0.3, presence_penalty=2.0, logit_bias={4: 50.0}, seed=2, max_tokens=6)
        scored = model.score("waa " + " ".join(token.word for token in written.tokens if token.word.isalpha()))
        wanted = [token.logprob for token in scored.tokens[1:]]
        assert [token.logprob for token in written.tokens][: len(wanted)] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_100_decides(both: list[LanguageModel], temperature: float) -> None:
    for model in both:
        options = {"temperature": temperature, "max_tokens": 20, "ignore_eos": True, "seed": 1}
        only = model.generate("waa", logit_bias={7: 100.0}, **options)
        assert {token.id for token in only.tokens} == {7}
        without = model.generate("waa", logit_bias={token: -100.0 for token in range(20)}, **options)
        assert min(token.id for token in without.tokens) >= 20


def test_greedy_with_a_frequency_penalty_repeats_nothing_at_once(both: list[LanguageModel]) -> None:
    """With the largest penalties on a model whose logits differ little, no word comes twice."""
    for model in both:
        options = {"temperature": 0.0, "max_tokens": 15, "ignore_eos": True}
        written = model.generate("waa", presence_penalty=2.0, frequency_penalty=2.0, **options).tokens
        assert len({token.id for token in written}) == 15


def test_biases_count_what_was_drawn() -> None:
    """Compared with a dictionary, over draws that come again and room that runs out."""
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=-0.25, logit_bias={9: 3.0, 2: -1.0})
    biases, times = Biases(sampling), {}
    rng = np.random.default_rng(0)
    for token in rng.integers(0, 90, 400).tolist():
        biases.drawn(token)
        times[token] = times.get(token, 0) + 1
        wanted = dict(sampling.logit_bias)
        for drawn, count in times.items():
            wanted[drawn] = wanted.get(drawn, 0.0) - 0.5 + 0.25 * count
        assert dict(zip(biases.rows["token"].tolist(), biases.rows["value"].tolist(), strict=True)) == wanted
        assert (np.diff(biases.rows["token"]) > 0).all()


@pytest.mark.parametrize("penalty", [2.0, -2.0])
def test_penalties_of_a_long_generation_stay_within_the_limit(both: list[LanguageModel], penalty: float) -> None:
    """After 500,000 draws of one token they would exceed what the C library takes."""
    sampling = Sampling(temperature=0.0, frequency_penalty=penalty)
    for model in both:
        sequence = model.open_sequence([], sampling)
        sequence._biases._times[3] = 600_000
        sequence._biases.drawn(3)
        assert sequence._biases.rows["value"].tolist() == [-1e6 if penalty > 0 else 1e6]
        assert (sequence.step(0, 0.5)[0] == 3) == (penalty < 0)


def test_without_penalties_nothing_is_counted() -> None:
    biases = Biases(Sampling(logit_bias={4: 1.0}))
    biases.drawn(3)
    assert biases.rows.tolist() == [(4, 1.0)] and Biases(Sampling()).rows.size == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_k": 1 << 31}, "top_k must be from 0 \\(all tokens\\) to 2,147,483,647, got 2,147,483,648"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.01}, "at most 1"),
        ({"top_p": math.nan}, "got nan"),
        ({"top_p": 1e-60}, "top_p"),  # 0 as a float of the C library
        ({"presence_penalty": 2.1}, "presence_penalty must be from -2 to 2, got 2.1"),
        ({"frequency_penalty": -2.1}, "frequency_penalty must be from -2 to 2, got -2.1"),
        ({"frequency_penalty": math.nan}, "frequency_penalty"),
        ({"logit_bias": {3: 100.5}}, "logit_bias of token 3 must be from -100 to 100, got 100.5"),
        ({"logit_bias": {3: math.nan}}, "logit_bias of token 3"),
        ({"logit_bias": {40: 1.0}}, "token ids from 0 to 39, got 40"),
        ({"logit_bias": {-1: 1.0}}, "got -1"),
    ],
)
def test_options_out_of_range(both: list[LanguageModel], option: dict, message: str) -> None:
    for model in both:
        for call in (model.generate, model.stream):
            with pytest.raises(PromptError, match=message):
                call("waa", **option)


def test_the_edges_of_the_ranges_are_taken(both: list[LanguageModel]) -> None:
    for model in both:
        for option in ({"top_p": 1e-7}, {"top_p": 1.0}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0}):
            assert model.generate("waa", **option, logit_bias={0: 100.0, 39: -100.0}, max_tokens=3).tokens


def test_unknown_is_not_drawn_whatever_its_bias(tmp_path: Path) -> None:
    source = make_checkpoint(vocab=20, embed=9, hidden=12)
    words = (*source.vocabulary[:7], "<UNK>", *source.vocabulary[8:])
    checkpoint.save(tmp_path / "unk.safetensors", replace(source, vocabulary=words))
    for load in (rnn.RNN.load, torch_rnn.RNN.load):
        model = load(tmp_path / "unk.safetensors")
        for temperature in (0.0, 1.0):
            written = model.generate("waa", logit_bias={7: 100.0}, temperature=temperature, max_tokens=20, top_p=0.9)
            assert all(token.id != 7 for token in written.tokens)


def test_top_p_on_the_command_line(weights_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rnn.main([str(weights_file), "waa", "--top-p", "1e-6", "--seed", "1", "--max-tokens", "4"]) == 0
    narrow = capsys.readouterr().out
    assert rnn.main([str(weights_file), "waa", "--temperature", "0", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out == narrow
    assert rnn.main([str(weights_file), "waa", "--top-p", "0"]) == 2
    assert "top_p must be above 0" in capsys.readouterr().err
