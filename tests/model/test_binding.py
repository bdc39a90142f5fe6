"""The binding: finding the library, and every refusal as its own exception with nothing written."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import INSTRUCTION_SETS, ROOT, force_kernels, make_weights
from weights_files import POSIX

from rnnlm import binding, library
from rnnlm.binding import Decoder, Model, Workspace, sampling_rows


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter at the project's root."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_a_missing_library_names_the_path_and_the_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.so")
    result = run_python("from rnnlm import library; library.library()", RNNLIB_PATH=path)
    assert "RNNLibraryError" in result.stderr and path in result.stderr and "make lib" in result.stderr


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("not a library")
    said = run_python("from rnnlm import library; library.library()", RNNLIB_PATH=str(path)).stderr
    assert "RNNLibraryError" in said and "correct RNNLIB_PATH, or unset it" in said and "make lib" not in said


@pytest.mark.parametrize(
    ("platform", "name"), [("win32", "rnnlib.dll"), ("darwin", "rnnlib.dylib"), ("linux", "rnnlib.so")]
)
def test_each_system_has_its_library(monkeypatch: pytest.MonkeyPatch, platform: str, name: str) -> None:
    monkeypatch.delenv("RNNLIB_PATH", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    assert library.library_path() == ROOT / "lib" / name


def test_the_abi_version_is_that_of_the_header() -> None:
    header = (ROOT / "csrc" / "rnnlib.h").read_text()
    assert re.findall(r"^#define RNN_ABI_VERSION (\d+)", header, re.MULTILINE) == [str(library.ABI_VERSION)]


def test_a_struct_of_another_size_is_refused() -> None:
    code = "import ctypes; from rnnlm import library; library.Dims = ctypes.c_int64; library.library()"
    result = run_python(code)
    assert "RNNLibraryError" in result.stderr and "sizeof(rnn_dims) is 12" in result.stderr


def test_another_abi_is_refused() -> None:
    result = run_python("from rnnlm import library; library.ABI_VERSION = 99; library.library()")
    assert "RNNLibraryError" in result.stderr and "99" in result.stderr


def test_importing_needs_no_library_and_no_torch(tmp_path: Path) -> None:
    code = "import sys, rnn; sys.exit(any(m in sys.modules for m in ('torch', 'gensim', 'datasets', 'matplotlib')))"
    assert run_python(code, RNNLIB_PATH=str(tmp_path / "none.so")).returncode == 0


def test_torch_only_needs_no_library(tmp_path: Path) -> None:
    code = "import sys, torch_rnn; sys.exit('rnnlm.binding' in sys.modules or 'gensim' in sys.modules)"
    assert run_python(code, RNNLIB_PATH=str(tmp_path / "none.so")).returncode == 0


def test_every_function_of_the_header_is_bound() -> None:
    header = (ROOT / "csrc" / "rnnlib.h").read_text()
    declared = re.findall(r"^RNN_API [\w *]*?\*?(rnn_\w+)\(", header, re.MULTILINE)
    assert declared == list(library.SIGNATURES)


def test_the_library_exports_only_its_functions() -> None:
    nm = subprocess.run(
        ["nm", "-D", "--defined-only", str(library.library_path())], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in nm.stdout.splitlines()} - {"_init", "_fini"}
    assert exported == set(library.SIGNATURES)


@pytest.mark.parametrize("v,e,h", [(0, 5, 5), (5, 0, 5), (5, 5, 0), (-1, 5, 5), (2**31 - 1, 5, 5), (5, 2**20, 5)])
def test_sizes_out_of_range(v: int, e: int, h: int) -> None:
    with pytest.raises(library.RNNInputError, match="size"):
        binding.param_count(v, e, h)
    with pytest.raises(library.RNNInputError):
        Workspace(v, e, h, max_steps=1, max_batch=1, threads=1)


@pytest.mark.parametrize(
    "option", [{"max_steps": 0}, {"max_batch": 0}, {"max_steps": 2**30, "max_batch": 2**30}, {"threads": 0}]
)
def test_workspace_options_out_of_range(option: dict[str, int]) -> None:
    with pytest.raises(library.RNNInputError):
        Workspace(5, 4, 3, **({"max_steps": 2, "max_batch": 2, "threads": 1} | option))


class Chunk:
    """A valid call of loss_grad at V=7, E=5, H=3, T=4, B=2, of which a test spoils one part."""

    def __init__(self) -> None:
        weights = make_weights(7, 5, 3)
        self.params, self.embeddings = weights.flat_parameters(), weights.embeddings.copy()
        self.x, self.y = np.random.default_rng(0).integers(0, 7, (2, 4, 2), dtype=np.int32)
        self.state = np.full((2, 3), 0.25, dtype=np.float32)
        self.grads = np.full_like(self.params, 7.0)

    def run(self) -> float:
        work = Workspace(7, 5, 3, max_steps=4, max_batch=2, threads=1)
        return work.loss_grad(self.params, self.embeddings, self.x, self.y, self.state, self.grads)

    def untouched(self) -> bool:
        return bool((self.state == 0.25).all() and (self.grads == 7.0).all())


@pytest.mark.parametrize("name,value", [("x", 7), ("x", -1), ("y", 7), ("y", -(2**31))])
def test_token_ids_out_of_range(name: str, value: int) -> None:
    chunk = Chunk()
    getattr(chunk, name)[3, 1] = value
    with pytest.raises(library.RNNInputError, match="token"):
        chunk.run()
    assert chunk.untouched()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 20, -1])
def test_parameters_that_are_not_finite(bad: float, index: int) -> None:
    chunk = Chunk()
    chunk.params[index] = bad
    chunk.embeddings[:, 0] = 1.0
    with pytest.raises(library.RNNNonFiniteError):
        chunk.run()
    assert chunk.untouched()


@pytest.mark.parametrize("name", ["params", "embeddings", "x", "y", "state", "grads"])
def test_wrong_shapes_and_types(name: str) -> None:
    chunk = Chunk()
    array = getattr(chunk, name)
    setattr(chunk, name, array[:-1].copy())
    with pytest.raises(library.RNNInputError, match="shape"):
        chunk.run()
    setattr(chunk, name, array.astype(np.float64))
    with pytest.raises(ctypes.ArgumentError):
        chunk.run()


def test_a_chunk_larger_than_the_workspace() -> None:
    chunk = Chunk()
    work = Workspace(7, 5, 3, max_steps=2, max_batch=2, threads=1)
    with pytest.raises(library.RNNInputError):
        work.loss_grad(chunk.params, chunk.embeddings, chunk.x, chunk.y, chunk.state, chunk.grads)
    assert chunk.untouched()


def test_gradient_norm() -> None:
    values = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    want = np.linalg.norm(values.astype(np.float64))
    norms = {binding.grad_norm(values, threads) for threads in (1, 2, 3)}
    assert len(norms) == 1 and norms.pop() == pytest.approx(want, rel=1e-12)
    values[77] = np.inf
    with pytest.raises(library.RNNNonFiniteError):
        binding.grad_norm(values)


def decoder(vocab: int = 11, hidden: int = 5, max_sequences: int = 3) -> Decoder:
    return Decoder(Model(make_weights(vocab, 4, hidden)), max_sequences=max_sequences)


def decode(target: Decoder, n: int, **spoiled: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Advance n sequences by one step; returns (tokens, log-probabilities, states)."""
    vocab, hidden = target.model.vocab, target.model.hidden
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, vocab, n, dtype=np.int32)
    sampling = sampling_rows(n)
    sampling["u"] = rng.random(n)
    states = rng.uniform(-1, 1, (n, hidden)).astype(np.float32)
    for name, value in spoiled.items():
        if name == "token":
            tokens[-1] = value
        else:
            sampling[name][-1] = value
    following, logprobs = np.full(n, -5, dtype=np.int32), np.full(n, 7.0, dtype=np.float32)
    before = states.copy()
    try:
        target.decode(tokens, sampling, states, following, logprobs)
    except library.RNNError:
        assert (following == -5).all() and (logprobs == 7.0).all() and (states == before).all()
        raise
    return following, logprobs, states


@pytest.mark.parametrize(
    "spoiled",
    [
        {"token": 11},
        {"token": -1},
        {"u": 1.0},
        {"u": -0.1},
        {"u": np.nan},
        {"temperature": -1.0},
        {"temperature": np.nan},
        {"temperature": np.inf},
        {"top_k": -1},
        {"banned": 11},
        {"banned": -2},
    ],
)
def test_a_step_refuses_what_is_out_of_range(spoiled: dict[str, float]) -> None:
    with pytest.raises(library.RNNInputError):
        decode(decoder(), 2, **spoiled)


def test_more_sequences_than_the_decoder_has_room_for() -> None:
    with pytest.raises(library.RNNInputError):
        decode(decoder(max_sequences=3), 4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_sequence_does_not_depend_on_the_others_of_its_call(threads: int) -> None:
    """Neither they nor the number of threads change a bit, also beyond one group of 16."""
    model = Model(make_weights(1031, 4, 33))
    many, one = Decoder(model, max_sequences=20, threads=threads), Decoder(model)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1031, 20, dtype=np.int32)
    sampling = sampling_rows(20)
    sampling["u"], sampling["top_k"], sampling["banned"] = rng.random(20), np.arange(20) % 7, np.arange(20) - 1
    sampling["temperature"] = np.resize([1.0, 0.5, 0.0], 20)
    states = rng.uniform(-1, 1, (20, 33)).astype(np.float32)

    def step(target: Decoder, rows: slice) -> list[np.ndarray]:
        n = len(tokens[rows])
        mine, following = states[rows].copy(), np.empty(n, dtype=np.int32)
        logprobs, logits = np.empty(n, dtype=np.float32), np.empty((n, 1031), dtype=np.float32)
        target.decode(tokens[rows], sampling[rows], mine, following, logprobs, logits)
        return [following, logprobs, mine, logits]

    together = step(many, slice(0, 20))
    for i in range(20):
        for whole, alone in zip(together, step(one, slice(i, i + 1)), strict=True):
            assert np.array_equal(whole[i], alone[0])


def test_logits_and_states_are_those_of_the_steps() -> None:
    """To the same bits, whatever company the states have."""
    target = decoder(vocab=1031, hidden=33, max_sequences=1)
    ids = np.random.default_rng(0).integers(0, 1031, 20, dtype=np.int32)
    states = target.hidden_states(ids)
    state, logits = np.zeros((1, 33), dtype=np.float32), np.empty((20, 1031), dtype=np.float32)
    for i in range(20):
        target.decode(
            ids[i : i + 1], sampling_rows(1), state, np.empty(1, np.int32), np.empty(1, np.float32), logits[i : i + 1]
        )
        assert np.array_equal(states[i], state[0])
    assert np.array_equal(target.logits(states), logits)
    assert np.array_equal(target.hidden_states(ids[7:], states[6]), states[7:])


@pytest.mark.parametrize(
    ("states", "error"),
    [
        (np.full((2, 5), 1.5, np.float32), library.RNNInputError),
        (np.zeros((2, 4), np.float32), library.RNNInputError),
        (np.zeros((0, 5), np.float32), library.RNNInputError),
        (np.full((2, 5), np.nan, np.float32), library.RNNNonFiniteError),
    ],
)
def test_logits_of_what_is_no_state(states: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        decoder().logits(states)


@pytest.mark.parametrize("name", ["embeddings", "Wxh", "Whh", "bh", "Why", "by"])
def test_a_model_with_weights_that_are_not_finite(name: str) -> None:
    weights = make_weights(11, 4, 5)
    getattr(weights, name).flat[3] = np.nan
    with pytest.raises(library.RNNNonFiniteError):
        Model(weights)


def test_an_unknown_precision() -> None:
    with pytest.raises(library.RNNInputError, match="float32"):
        Model(make_weights(5, 4, 3), precision="float8")


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_of_threads_out_of_range(threads: int) -> None:
    with pytest.raises(library.RNNInputError, match=f"threads must be from 1 to 1,024, got {threads:,}"):
        Model(make_weights(5, 4, 3), threads=threads)


def test_scoring_needs_two_tokens() -> None:
    with pytest.raises(library.RNNInputError):
        decoder().score(np.zeros(1, dtype=np.int32))


def test_a_program_may_end_while_a_thread_is_inside_the_library(weights_file: Path) -> None:
    code = f"""
import threading, time, numpy as np, rnn
model, ids, inside = rnn.RNN.load({str(weights_file)!r}), np.zeros(100_000, dtype=np.int32), threading.Event()
def work():
    while True:
        inside.set()
        model.log_probabilities(ids)
threading.Thread(target=work, daemon=True).start()
inside.wait()
time.sleep(0.05)
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


@POSIX
def test_another_handler_of_bus_errors_and_ours_do_not_call_each_other_for_ever(weights_file: Path) -> None:
    code = f"""
import faulthandler, os, signal
from rnnlm import binding, checkpoint
def guard():
    mapping = checkpoint.load({str(weights_file)!r}).mapping
    return mapping, binding.guard(mapping.data)
first = guard()
faulthandler.enable()
second = guard()
os.kill(os.getpid(), signal.SIGBUS)
"""
    done = run_python(code)
    assert done.returncode == -signal.SIGBUS and done.stderr.count("Fatal Python error") == 1, done.stderr


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_kernels_can_be_forced(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(isa, monkeypatch)
    assert library.kernel() == isa
    result = run_python("from rnnlm import library; print(library.kernel())", RNN_ISA=isa)
    assert result.stdout == f"{isa}\n"


def test_kernels_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNN_ISA", raising=False)
    best = library.kernel()
    monkeypatch.setenv("RNN_ISA", "avx1024")
    assert library.kernel() == best
    result = run_python("from rnnlm import library; library.library()", RNN_ISA="avx1024")
    assert "RNNLibraryError" in result.stderr and "RNN_ISA=avx1024" in result.stderr and "avx2" in result.stderr
    assert run_python("from rnnlm import library; print(library.kernel())", RNN_ISA="").stdout == f"{best}\n"
