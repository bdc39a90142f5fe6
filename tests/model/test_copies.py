"""Models as other programs hold them: copied, pickled, saved by torch, averaged, sent to processes, printed."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_checkpoint
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rnn
import torch_rnn
from rnnlm import checkpoint
from rnnlm.binding import Decoder, Model
from rnnlm.data.text import Vocabulary

TEXT = "waa wab wac. " * 40
OPTIONS = {"max_tokens": 8, "temperature": 1.0, "seed": 5, "ignore_eos": True}


def c_model(path: Path) -> rnn.RNN:
    return rnn.RNN.load(path, threads=2)


def int8_model(path: Path) -> rnn.RNN:
    return rnn.RNN.load(path, precision="int8")


def mapped_model(path: Path) -> torch_rnn.RNN:
    source = checkpoint.load(path)
    return torch_rnn.RNN.mapped(source.weights, Vocabulary(source.vocabulary, source.tokenizer))


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def through_torch(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


MODELS = [c_model, int8_model, torch_rnn.RNN.load, mapped_model]
COPIES = [copy.copy, copy.deepcopy, through_pickle, through_torch]


def what_it_says(model: rnn.RNN | torch_rnn.RNN) -> tuple[Any, ...]:
    return model.score(TEXT), model.generate("waa wab", **OPTIONS), model.inspect("waa wab wac").influences


@pytest.mark.parametrize("load", MODELS)
@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_says_the_same_and_outlives_the_original(
    load: Callable[[Path], Any], duplicate: Callable[[Any], Any], weights_file: Path
) -> None:
    model = load(weights_file)
    model.note = "mine"
    want, shown = what_it_says(model), repr(model)
    other = duplicate(model)
    weights_file.unlink()
    del model
    gc.collect()
    assert what_it_says(other) == want and repr(other) == shown and type(other).__module__ in ("rnn", "torch_rnn")
    assert other.note == "mine"


def test_a_deep_copy_of_a_module_is_trained_on_its_own(weights_file: Path) -> None:
    model = torch_rnn.RNN.load(weights_file)
    before = model.score(TEXT)
    other = copy.deepcopy(model)
    optimizer = torch.optim.SGD([each for each in other.parameters() if each.requires_grad], 0.5)
    logits, _ = other(torch.tensor([[1], [2]]), other.zero_state())
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([2, 3])).backward()
    optimizer.step()
    assert other.score(TEXT) != before == model.score(TEXT)


def test_a_state_dict_goes_through_torch_without_pickles_of_ours(weights_file: Path, tmp_path: Path) -> None:
    model, other = (torch_rnn.RNN.load(weights_file) for _ in range(2))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.score(TEXT) == model.score(TEXT)


def test_averaged_model_averages_and_generates(weights_file: Path) -> None:
    model = torch_rnn.RNN.load(weights_file)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    before = model.output.bias.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model.output.bias += 1.0
    average.update_parameters(model)
    assert torch.allclose(average.module.output.bias, before + 0.5)
    logits, state = average(torch.tensor([[1], [2]]), model.zero_state())
    assert logits.shape == (2, 1, 40) and state.shape == (1, 1, 12)
    assert average.module.generate("waa", max_tokens=2, ignore_eos=True).text


def answer(model: Any, results: Any) -> None:
    results.put((model.score(TEXT).loss, model.generate("waa wab", **OPTIONS).text))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("load", [c_model, torch_rnn.RNN.load])
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_model_works_in_another_process(load: Callable[[Path], Any], start: str, tmp_path: Path) -> None:
    # Large enough for two threads, which a fork must not leave waiting for each other.
    checkpoint.save(tmp_path / "x.safetensors", make_checkpoint(vocab=3000, embed=64, hidden=64))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = load(tmp_path / "x.safetensors")
        want = model.score(TEXT).loss, model.generate("waa wab", **OPTIONS).text
        context = multiprocessing.get_context(start)
        results = context.Queue()
        process = context.Process(target=answer, args=(model, results), daemon=True)
        process.start()
        try:
            assert results.get(timeout=120) == want
        finally:
            process.kill()
            process.join()
        assert model.score(TEXT).loss == want[0]  # the parent's threads work again, too
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_is_copied_without_its_mapping(weights_file: Path) -> None:
    source = checkpoint.load(weights_file)
    for duplicate in (copy.deepcopy, through_pickle):
        other = duplicate(source)
        assert source.mapping and other.mapping is None  # its descriptor belongs to the original
        assert other.vocabulary == source.vocabulary and np.array_equal(other.weights.Why, source.weights.Why)


def test_a_copy_of_a_decoder_keeps_its_memory() -> None:
    decoder = copy.copy(Decoder(Model(make_checkpoint().weights)))
    gc.collect()
    assert decoder.hidden_states([1, 2, 3]).shape == (3, 6)


def test_repr_tells_the_sizes_and_the_precision(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.safetensors", make_checkpoint(vocab=1234, embed=9, hidden=12))
    assert repr(rnn.RNN.load(tmp_path / "x.safetensors", precision="bfloat16", threads=2)) == (
        "RNN(V=1,234, E=9, H=12, precision='bfloat16', threads=2)"
    )
    model = torch_rnn.RNN.load(tmp_path / "x.safetensors")
    assert repr(model).splitlines()[1] == "  V=1,234, E=9, H=12, precision='float32'"
    assert "precision='float64'" in repr(model.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_of_another_type_still_does_everything(dtype: torch.dtype, weights_file: Path) -> None:
    plain, model = torch_rnn.RNN.load(weights_file), torch_rnn.RNN.load(weights_file).to(dtype)
    assert abs(model.score(TEXT).loss - plain.score(TEXT).loss) < (1e-6 if dtype == torch.float64 else 0.05)
    assert model.generate("waa wab", **OPTIONS).tokens and model.inspect("waa wab", states=True).states is not None
    weights = model.weights()
    assert weights.Why.dtype == np.float32 and np.allclose(weights.Why, plain.weights().Why, atol=0.02)
    state = model.hidden_states([1, 2])[-1]
    assert np.allclose(model.hidden_states([3], state), model.hidden_states([1, 2, 3])[2:], atol=0.02)
    assert model.logits(state[np.newaxis]).shape == (1, 40)
