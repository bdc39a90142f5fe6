"""The weights file: what goes in comes out, mapped instead of copied, in the format of the safetensors package."""

import dataclasses
import itertools
import json
import math
import mmap
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import weights_files
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_files import (
    METADATA,
    NAMES,
    POSIX,
    WORDS,
    E,
    H,
    Header,
    V,
    assert_equal,
    join,
    make_checkpoint,
    make_weights,
    mapping_of,
    resident,
    split,
)

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint, CheckpointError, Weights
from rnnlm.data.text import TOKENIZERS
from rnnlm.files import SaveError
from rnnlm.training import state_file

path = weights_files.path  # a fixture


# ---- Round trip ------------------------------------------------------------------------------------------------------


def test_round_trip(path: Path) -> None:
    loaded = checkpoint.load(path)
    assert_equal(loaded, make_checkpoint())
    assert (loaded.weights.vocab_size, loaded.weights.embed_size, loaded.weights.hidden_size) == (V, E, H)
    assert_equal(checkpoint.load(str(path)), make_checkpoint())


def test_every_finite_number_keeps_its_bits(path: Path) -> None:
    odd = [-0.0, 0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 1.1754944e-38]
    weights = dataclasses.replace(make_weights(), by=np.array(odd, dtype=np.float32))
    checkpoint.save(path, make_checkpoint(weights=weights))
    assert checkpoint.load(path).weights.by.tobytes() == weights.by.tobytes()


@settings(max_examples=30, deadline=None)
@given(
    v=st.integers(1, 9),
    e=st.integers(1, 9),
    h=st.integers(1, 9),
    tokenizer=st.sampled_from(TOKENIZERS),
    backend=st.sampled_from(["c", "torch"]),
    letters=st.text(st.characters(categories=["L", "P"]), min_size=1, max_size=9),
    config=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.none()
        | st.booleans()
        | st.integers(-(2**128) + 1, 2**128 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"]))
        | st.lists(st.integers(0, 9), max_size=3),
        max_size=5,
    ),
)
def test_round_trip_of_anything(
    tmp_path_factory: pytest.TempPathFactory,
    v: int,
    e: int,
    h: int,
    tokenizer: str,
    backend: str,
    letters: str,
    config: dict[str, Any],
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    words = ("<EOS>", *(f"{letters}{i}" for i in range(v - 1)))
    saved = Checkpoint(make_weights(v, e, h), words, tokenizer, backend, config, [config])
    checkpoint.save(path, saved)
    assert_equal(checkpoint.load(path), saved)


def test_the_same_checkpoint_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "again.safetensors", make_checkpoint())
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_arrays_of_any_memory_layout_are_saved(tmp_path: Path) -> None:
    # mapped arrays are read-only: saving what was loaded, as a converter does, must work too
    checkpoint.save(tmp_path / "a.safetensors", make_checkpoint())
    checkpoint.save(tmp_path / "b.safetensors", checkpoint.load(tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    state = {"transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T, "every other": np.arange(9)[::2]}
    state_file.save(tmp_path / "a.resume", state, {})
    loaded, _ = state_file.load(tmp_path / "a.resume")
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_flat_parameters_follow_the_c_library() -> None:
    weights = make_weights()
    flat = weights.flat_parameters()
    order = ("Wxh", "Whh", "bh", "Why", "by")
    assert checkpoint.PARAMETERS == order == tuple(weights.parameters())
    np.testing.assert_array_equal(flat, np.concatenate([getattr(weights, name).ravel() for name in order]))
    again = Weights.from_flat(weights.embeddings, flat, H)
    for name in order:
        assert np.shares_memory(getattr(again, name), flat)
        np.testing.assert_array_equal(getattr(again, name), getattr(weights, name))
    flat[:] = 0  # a copy: the original weights stay
    assert weights.by.any() and not again.by.any()
    with pytest.raises(ValueError, match=r"flat parameters have shape \[1\]"):
        Weights.from_flat(weights.embeddings, flat[:1], H)


# ---- Mapping ---------------------------------------------------------------------------------------------------------


def test_tensors_are_read_only_views_of_one_mapping(path: Path) -> None:
    weights = checkpoint.load(path).weights
    arrays = [getattr(weights, name) for name in NAMES]
    assert len({id(mapping_of(array)) for array in arrays}) == 1 and mapping_of(arrays[0]) is not None
    for array in arrays:
        assert type(array) is np.ndarray  # an np.memmap itself is slow to index
        assert array.flags.aligned and array.flags.c_contiguous and not array.flags.writeable
    assert arrays[0].ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        weights.by[0] = 1


def test_a_copy_releases_the_file(path: Path) -> None:
    weights = checkpoint.load(path, copy=True).weights
    for name in NAMES:
        assert mapping_of(getattr(weights, name)) is None and getattr(weights, name).flags.writeable
    assert_equal(checkpoint.load(path, copy=True), make_checkpoint())


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 1.3 GB: a loader that reads or copies tensors would need that much memory."""
    v, e, h = 1024, 1 << 14, 1 << 14
    words = "\n".join(["<EOS>", *(f"w{i}" for i in range(v - 1))]).encode()
    header: Header = {"__metadata__": METADATA}
    position = 0
    shapes = {"embeddings": (v, e)} | checkpoint.parameter_shapes(v, e, h)
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    header["vocabulary"] = {
        "dtype": "U8",
        "shape": [len(words)],
        "data_offsets": [position, position + len(words)],
    }
    start = join(header, b"")
    start = join(json.dumps(header).encode() + b" " * (-len(start) % 8), b"")
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(start)
        file.seek(position, os.SEEK_CUR)
        file.write(words)
    assert path.stat().st_size > 1 << 30
    tracemalloc.start()
    try:
        loaded = checkpoint.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loaded.weights.Whh.shape == (h, h) and len(loaded.vocabulary) == v
    assert peak < 4 << 20


@POSIX  # Windows does not replace a mapped file
def test_a_mapping_keeps_the_old_file(path: Path) -> None:
    old = checkpoint.load(path)
    checkpoint.save(path, make_checkpoint(seed=1))
    assert_equal(old, make_checkpoint(seed=0))
    assert_equal(checkpoint.load(path), make_checkpoint(seed=1))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_dropped_pages_leave_memory_and_come_back(path: Path) -> None:
    checkpoint.save(path, make_checkpoint(weights=make_weights(e=16_000)))
    weights = checkpoint.load(path).weights
    total = float(weights.embeddings.sum(dtype=np.float64) + weights.Wxh.sum(dtype=np.float64))
    whole = resident(weights.embeddings)
    assert whole >= weights.embeddings.nbytes + weights.Wxh.nbytes
    checkpoint.drop_pages(weights.embeddings)
    assert whole - resident(weights.embeddings) >= weights.embeddings.nbytes - 2 * mmap.PAGESIZE
    assert resident(weights.embeddings) >= weights.Wxh.nbytes - 2 * mmap.PAGESIZE
    assert float(weights.embeddings.sum(dtype=np.float64) + weights.Wxh.sum(dtype=np.float64)) == total
    checkpoint.drop_pages(make_weights().embeddings)  # not mapped: nothing happens


# ---- The safetensors package -----------------------------------------------------------------------------------------


def test_the_safetensors_package_reads_our_file(path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    assert tensors.keys() == {*NAMES, "vocabulary"}
    for name in NAMES:
        np.testing.assert_array_equal(tensors[name], getattr(make_weights(), name))
    assert tensors["vocabulary"].dtype == np.uint8
    assert tensors["vocabulary"].tobytes().decode() == "\n".join(WORDS)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata.keys() == METADATA.keys()
    assert (metadata["format"], metadata["version"]) == ("rnn-weights", "1")
    assert json.loads(metadata["config"]) == make_checkpoint().config
    assert json.loads(metadata["history"]) == make_checkpoint().history


def test_we_read_a_file_of_the_safetensors_package(path: Path, tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    for order in (list(tensors), list(reversed(tensors))):
        other = tmp_path / "other.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in order}, other, metadata)
        assert_equal(checkpoint.load(other), make_checkpoint())


@pytest.mark.parametrize("order", list(itertools.permutations((*NAMES, "vocabulary")))[::101])
def test_tensors_may_stand_in_any_order(path: Path, order: tuple[str, ...]) -> None:
    """Also with the vocabulary, an odd number of bytes, before float32 tensors: those are copied to be aligned."""
    header, data = split(path.read_bytes())
    blocks, position = b"", 0
    for name in order:
        begin, end = header[name]["data_offsets"]
        blocks += data[begin:end]
        header[name]["data_offsets"] = [position, position := position + end - begin]
    path.write_bytes(join(header, blocks))
    loaded = checkpoint.load(path)
    assert_equal(loaded, make_checkpoint())
    assert all(getattr(loaded.weights, name).flags.aligned for name in NAMES)


# ---- Invalid weights and checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("by", np.zeros(V), "by must be an array of float32, not float64"),
        ("by", np.zeros(V, dtype=">f4"), "by must be an array of float32, not >f4"),
        ("by", np.zeros(2 * V, dtype=np.float32)[::2], "by must be C-contiguous"),
        ("Whh", np.zeros((H, H), dtype=np.float32).T, "Whh must be C-contiguous"),
        ("by", np.zeros(4 * V + 1, dtype=np.uint8)[1:].view(np.float32), "by must be C-contiguous and aligned"),
        ("by", np.zeros((V, 1), dtype=np.float32), r"by has shape \[7, 1\], expected \[7\]"),
        ("Wxh", np.zeros((H, E), dtype=np.float32), r"Wxh has shape \[3, 5\], expected \[5, 3\]"),
        ("embeddings", np.zeros((V, E, 1), dtype=np.float32), r"embeddings must be \(V, E\)"),
        ("embeddings", np.zeros((0, E), dtype=np.float32), r"vocabulary size V is 0, outside 1..16,777,216"),
        ("embeddings", np.zeros((V, 0), dtype=np.float32), r"embedding size E is 0, outside 1..16,384"),
        ("embeddings", np.zeros((1, 16385), dtype=np.float32), r"embedding size E is 16,385, outside 1..16,384"),
        ("embeddings", np.zeros(((1 << 24) + 1, 1), dtype=np.float32), r"size V is 16,777,217, outside"),
        ("bh", np.zeros(16385, dtype=np.float32), r"hidden size H is 16,385, outside 1..16,384"),
        ("bh", np.zeros(0, dtype=np.float32), r"hidden size H is 0, outside 1..16,384"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_weights(), **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": WORDS[:-1]}, "6 words, but embeddings for 7"),
        ({"vocabulary": (*WORDS[:-1], "the")}, "names 1 words more than once"),
        ({"tokenizer": "bpe"}, "tokenizer is 'bpe', not one of wikitext, plain"),
        ({"backend": "jax"}, "backend is 'jax', not one of c, torch"),
        ({"config": []}, "config must be a JSON object"),
        ({"history": {}}, "history must be a JSON list"),
        ({"history": [1]}, "history must be a JSON list of objects"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_checkpoint(**changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": math.inf}, r"config\['loss'\] is inf, which is not a finite number"),
        ({"a": [0, {"b": math.nan}]}, r"config\['a'\]\[1\]\['b'\] is nan"),
        ({"a": np.float32(1)}, r"config\['a'\] is of type float32, which is not JSON"),
        ({"a": Path("x")}, r"config\['a'\] is of type \w+Path, which is not JSON"),
        ({1: 2}, "config has the key 1, which is not a string"),
        ({"a": "\udc80"}, r"config\['a'\] holds half of a surrogate pair"),
        ({"\udc80": 1}, "config holds half of a surrogate pair"),
        ({"a": 1 << 128}, "more than 128 bits"),
        ({"a": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}, "nested more than 16 deep"),
    ],
)
def test_what_is_not_json_is_refused_before_anything_is_written(
    path: Path, config: dict[Any, Any], message: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        checkpoint.save(path, make_checkpoint(config=config))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


# ---- Finite ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_not_finite_is_named(name: str, value: float) -> None:
    weights = make_weights()
    checkpoint.check_finite(weights)
    array = getattr(weights, name)
    array[tuple(size - 1 for size in array.shape)] = value
    place = ", ".join(str(size - 1) for size in array.shape)
    with pytest.raises(CheckpointError, match=re.escape(f"up/x.safetensors: {name}[{place}] is {value}: ")):
        checkpoint.check_finite(weights, "up/x.safetensors")


def test_check_finite_looks_at_every_block_in_little_memory() -> None:
    v = 3_000_001  # not a multiple of the block size
    weights = Weights(*(np.zeros(shape, np.float32) for shape in ((v, 1), (1, 1), (1, 1), (1,), (1, v), (v,))))
    for place in (0, (1 << 20) - 1, 1 << 20, v - 1):
        weights.by[place] = math.nan
        with pytest.raises(CheckpointError, match=rf"by\[{place}\] is nan"):
            checkpoint.check_finite(weights)
        weights.by[place] = 0
    tracemalloc.start()
    try:
        checkpoint.check_finite(weights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # the weights take 36 MB


def test_diverged_weights_do_not_replace_good_ones(path: Path) -> None:
    weights = make_weights()
    weights.Whh[1, 2] = math.nan
    with pytest.raises(SaveError, match=r"not saved, since Whh\[1, 2\] is nan: the training has diverged"):
        checkpoint.save(path, make_checkpoint(weights=weights))
    assert_equal(checkpoint.load(path), make_checkpoint())
