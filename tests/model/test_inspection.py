"""Inspections: both back ends against each other, autograd in float64, finite differences and brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_checkpoint

import rnn
import torch_rnn
from rnnlm import checkpoint
from rnnlm.checkpoint import Weights
from rnnlm.data.text import UNK
from rnnlm.inspection import Influence, Inspection, InspectionError
from rnnlm.inspection import network as network_module
from rnnlm.language_model import LanguageModel, PromptError

TEXT = "wab wac wad. wae waf wab wai"
LONG = " ".join(f"wa{letter}" for letter in "bcdefghijklmnopqrstuvwxyzbcdefgh")  # more tokens than the window
WORDS = 40


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose word 5 is <UNK>."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    source = make_checkpoint(vocab=WORDS, embed=9, hidden=12)
    words = (*source.vocabulary[:5], UNK, *source.vocabulary[6:])
    checkpoint.save(path, replace(source, vocabulary=words))
    return path


@pytest.fixture(scope="module")
def models(weights_path: Path) -> dict[str, LanguageModel]:
    source = checkpoint.load(weights_path)
    loaded = torch_rnn.RNN.load(weights_path)
    return {
        "c": rnn.RNN.load(weights_path),
        "torch": loaded,
        "torch, mapped": torch_rnn.RNN.mapped(source.weights, loaded.vocabulary),
    }


@pytest.fixture(params=["c", "torch", "torch, mapped"])
def model(request: pytest.FixtureRequest, models: dict[str, LanguageModel]) -> LanguageModel:
    return models[request.param]


class Oracle:
    """The model in float64 torch, written out, so that autograd can differentiate any part of it."""

    def __init__(self, weights: Weights) -> None:
        names = ("embeddings", "Wxh", "Whh", "bh", "Why", "by")
        self.w = {name: torch.tensor(np.array(getattr(weights, name), dtype=np.float64)) for name in names}

    def inputs(self, ids: list[int]) -> torch.Tensor:
        return self.w["embeddings"][ids].clone().requires_grad_(True)

    def states(self, x: torch.Tensor) -> list[torch.Tensor]:
        h, states = torch.zeros(len(self.w["bh"]), dtype=torch.float64), []
        for row in x:
            h = self.step(row, h)
            states.append(h)
        return states

    def step(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.w["Wxh"] + h @ self.w["Whh"] + self.w["bh"])

    def logprobs(self, h: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(h @ self.w["Why"] + self.w["by"], 0)

    def predict(self, ids: list[int]) -> torch.Tensor:
        """log p(. | ids); of no ids at all, from the state of zeros."""
        zeros = torch.zeros(len(self.w["bh"]), dtype=torch.float64)
        return self.logprobs(self.states(self.inputs(ids))[-1] if ids else zeros).detach()

    def jacobian_of_step(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.autograd.functional.jacobian(lambda h: self.step(x, h), h)

    def jacobian(self, ids: list[int], position: int) -> torch.Tensor:
        x = self.inputs(ids).detach()
        start = self.states(x[: position + 1])[-1]

        def last(h: torch.Tensor) -> torch.Tensor:
            for row in x[position + 1 :]:
                h = self.step(row, h)
            return h

        return torch.autograd.functional.jacobian(last, start)


@pytest.fixture(scope="module")
def oracle(weights_path: Path) -> Oracle:
    return Oracle(checkpoint.load(weights_path).weights)


def positions(inspection: Inspection) -> list[int]:
    return [influence.position for influence in inspection.influences]


@pytest.mark.parametrize(("text", "target"), [(TEXT, None), (TEXT, 4), (TEXT, 1), (LONG, None), (LONG, 29)])
def test_influences_are_what_autograd_and_brute_force_give(
    model: LanguageModel, oracle: Oracle, text: str, target: int | None
) -> None:
    ids, _ = model.encode(text)
    inspection = model.inspect(text, target=target)
    end = len(ids) if target is None else target
    before = ids[:end]
    assert inspection.words == tuple(model.vocabulary.words[i] for i in ids) and inspection.target == end
    assert positions(inspection) == list(range(max(0, end - 24), end))
    full = oracle.predict(before)
    word = model.vocabulary.ids[inspection.word]
    assert target is None or word == ids[target]
    assert inspection.logprob == pytest.approx(float(full[word]), abs=1e-5)
    x = oracle.inputs(before)
    [gradient] = torch.autograd.grad(oracle.logprobs(oracle.states(x)[-1])[word], x)
    for influence in inspection.influences:
        i = influence.position
        without = oracle.predict(before[:i] + before[i + 1 :])
        bits = float((full.exp() * (full - without)).sum()) / math.log(2)
        assert influence.bits == pytest.approx(bits, abs=1e-5)
        assert influence.logprob_change == pytest.approx(float(without[word] - full[word]), abs=1e-5)
        assert influence.gradient == pytest.approx(float(gradient[i].norm()), rel=1e-5, abs=1e-9)
        assert influence.jacobian == pytest.approx(float(oracle.jacobian(before, i).norm()), rel=1e-5)
        check_distribution(model, influence, inspection, without)


def check_distribution(
    model: LanguageModel, influence: Influence, inspection: Inspection, without: torch.Tensor
) -> None:
    """The words of the whole prediction first, then what else is most probable without the token."""
    words = [entry.word for entry in influence.distribution]
    assert words[:10] == [entry.word for entry in inspection.distribution] and len(set(words)) == len(words)
    best = {model.vocabulary.words[i] for i in without.topk(10).indices.tolist()}
    assert best <= set(words) and set(words[10:]) <= best
    for entry in influence.distribution:
        assert entry.probability == pytest.approx(float(without[model.vocabulary.ids[entry.word]].exp()), abs=1e-5)


@pytest.mark.parametrize("text", [TEXT, LONG])
def test_back_ends_agree(models: dict[str, LanguageModel], text: str) -> None:
    ours, *others = (model.inspect(text, states=True) for model in models.values())
    for theirs in others:
        assert (ours.words, ours.word, ours.target) == (theirs.words, theirs.word, theirs.target)
        assert np.abs(ours.states - theirs.states).max() <= 1e-5
        assert np.allclose(ours.memory.differences, theirs.memory.differences, atol=1e-5)
        assert ours.memory.forgotten_after == theirs.memory.forgotten_after
        for a, b in zip(ours.influences, theirs.influences, strict=True):
            assert [a.bits, a.logprob_change] == pytest.approx([b.bits, b.logprob_change], abs=1e-5)
            assert [a.gradient, a.jacobian] == pytest.approx([b.gradient, b.jacobian], rel=1e-5, abs=1e-5)
            assert [p.word for p in a.distribution] == [p.word for p in b.distribution]


def test_the_gradient_is_the_slope_of_the_log_probability(model: LanguageModel, oracle: Oracle) -> None:
    """By finite differences: a step along the gradient changes the log-probability by its norm."""
    ids, _ = model.encode(TEXT)
    inspection = model.inspect(TEXT)
    word, x = model.vocabulary.ids[inspection.word], oracle.inputs(ids)
    [gradient] = torch.autograd.grad(oracle.logprobs(oracle.states(x)[-1])[word], x)
    for influence in inspection.influences:
        step = torch.zeros_like(gradient)
        step[influence.position] = 1e-5 * gradient[influence.position] / gradient[influence.position].norm()
        with torch.no_grad():
            up, down = (oracle.logprobs(oracle.states(x + sign * step)[-1])[word] for sign in (1, -1))
        assert float(up - down) / 2e-5 == pytest.approx(influence.gradient, rel=1e-4, abs=1e-8)


def test_the_next_word_explained_is_what_greedy_generation_writes(weights_path: Path) -> None:
    """Not <UNK>, however probable it is."""
    source = checkpoint.load(weights_path)
    by = source.weights.by.copy()
    by[5] = 30.0
    model = rnn.RNN(replace(source, weights=replace(source.weights, by=by)))
    inspection = model.inspect(TEXT)
    assert inspection.distribution[0].word == UNK
    [token] = model.generate(TEXT, max_tokens=1, temperature=0.0).tokens
    assert inspection.word == token.word and inspection.logprob == pytest.approx(token.logprob, abs=1e-5)


def test_memory_is_the_difference_of_states(model: LanguageModel, oracle: Oracle) -> None:
    inspection = model.inspect(TEXT, other="waz wac wad. wae waf wab wai")
    memory = inspection.memory
    ids, others = model.encode(TEXT)[0], [model.vocabulary.ids[word] for word in memory.words]
    assert memory.changed == 1 and memory.words[1] == "waz" and memory.words[2:] == inspection.words[2:]
    with torch.no_grad():
        pairs = zip(oracle.states(oracle.inputs(ids)), oracle.states(oracle.inputs(others)), strict=True)
        assert memory.differences == pytest.approx([float((a - b).norm()) for a, b in pairs], abs=1e-5)


def test_memory_replaces_the_first_word_unless_a_text_is_given(model: LanguageModel) -> None:
    """By the most frequent other one: the lowest id that is neither <EOS> nor <UNK> nor the word itself."""
    assert model.inspect("wab wac").memory.words == ("<EOS>", "waa", "wac")
    assert model.inspect("waa wac").memory.words == ("<EOS>", "wab", "wac")
    assert model.inspect(". waa wac").memory.words == ("<EOS>", "<EOS>", "wab", "wac")


@pytest.mark.parametrize(
    ("other", "changed", "count"), [(TEXT, None, 9), ("wab", None, 2), ("wab wac wad. wae", None, 6), ("wab waz", 2, 3)]
)
def test_memory_of_texts_of_any_length(model: LanguageModel, other: str, changed: int | None, count: int) -> None:
    memory = model.inspect(TEXT, other=other).memory
    assert memory.changed == changed and len(memory.differences) == count
    assert all(difference == 0.0 for difference in memory.differences[:changed])


@pytest.mark.parametrize("gain", [0.1, 0.5, 0.9, 4.0])
def test_forgotten_after_is_where_the_difference_stays_small(gain: float) -> None:
    """A weak recurrence forgets at once, a strong one never."""
    source = make_checkpoint(vocab=WORDS, embed=9, hidden=12)
    weights = replace(source.weights, Whh=(source.weights.Whh * np.float32(gain)))
    memory = rnn.RNN(replace(source, weights=weights)).inspect(LONG).memory
    small = [value < 0.01 * memory.differences[1] for value in memory.differences[1:]]
    expected = next((i for i in range(len(small)) if all(small[i:])), None)
    assert memory.forgotten_after == expected
    assert (gain > 1) == (expected is None)


def test_states_are_those_of_the_back_end(model: LanguageModel, oracle: Oracle) -> None:
    inspection = model.inspect(TEXT, states=True)
    with torch.no_grad():
        want = torch.stack(oracle.states(oracle.inputs(model.encode(TEXT)[0]))).numpy()
    assert inspection.states.shape == (9, 12) and np.abs(inspection.states - want).max() < 2e-6
    assert np.array_equal(inspection.states, np.round(inspection.states, 6))
    assert model.inspect(TEXT).states is None


def test_unknown_words_are_named(model: LanguageModel) -> None:
    inspection = model.inspect("wab nonsense wac")
    assert inspection.words == ("<EOS>", "wab", "<UNK>", "wac") and inspection.unknown == ("nonsense",)


def test_extreme_weights_give_finite_numbers(weights_path: Path) -> None:
    source = checkpoint.load(weights_path)
    for scale in (1e-30, 1e8, 1e30):
        weights = replace(source.weights, Whh=source.weights.Whh * np.float32(scale))
        model = rnn.RNN(replace(source, weights=weights))
        numbers = [x for i in model.inspect(LONG).influences for x in (i.bits, i.gradient, i.jacobian)]
        assert np.isfinite(numbers).all()


def test_logits_that_overflow_are_refused(weights_path: Path) -> None:
    source = checkpoint.load(weights_path)
    weights = replace(source.weights, Why=np.full_like(source.weights.Why, 3e38))
    model = torch_rnn.RNN.mapped(weights, torch_rnn.Vocabulary(source.vocabulary, source.tokenizer))
    with pytest.raises(InspectionError, match="not finite"):
        model.inspect(TEXT)
    with pytest.raises(InspectionError, match="the logits are not finite"):
        model.candidates(TEXT)


def test_states_that_overflow_are_refused_wherever_they_are(weights_path: Path) -> None:
    """Those of the last word, or of another text, while those before the target are finite. C refuses such weights."""
    source = checkpoint.load(weights_path)
    embeddings = source.weights.embeddings.copy()
    # The vector of "wac" makes the sum of its products overflow in both directions.
    embeddings[source.vocabulary.index("wac")] = np.where(np.arange(9) % 2, 3e38, -3e38)
    Wxh = np.full_like(source.weights.Wxh, 2.0)
    weights = replace(source.weights, embeddings=embeddings, Wxh=Wxh)
    model = torch_rnn.RNN.mapped(weights, torch_rnn.Vocabulary(source.vocabulary, source.tokenizer))
    assert model.inspect("wab wad").memory.differences
    for arguments in ({"text": "wab wac", "target": 2}, {"text": "wab wad", "other": "wac wad"}):
        with pytest.raises(InspectionError, match="the hidden states are not finite"):
            model.inspect(arguments.pop("text"), **arguments)
    with pytest.raises(InspectionError, match="the hidden states are not finite"):
        model.spectrum("wac")


# ---- The weights ---------------------------------------------------------------------------------------------------


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """How far the two sets of eigenvalues are apart, each paired with its nearest."""
    return float(np.abs(a[:, np.newaxis] - b[np.newaxis]).min(axis=1).max())


def test_spectrum(model: LanguageModel, oracle: Oracle) -> None:
    spectrum = model.spectrum(TEXT)
    with torch.no_grad():
        Whh = oracle.w["Whh"]
        jacobians = [oracle.jacobian_of_step(*step) for step in steps(oracle, model)]
    assert distance(spectrum.recurrent, torch.linalg.eigvals(Whh).numpy()) < 1e-10
    mean = torch.stack(jacobians).mean(0)  # (out, in), whose eigenvalues are those of its transpose
    assert distance(spectrum.effective, torch.linalg.eigvals(mean).numpy()) < 1e-5
    for values in (spectrum.recurrent, spectrum.effective):
        assert (np.diff(np.abs(values)) <= 1e-12).all() and len(values) == 12
    assert model.spectrum().effective is None


def steps(oracle: Oracle, model: LanguageModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input, state before) of each token of TEXT."""
    x = oracle.inputs(model.encode(TEXT)[0]).detach()
    return list(zip(x, [torch.zeros(12, dtype=torch.float64), *oracle.states(x)[:-1]], strict=True))


@pytest.mark.parametrize("k", [1, 7, 100])
def test_units(model: LanguageModel, oracle: Oracle, k: int) -> None:
    unit = model.unit(3, k)
    drives = (oracle.w["embeddings"] @ oracle.w["Wxh"])[:, 3].numpy()
    outputs = oracle.w["Why"][3].numpy()
    for got, values, sign in (
        (unit.raised_by, drives, -1),
        (unit.lowered_by, drives, 1),
        (unit.raises, outputs, -1),
        (unit.lowers, outputs, 1),
    ):
        order = np.argsort(sign * values)[:k]
        assert [entry.word for entry in got] == [model.vocabulary.words[i] for i in order]
        assert [entry.value for entry in got] == pytest.approx(values[order], rel=1e-9)
    assert unit.index == 3 and len(unit.raises) == min(k, WORDS)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_neighbours(model: LanguageModel, oracle: Oracle, k: int) -> None:
    found = model.neighbours("wac", k)
    token = model.vocabulary.ids["wac"]
    for got, vectors in ((found.by_input, oracle.w["embeddings"]), (found.by_output, oracle.w["Why"].T)):
        cosines = torch.nn.functional.cosine_similarity(vectors, vectors[token].unsqueeze(0)).numpy()
        order = [i for i in np.argsort(-cosines) if i != token][:k]
        assert [entry.word for entry in got] == [model.vocabulary.words[i] for i in order]
        assert [entry.value for entry in got] == pytest.approx(cosines[order], abs=1e-9)


def test_neighbours_of_zero_and_of_huge_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in more blocks than one."""
    monkeypatch.setattr(network_module, "_BLOCK", 20)
    source = make_checkpoint(vocab=WORDS, embed=9, hidden=12)
    embeddings = source.weights.embeddings.copy()
    embeddings[3] = 0.0
    embeddings[4] = 1e30
    embeddings[6] = -1e-30
    model = torch_rnn.RNN.mapped(
        replace(source.weights, embeddings=embeddings), torch_rnn.Vocabulary(source.vocabulary, source.tokenizer)
    )
    words = model.vocabulary.words
    assert {entry.value for entry in model.neighbours(words[3], 5).by_input} == {0.0}
    assert model.neighbours(words[4], 100).by_input[-1] == (words[6], pytest.approx(-1.0))


# ---- Limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.inspect(TEXT, target=0), "target must be from 1 to 9 .*, got 0"),
        (lambda m: m.inspect(TEXT, target=10), "target must be from 1 to 9 .*, got 10"),
        (lambda m: m.inspect("waa " * 2000), "2,001 tokens, more than the 2,000 .*: shorten it"),
        (lambda m: m.inspect("waa", other="waa " * 2000), "2,001 tokens"),
        (lambda m: m.spectrum("waa " * 2000), "2,001 tokens"),
        (lambda m: m.unit(12), "from 0 to 11, got 12"),
        (lambda m: m.unit(-1), "got -1"),
        (lambda m: m.unit(0, 0), "k must be from 1 to 100, got 0"),
        (lambda m: m.neighbours("waa", 101), "k must be from 1 to 100, got 101"),
        (lambda m: m.neighbours("nonsense"), "'nonsense' is not among the 40 words"),
    ],
)
def test_what_is_out_of_range_is_refused(model: LanguageModel, call, message: str) -> None:
    with pytest.raises(InspectionError, match=message):
        call(model)


@pytest.mark.parametrize("text", ["", "123", "nonsense"])
def test_a_text_without_a_known_word_is_refused(model: LanguageModel, text: str) -> None:
    for call in (model.inspect, model.spectrum, model.score, model.candidates):
        with pytest.raises(PromptError, match=r"^the text has no word|^no word of the text "):
            call(text)
    with pytest.raises(PromptError, match=r"^the other text has no word|^no word of the other text "):
        model.inspect(TEXT, other=text)
    with pytest.raises(PromptError, match=r"^the prompt has no word|^no word of the prompt "):
        model.generate(text)


def test_letters_in_a_piece_that_is_dropped_are_no_word(model: LanguageModel) -> None:
    with pytest.raises(
        PromptError, match="letters A to Z only, and one with another character inside is dropped whole"
    ):
        model.generate("p.txt")


@pytest.mark.parametrize(("limit", "message"), [("VOCAB", "40 words"), ("EMBED", "9 numbers"), ("HIDDEN", "12 hidden")])
def test_a_model_that_is_too_large_is_refused(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setattr(network_module, f"MAX_{limit}", 8)
    for call in (lambda: model.inspect(TEXT), model.spectrum, lambda: model.unit(0), lambda: model.neighbours("waa")):
        with pytest.raises(InspectionError, match=f"{message}.*, more than the 8 .*: use a smaller one"):
            call()


def test_states_are_bounded(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnlm.inspection.text.MAX_STATE_VALUES", 100)
    with pytest.raises(
        InspectionError, match=r"9 tokens and 12 units are 108 numbers, more than 100: .* at most 8 tokens"
    ):
        model.inspect(TEXT, states=True)
    assert model.inspect(TEXT).states is None


def test_a_model_of_other_sizes(tmp_path: Path) -> None:
    """One hidden unit, one word beside <EOS>, and more words than a block holds."""
    for vocab, embed, hidden in ((2, 1, 1), (3, 5, 2), (1_200, 3, 700)):
        source = make_checkpoint(vocab, embed, hidden)
        ours = rnn.RNN(source)
        theirs = torch_rnn.RNN.mapped(source.weights, ours.vocabulary)
        a, b = ours.inspect("waa waa"), theirs.inspect("waa waa")
        assert [i.bits for i in a.influences] == pytest.approx([i.bits for i in b.influences], abs=1e-5)
        assert [i.gradient for i in a.influences] == pytest.approx([i.gradient for i in b.influences], abs=1e-5)
        assert len(a.distribution) == min(10, vocab)


def test_a_smaller_copy_of_why_gives_nearly_the_same(weights_path: Path) -> None:
    exact, rounded = (rnn.RNN.load(weights_path, precision=name).inspect(TEXT) for name in ("float32", "bfloat16"))
    assert [i.bits for i in rounded.influences] == pytest.approx([i.bits for i in exact.influences], abs=0.02)


def test_weights_are_not_copied(weights_path: Path) -> None:
    source = checkpoint.load(weights_path)
    vocabulary = torch_rnn.Vocabulary(source.vocabulary, source.tokenizer)
    for model in (rnn.RNN(source, vocabulary=vocabulary), torch_rnn.RNN.mapped(source.weights, vocabulary)):
        for name, view in model.matrices()._asdict().items():
            assert np.shares_memory(view, getattr(source.weights, name)), name
    loaded = torch_rnn.RNN.load(weights_path)
    parameters = [parameter.detach().numpy() for parameter in loaded.parameters()]
    assert all(any(np.shares_memory(view, own) for own in parameters) for view in loaded.matrices())
