"""Arguments of the wrong type: TypeError, in one line that says what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_checkpoint

import rnn
import torch_rnn
from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint, Weights
from rnnlm.data.text import EOS, TokenStream, Vocabulary
from rnnlm.library import RNNInputError, RNNNonFiniteError
from rnnlm.sampling import PromptError
from rnnlm.training.config import TrainConfig

SOURCE = make_checkpoint(vocab=40)


@pytest.fixture(params=[rnn.RNN, torch_rnn.RNN], ids=["c", "torch"])
def model(request: pytest.FixtureRequest, weights_file: Path) -> Any:
    return request.param.load(weights_file)


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200
    for word in words:
        assert word in message


OPTIONS = [
    ("max_tokens", 5.0, "an integer, got 5.0 (float)"),
    ("max_tokens", "5", "an integer, got '5' (str)"),
    ("max_tokens", True, "an integer, got True (bool)"),
    ("max_tokens", None, "an integer, got None"),
    ("temperature", "hot", "a number, got 'hot' (str)"),
    ("temperature", [1.0], "a number, got list"),
    ("top_k", 2.5, "an integer"),
    ("top_p", "0.9", "a number"),
    ("presence_penalty", None, "a number, got None"),
    ("frequency_penalty", 1j, "a number"),
    ("seed", 1.5, "an integer"),
    ("seed", "7", "an integer"),
    ("ignore_eos", "no", "True or False, got 'no' (str)"),
    ("logit_bias", [(1, 2.0)], "of type Mapping, got list"),
    ("logit_bias", {"5": 1.0}, "an integer, got '5' (str)"),
    ("logit_bias", {5: "1"}, "a number"),
]


@pytest.mark.parametrize(("name", "value", "expected"), OPTIONS)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_options_of_a_generation(model: Any, method: str, name: str, value: object, expected: str) -> None:
    refused(lambda: getattr(model, method)("waa", **{name: value}), name, expected)


@pytest.mark.parametrize("text", [None, 5, b"waa", ["waa", "wab"], Path("waa"), np.array(["waa"])])
def test_texts(model: Any, text: Any) -> None:
    methods = ("generate", "stream", "score", "inspect", "encode", "read")
    for call in (*(getattr(model, name) for name in methods), model.vocabulary.encode):
        refused(lambda call=call: call(text), "the text must be a string, got")
    refused(lambda: model.inspect("waa", other=text) if text is not None else model.read(text), "must be a string")
    refused(lambda: model.neighbours(text), "the word must be a string")


def test_looks_inside(model: Any) -> None:
    refused(lambda: model.inspect("waa", target="1"), "target must be an integer, got '1' (str)")
    refused(lambda: model.inspect("waa", states=1), "states must be True or False, got 1 (int)")
    refused(lambda: model.unit(1.0), "the unit must be an integer")
    refused(lambda: model.unit(1, k="3"), "k must be an integer")
    refused(lambda: model.neighbours("waa", k=None), "k must be an integer, got None")
    refused(lambda: model.spectrum(5), "must be a string")


def test_arrays(model: Any) -> None:
    for ids in (["waa"], [1.5], 3, [[1, 2]], [None]):
        refused(lambda ids=ids: model.hidden_states(ids), "ids must be a row of integers")
        refused(lambda ids=ids: model.log_probabilities(ids), "ids must be a row of integers")
    refused(lambda: model.hidden_states([1], "zero"), "state must be an array of float32")
    refused(lambda: model.logits([["a"]]), "states must be an array of float32")
    for ids in ([1, 40], [-1], [2**40]):
        with pytest.raises(PromptError, match=f"from 0 to 39, got {ids[-1]:,}"):
            model.hidden_states(ids)


def test_arrays_of_no_or_bad_numbers(model: Any) -> None:
    """Both back ends take and refuse the same."""
    hidden = model.hidden_states([1]).shape[1]
    assert model.hidden_states([]).shape == (0, hidden) and model.hidden_states([]).dtype == np.float32
    two = np.full(hidden, 2.0, dtype=np.float32)
    assert model.hidden_states([1], two).shape == (1, hidden)
    for states in (two[None], -two[None], two[None, :0], two[:0].reshape(0, hidden), two[None, None] / 2, two / 2):
        with pytest.raises(RNNInputError):
            model.logits(states)
    for ids in ([], [1]):
        with pytest.raises(RNNInputError):
            model.log_probabilities(ids)
    for state in (two[1:], two[None]):
        with pytest.raises(RNNInputError, match="state has shape"):
            model.hidden_states([1], state)
        with pytest.raises(RNNInputError, match="state has shape"):
            model.log_probabilities([1, 2], state)
    for bad in (np.nan, np.inf):
        for call in (model.logits, lambda states: model.hidden_states([1], states[0])):
            with pytest.raises(RNNNonFiniteError):
                call(np.full((1, hidden), bad, dtype=np.float32))
        with pytest.raises(RNNNonFiniteError):
            model.log_probabilities([1, 2], np.full(hidden, bad, dtype=np.float32))


def test_numbers_of_numpy_and_lists_are_accepted(model: Any) -> None:
    plain = model.generate("waa", max_tokens=4, temperature=1.0, top_k=9, top_p=0.5, seed=3, logit_bias={4: 1})
    theirs = model.generate(
        "waa",
        max_tokens=np.int64(4),
        temperature=np.float32(1.0),
        top_k=np.int32(9),
        top_p=np.float64(0.5),
        seed=np.uint8(3),
        logit_bias={np.int64(4): np.float32(1.0)},
    )
    assert theirs == plain
    ids = [1, 2, 3]
    assert np.array_equal(model.hidden_states(ids), model.hidden_states(np.array(ids, dtype=np.int64)))
    assert np.array_equal(model.log_probabilities(ids), model.log_probabilities(np.array(ids, dtype=np.uint16)))
    states = model.hidden_states(ids)
    assert np.allclose(model.logits(states.astype(np.float64)), model.logits(states), atol=1e-6)
    assert np.allclose(model.hidden_states([3], states[1].tolist()), states[2:], atol=1e-6)


def test_constructors_and_files(weights_file: Path, tmp_path: Path) -> None:
    for path in (None, 5, b"x.safetensors", SOURCE):
        for load in (rnn.RNN.load, torch_rnn.RNN.load, checkpoint.load):
            refused(lambda load=load, path=path: load(path), "path must be a string or a Path, got")
        refused(lambda path=path: checkpoint.save(path, SOURCE), "path must be a string or a Path, got")
    refused(lambda: checkpoint.save(tmp_path / "x", SOURCE.weights), "must be of type Checkpoint, got Weights")
    refused(lambda: rnn.RNN(str(weights_file)), "source", "RNN.load(path) reads a weights file")
    refused(lambda: rnn.RNN(SOURCE.weights), "source must be of type Checkpoint, got Weights")
    refused(lambda: rnn.RNN(SOURCE, threads="2"), "threads must be an integer, got '2' (str)")
    refused(lambda: rnn.RNN.load(weights_file, threads=2.0), "threads must be an integer")
    refused(lambda: rnn.RNN.load(weights_file, precision=None), "precision must be a string, got None")
    refused(lambda: torch_rnn.RNN(str(weights_file)), "weights", "RNN.load(path) reads a weights file")
    refused(lambda: torch_rnn.RNN(SOURCE), "weights must be of type Weights, got Checkpoint")
    refused(lambda: torch_rnn.RNN(SOURCE.weights, SOURCE.vocabulary), "vocabulary must be of type Vocabulary")
    refused(lambda: rnn.RNN(SOURCE, vocabulary=SOURCE.vocabulary), "vocabulary must be of type Vocabulary")
    arrays = SOURCE.weights.parameters()
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    for wrong in (tensors, {name: array.tolist() for name, array in arrays.items()}):
        refused(lambda wrong=wrong: Weights(SOURCE.weights.embeddings, **wrong), "Wxh must be an array of float32, not")
    refused(lambda: Checkpoint(None, SOURCE.vocabulary, "plain", "c", {}, []), "weights must be of type Weights")


def test_words_and_tokens() -> None:
    refused(lambda: Vocabulary(f"the {EOS}"), "words must be a sequence of strings")
    refused(lambda: Vocabulary([EOS, 5]), "vocabulary word 1 must be a string, got 5 (int)")
    refused(lambda: Vocabulary([EOS, b"the"]), "vocabulary word 1 must be a string")
    refused(lambda: Vocabulary([EOS, "the"], None), "the tokenizer must be a string, got None")
    refused(lambda: TokenStream(5), "the tokenizer must be a string")
    refused(lambda: TokenStream("plain").feed(b"the king"), "a piece of text must be a string")
    vocabulary = Vocabulary([EOS, "the"])
    refused(lambda: vocabulary.decode(["the"]), "a token id must be an integer, got 'the' (str)")
    refused(lambda: vocabulary.decode([1.0]), "a token id must be an integer")
    assert vocabulary.decode(np.array([1, 0])) == "the\n"


def test_training_options() -> None:
    refused(lambda: TrainConfig(hidden_size="100"), "hidden_size must be an integer, got '100' (str)")
    refused(lambda: TrainConfig(bptt=35.0), "bptt must be an integer, got 35.0 (float)")
    refused(lambda: TrainConfig(learning_rate="fast"), "learning_rate must be a number")
    refused(lambda: TrainConfig(corpus=Path("x.txt")), "corpus must be a string")
    refused(lambda: TrainConfig(lowercase="yes"), "lowercase must be True or False")
    assert TrainConfig(learning_rate=1, bptt=None).bptt is None
