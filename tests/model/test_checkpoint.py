"""The weights file and the resume file: what goes in comes out, and nothing else gets in."""

import copy
import dataclasses
import errno
import io
import itertools
import json
import math
import mmap
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rnnlm import checkpoint, files
from rnnlm.checkpoint import Checkpoint, CheckpointError, VocabularyError, Weights
from rnnlm.container import MAX_HEADER_BYTES
from rnnlm.errors import UserError
from rnnlm.files import SaveError

V, E, H = 7, 5, 3  # all different, so that no transpose fits
WORDS = ("the", "<EOS>", "king", "naïve", "王", "The", "<UNK>")
METADATA = {
    "format": "rnn-weights",
    "version": "1",
    "tokenizer": "plain",
    "backend": "c",
    "config": "{}",
    "history": "[]",
}
NAMES = ("embeddings", "Wxh", "Whh", "bh", "Why", "by")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

Header = dict[str, Any]


def make_weights(v: int = V, e: int = E, h: int = H, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = ((v, e), (e, h), (h, h), (h,), (h, v), (v,))
    return Weights(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))


def make_checkpoint(seed: int = 0, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "weights": make_weights(seed=seed),
        "vocabulary": WORDS,
        "tokenizer": "plain",
        "backend": "c",
        "config": {"learning_rate": 1e-05, "corpus": 'a "quoted" naïve\nname', "clip": None},
        "history": [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 2.25}],
    }
    return Checkpoint(**values | changes)


def assert_equal(got: Checkpoint, want: Checkpoint) -> None:
    for name in NAMES:
        a, b = getattr(got.weights, name), getattr(want.weights, name)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b, err_msg=name)
    for field in ("vocabulary", "tokenizer", "backend", "config", "history"):
        assert getattr(got, field) == getattr(want, field), field


def split(data: bytes) -> tuple[Header, bytes]:
    """Header and tensors of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(header: object, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def refused(path: str | os.PathLike[str], read: Callable[[Any], object] = checkpoint.load) -> str:
    """The message with which `path` is refused: one line that begins with the name as given."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{os.fspath(path)}: ") and "\n" not in message and len(message) < 600
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good weights file, alone in its folder."""
    path = tmp_path / "weights" / "good.safetensors"
    checkpoint.save(path, make_checkpoint())
    return path


# ---- Round trip ------------------------------------------------------------------------------------------------


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
    tokenizer=st.sampled_from(["wikitext", "plain"]),
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
    # a mapped file is read-only: saving what was loaded (as a converter does) must work too
    checkpoint.save(tmp_path / "a.safetensors", make_checkpoint())
    checkpoint.save(tmp_path / "b.safetensors", checkpoint.load(tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    state = {"transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T, "every other": np.arange(9)[::2]}
    checkpoint.save_state(tmp_path / "a.resume", state, {})
    loaded, _ = checkpoint.load_state(tmp_path / "a.resume")
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
    flat[:] = 0  # a copy: the weights it came from stay
    assert weights.by.any() and not again.by.any()
    with pytest.raises(ValueError, match=r"flat parameters have shape \[1\]"):
        Weights.from_flat(weights.embeddings, flat[:1], H)


# ---- Mapping ---------------------------------------------------------------------------------------------------


def mapping_of(array: np.ndarray) -> object:
    """The mapping at the bottom of a view; None where the array owns its memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def test_tensors_are_read_only_views_of_one_mapping(path: Path) -> None:
    weights = checkpoint.load(path).weights
    arrays = [getattr(weights, name) for name in NAMES]
    assert len({id(mapping_of(array)) for array in arrays}) == 1 and mapping_of(arrays[0]) is not None
    for array in arrays:
        assert type(array) is np.ndarray  # np.memmap itself is slow to index, and odd to torch
        assert array.flags.aligned and array.flags.c_contiguous and not array.flags.writeable
    assert arrays[0].ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        weights.by[0] = 1


def test_copy_lets_go_of_the_file(path: Path) -> None:
    weights = checkpoint.load(path, copy=True).weights
    for name in NAMES:
        assert mapping_of(getattr(weights, name)) is None and getattr(weights, name).flags.writeable
    assert_equal(checkpoint.load(path, copy=True), make_checkpoint())


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """1.3 GB, all of it a hole: a loader that reads or copies tensors needs that much memory."""
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


@POSIX  # Windows replaces no file that is mapped
def test_who_mapped_the_old_file_keeps_it(path: Path) -> None:
    old = checkpoint.load(path)
    checkpoint.save(path, make_checkpoint(seed=1))
    assert_equal(old, make_checkpoint(seed=0))
    assert_equal(checkpoint.load(path), make_checkpoint(seed=1))


def resident(array: np.ndarray) -> int:
    """Bytes of the file mapping that an array lies in which are in this process's memory."""
    at = array.ctypes.data
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if re.match("[0-9a-f]+-", line) and int(line.split("-")[0], 16) <= at < int(re.split("[- ]", line)[1], 16):
            return next(int(each.split()[1]) << 10 for each in lines if each.startswith("Rss:"))
    raise AssertionError("nowhere")


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


# ---- The safetensors package -----------------------------------------------------------------------------------


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
    """Also with the vocabulary, 32 odd bytes, before float32 tensors: those are copied into place."""
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


# ---- What is not a weights file --------------------------------------------------------------------------------


class Bomb:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "pickle.safetensors"
    path.write_bytes(pickle.dumps(Bomb(str(mark))))
    assert "is not a safetensors file" in refused(path)
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(str(mark))], dtype=object), allow_pickle=True)
    assert "is not a safetensors file" in refused(path)
    assert not mark.exists()


def test_an_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, Wxh=np.zeros((E, H)))
    path = tmp_path / "zip.safetensors"
    path.write_bytes(buffer.getvalue())
    assert "is not a safetensors file" in refused(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    assert re.search("there is no such file: train a model", refused(tmp_path / "no.safetensors"))
    assert "there is no such file" in refused(tmp_path / "no folder" / "no.safetensors")
    assert "there is no such file: train without --resume" in refused(tmp_path / "no.resume", checkpoint.load_state)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / ("x" * 300))
    (tmp_path / "file").touch()
    assert "cannot be read: Not a directory" in refused(tmp_path / "file" / "x.safetensors")


@POSIX
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is not a regular file" in refused(tmp_path / "pipe.safetensors")


def test_a_name_that_would_break_the_line_is_quoted() -> None:
    for name in ("a\0b", "a\nb", "a\x1b[2Jb"):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(name)
        assert str(caught.value).startswith(repr(name)) and str(caught.value).isprintable()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_a_short_file_is_refused(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    assert f"cut short: {size} bytes" in refused(path)


def test_every_truncation_and_extension_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole[:-1])
    assert "tensors take" in refused(path)
    path.write_bytes(whole + b"\0")
    assert "tensors take" in refused(path)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_refused(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path)


def test_the_header_has_a_limit(path: Path) -> None:
    header, data = split(path.read_bytes())
    raw = json.dumps(header).encode()
    path.write_bytes(join(raw + b" " * (MAX_HEADER_BYTES - len(raw)), data))
    assert_equal(checkpoint.load(path), make_checkpoint())
    path.write_bytes(join(raw + b" " * (MAX_HEADER_BYTES + 1 - len(raw)), data))
    assert f"{MAX_HEADER_BYTES:,}" in refused(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not valid JSON"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{}", "format is None"),
        (b'{"__metadata__": {}}', "format is None"),
        (b'{"__metadata__": null}', "an object of strings"),
        (b'{"__metadata__": {"format": 1}}', "an object of strings"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "'__metadata__' stands twice"),
        (b'{"by": 1, "by": 2}', "'by' stands twice"),
        (b'{"by": NaN}', "nan, which is not a finite number"),
        (b'{"by": -Infinity}', "-inf, which is not a finite number"),
        (b'{"by": 1e999}', "inf, which is not a finite number"),
        (b'{"by": ' + b"9" * 40 + b"}", "more than 128 bits"),
        (b'{"by": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"by": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"by": "\xff"}', "not UTF-8 at byte 8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b"{'by': 1}", "not valid JSON"),
        (b"[" * 17 + b"]" * 17, "nested more than 16 deep"),
        (b"[" * 100_000, "nested more than 16 deep"),
        (b'{"a":' * 100_000, "nested more than 16 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 16 deep"),
        (json.dumps({f"t{i}": {} for i in range(257)}).encode(), "257 tensors, more than 256"),
    ],
)
def test_a_bad_header_is_refused(path: Path, raw: bytes, message: str) -> None:
    path.write_bytes(join(raw, b""))
    assert message in refused(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "pt", "format is 'pt', not 'rnn-weights'"),
        ("format", "rnn-resume", "format is 'rnn-resume', not 'rnn-weights'"),
        ("format", None, "format is None"),
        ("version", "2", "version is '2'; this program reads '1'"),
        ("version", None, "version is None"),
        ("tokenizer", "bpe", "tokenizer is 'bpe', not one of wikitext, plain"),
        ("tokenizer", None, "lacks 'tokenizer'"),
        ("backend", "jax", "backend is 'jax', not one of c, torch"),
        ("backend", "\n" * 9999, "..., not one of c, torch"),
        ("backend", None, "lacks 'backend'"),
        ("config", "lr=1", "config is not valid JSON"),
        ("config", "[]", "config must be a JSON object"),
        ("config", '{"lr": NaN}', "config['lr'] is nan"),
        ("config", '{"a": 1, "a": 1}', "'a' stands twice"),
        ("config", "[" * 99_999, "config is nested more than 16 deep"),
        ("config", '{"a":' * 17 + "1" + "}" * 17, "is nested more than 16 deep"),
        ("config", '{"a": "\\udc00"}', "half of a surrogate pair"),
        ("config", None, "lacks 'config'"),
        ("history", "{}", "history must be a JSON list of objects"),
        ("history", "[1]", "history must be a JSON list of objects"),
        ("history", '[{}, {"loss": 1e999}]', "history[1]['loss'] is inf"),
        ("history", "", "history is not valid JSON"),
        ("history", None, "lacks 'history'"),
    ],
)
def test_bad_metadata_is_refused(path: Path, key: str, value: str | None, message: str) -> None:
    header, data = split(path.read_bytes())
    if value is None:
        del header["__metadata__"][key]
    else:
        header["__metadata__"][key] = value
    path.write_bytes(join(header, data))
    assert message in refused(path)


@pytest.mark.parametrize(
    ("tensor", "changes", "message"),
    [
        ("by", {"strides": [4]}, "must have dtype, shape and data_offsets"),
        ("by", {"dtype": "F16"}, "'by' has the type 'F16', not F32"),
        ("by", {"dtype": ["F32"]}, "'by' has the type ['F32']"),
        ("by", {"dtype": None}, "'by' has the type None"),
        ("by", {"dtype": "I32"}, "by must be an array of float32, not int32"),
        ("by", {"dtype": "F64"}, "'by' takes 56 bytes, but has"),
        ("by", {"shape": "7"}, "'by' has the shape '7'"),
        ("by", {"shape": 7}, "'by' has the shape 7"),
        ("by", {"shape": [7.0]}, "'by' has the shape [7.0]"),
        ("by", {"shape": [7, True]}, "'by' has the shape [7, True]"),
        ("by", {"shape": [-7]}, "'by' has the shape [-7]"),
        ("by", {"shape": [-7, -1]}, "'by' has the shape [-7, -1]"),
        ("by", {"shape": [0]}, "'by' has the shape [0]"),
        ("by", {"shape": [0, 2**62]}, "'by' has the shape [0, "),
        ("by", {"shape": [2**62, 4, 7]}, "bytes, but has"),  # 2**66 * 7: 0 or 28 where sizes wrap at 64 bits
        ("by", {"shape": [7, 1, 1, 1, 1]}, "not up to 4 sizes"),
        ("by", {"shape": [1] * 9999}, "not up to 4 sizes"),
        ("by", {"shape": [8]}, "'by' takes 32 bytes, but has"),
        ("by", {"shape": []}, "'by' takes 4 bytes, but has"),
        ("by", {"shape": [1, 7]}, "by has shape [1, 7], expected [7]"),
        ("bh", {"shape": [3, 1]}, "embeddings must be (V, E) and bh (H)"),
        ("embeddings", {"shape": [35]}, "embeddings must be (V, E) and bh (H)"),
        ("embeddings", {"shape": [5, 7]}, "Wxh has shape [5, 3], expected [7, 3]"),
        ("Wxh", {"shape": [3, 5]}, "Wxh has shape [3, 5], expected [5, 3]"),
        ("Whh", {"shape": [9]}, "Whh has shape [9], expected [3, 3]"),
        ("Why", {"shape": [7, 3]}, "Why has shape [7, 3], expected [3, 7]"),
        ("vocabulary", {"shape": [7, 5]}, "one row of uint8, not uint8 [7, 5]"),
        ("by", {"data_offsets": None}, "'by' has the bytes None"),
        ("by", {"data_offsets": [0]}, "'by' has the bytes [0]"),
        ("by", {"data_offsets": [0, 28, 28]}, "'by' has the bytes [0, 28, 28]"),
        ("by", {"data_offsets": [0.0, 28.0]}, "'by' has the bytes [0.0, 28.0]"),
        ("by", {"data_offsets": [-28, 0]}, "'by' has the bytes [-28, 0]"),
        ("by", {"data_offsets": [28, 0]}, "'by' takes 28 bytes, but has [28, 0]"),
        ("by", {"data_offsets": [0, 28]}, "starts at byte"),  # overlaps the embeddings
        ("by", {"data_offsets": [2**63, 2**63 + 28]}, "starts at byte"),
        ("by", {"data_offsets": [2**127, 2**127 + 28]}, "starts at byte"),
    ],
)
def test_a_bad_tensor_is_refused(path: Path, tensor: str, changes: Header, message: str) -> None:
    header, data = split(path.read_bytes())
    header[tensor] |= changes
    path.write_bytes(join(header, data))
    assert message in refused(path)


@pytest.mark.parametrize("entry", [None, [], "F32", {}, {"dtype": "F32"}])
def test_a_bad_entry_is_refused(path: Path, entry: object) -> None:
    header, data = split(path.read_bytes())
    header["by"] = entry
    path.write_bytes(join(header, data))
    assert "'by' must have dtype, shape and data_offsets" in refused(path)


def test_holes_overlaps_and_strangers_are_refused(path: Path) -> None:
    good, data = split(path.read_bytes())

    def message(change: Callable[[Header], object]) -> str:
        header = copy.deepcopy(good)
        change(header)
        path.write_bytes(join(header, data))
        return refused(path)

    assert "'Why' starts at byte" in message(lambda header: header.pop("bh"))
    assert "its tensors take" in message(lambda header: header.pop("vocabulary"))
    # the same bytes under two names, of the same length, with the file none the shorter
    assert "starts at byte" in message(lambda header: header.update(twin=header["embeddings"]))
    assert "format is None" in message(lambda header: header.pop("__metadata__"))
    assert "['by'] missing, ['b2'] unknown" in message(lambda header: header.update(b2=header.pop("by")))
    assert "['Wxh'] missing, ['wxh'] unknown" in message(lambda header: header.update(wxh=header.pop("Wxh")))
    end = max(entry["data_offsets"][1] for name, entry in good.items() if name in (*NAMES, "vocabulary"))
    data += bytes(4)
    extra = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    assert "[] missing, ['extra'] unknown" in message(lambda header: header.update(extra=extra))


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("Why", np.float64, "Why must be an array of float32, not float64"),
        ("Why", np.float16, "'Why' has the type 'F16', not F32, F64, I32, I64, U8"),
        ("vocabulary", np.float32, "one row of uint8, not float32 [35]"),
    ],
)
def test_other_types_are_refused(path: Path, name: str, dtype: type, message: str) -> None:
    tensors = safetensors.numpy.load_file(path)
    tensors[name] = tensors[name].astype(dtype)
    safetensors.numpy.save_file(tensors, path, METADATA)
    assert message in refused(path)


# ---- The vocabulary --------------------------------------------------------------------------------------------


def put_words(path: Path, words: bytes) -> None:
    """Exchange the vocabulary, which is the last tensor."""
    header, data = split(path.read_bytes())
    begin = header["vocabulary"]["data_offsets"][0]
    header["vocabulary"] |= {"shape": [len(words)], "data_offsets": [begin, begin + len(words)]}
    path.write_bytes(join(header, data[:begin] + words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (b"a\nb\nc\nd\ne\nf\ng", "lacks <EOS>"),
        (b"a\nb\nc\nd\ne\nf\n<eos>", "lacks <EOS>"),
        (b"a\nb\nc\nd\ne\na\n<EOS>", "names 1 words more than once"),
        (b"a\nb\nc\nd\ne\n\n<EOS>", "has an empty word"),
        (b"a\nb\nc\nd\ne\n<EOS>\n", "has an empty word"),
        (b"a\nb\nc\nd\ne\n<EOS>", "has 6 words, but there are embeddings for 7"),
        (b"a\nb\nc\nd\ne\nf\ng\n<EOS>", "has 8 words, but there are embeddings for 7"),
        (b"\n" * 99_999, "has 100,000 words, but there are embeddings for 7"),
        (b"a\nb\nc\nd\ne\n\xff\n<EOS>", "not UTF-8 at byte 10"),
        (b"a\nb\nc\nd\ne\n\xed\xa0\x80\n<EOS>", "not UTF-8 at byte 10"),
        (b"a\nb\nc\nd\ne\nf g\n<EOS>", "word 'f g' has a space"),
        (b"a\nb\nc\nd\ne\nf\tg\n<EOS>", r"word 'f\tg' has a space or an unprintable character"),
        (b"a\r\nb\nc\nd\ne\nf\n<EOS>", r"word 'a\r' has a space or an unprintable character"),
        (b"a\nb\nc\nd\ne\n\x1b[2J\n<EOS>", r"word '\x1b[2J' has a space or an unprintable character"),
        (b"a\nb\nc\nd\ne\n\0\n<EOS>", r"word '\x00' has a space or an unprintable character"),
        ("a\nb\nc\nd\ne\n\N{RIGHT-TO-LEFT OVERRIDE}\n<EOS>".encode(), r"word '\u202e' has a space or"),
        (b"a\nb\nc\nd\ne\n" + b"f" * 1025 + b"\n<EOS>", "has 1,025 characters, more than 1,024"),
        (b"f" * ((8 << 20) + 1), "takes 8,388,609 bytes, more than 8,388,608"),
    ],
)
def test_a_bad_vocabulary_is_refused(path: Path, words: bytes, message: str) -> None:
    put_words(path, words)
    assert message in refused(path)


def test_the_longest_word_is_allowed(path: Path) -> None:
    put_words(path, b"a\nb\nc\nd\ne\n" + b"f" * 1024 + b"\n<EOS>")
    assert checkpoint.load(path).vocabulary[5] == "f" * 1024


def test_check_vocabulary_is_a_user_error_before_training() -> None:
    checkpoint.check_vocabulary(WORDS)
    with pytest.raises(VocabularyError, match="1,025 characters, more than 1,024: take it out") as caught:
        checkpoint.check_vocabulary(["<EOS>", "f" * 1025])
    assert isinstance(caught.value, UserError) and len(str(caught.value)) < 300
    with pytest.raises(VocabularyError, match="has 0 words"):
        checkpoint.check_vocabulary([])
    many = ["<EOS>", *(f"{i:0>999}" for i in range(8_500))]
    with pytest.raises(VocabularyError, match="bytes, more than 8,388,608: cut rare words"):
        checkpoint.check_vocabulary(many)


# ---- Fuzzing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A place for files that are written a thousand times, and the bytes of a good one."""
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    checkpoint.save(path, make_checkpoint())
    return path, path.read_bytes()


def load_or_refuse(path: Path, data: bytes) -> None:
    """Whatever `data` is: a checkpoint that save() takes and load() gives back, or CheckpointError; nothing else."""
    path.write_bytes(data)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and message.isprintable()
        return
    # Every number is looked at; a byte of a tensor may have become an infinity, which is check_finite's affair.
    try:
        checkpoint.check_finite(loaded.weights, path)
    except CheckpointError:
        return
    again = path.with_name("again.safetensors")
    checkpoint.save(again, loaded)
    assert_equal(checkpoint.load(again), loaded)


# JSON as a forger would write it: the words of the format, and numbers around the limits of integers.
FORGED = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 3, 5, 7, 28, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**128, 1e999, 0.5, 1e308])
    | st.sampled_from(["", "F32", "F64", "U8", "rnn-weights", "1", "plain", "c", "{}", "[]", "[{}]", "\ud800", "\n"])
    | st.integers()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*NAMES, "vocabulary", "dtype", "shape", "data_offsets", "format", "config"]), inner
        )
    ),
    max_leaves=8,
)


def places(value: object) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from places(child)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_forged_header_is_refused_or_valid(scratch: tuple[Path, bytes], data: st.DataObject) -> None:
    path, good = scratch
    header, tensors = split(good)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(list(places(header))))
        container[key] = data.draw(FORGED)
    load_or_refuse(path, join(header, tensors))


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 2000),
    tail=st.binary(max_size=9),
)
@example(edits=[(0, 0)], cut=None, tail=b"")
def test_damaged_bytes_are_refused_or_valid(
    scratch: tuple[Path, bytes], edits: list[tuple[int, int]], cut: int | None, tail: bytes
) -> None:
    path, good = scratch
    damaged = bytearray(good)
    for position, byte in edits:
        damaged[position % len(damaged)] = byte
    load_or_refuse(path, bytes(damaged[:cut]) + tail)


@settings(max_examples=200, deadline=None)
@given(words=st.binary(max_size=60), separators=st.integers(0, 9))
def test_any_vocabulary_is_refused_or_valid(scratch: tuple[Path, bytes], words: bytes, separators: int) -> None:
    path, good = scratch
    path.write_bytes(good)
    put_words(path, b"<EOS>" + b"\n" * separators + words + b"\na\nb\nc\nd\ne"[: 2 * separators] + b"x")
    load_or_refuse(path, path.read_bytes())


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(scratch: tuple[Path, bytes], content: bytes) -> None:
    path, _ = scratch
    path.write_bytes(content)
    refused(path)
    path.write_bytes(join(b'{"__metadata__": {}' + content, b""))
    refused(path)
    refused(path, checkpoint.load_state)


# ---- What cannot be built --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("by", [0.0] * V, "by must be an array of float32, not list"),
        ("by", None, "by must be an array of float32, not NoneType"),
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


# ---- Finite ----------------------------------------------------------------------------------------------------


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
    v = 3_000_001  # not a multiple of the block
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


# ---- The resume file -------------------------------------------------------------------------------------------


def test_state_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.resume"
    rng = np.random.default_rng(3)
    arrays = {
        "bytes": np.arange(5, dtype=np.uint8),  # an odd length, before wider types
        "params": rng.standard_normal(7, dtype=np.float32),
        "hidden": rng.standard_normal((2, 3), dtype=np.float32),
        "sums": rng.standard_normal(3),
        "steps": np.array([1, 2**62]),
        "ids": np.array([[[1]], [[-2]]], dtype=np.int32),
        "step": np.array(7.0, dtype=np.float32),  # torch keeps its step count so
    }
    metadata = {"epoch": 3, "best": None, "rng": rng.bit_generator.state}
    checkpoint.save_state(path, arrays, metadata)
    loaded, values = checkpoint.load_state(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].flags.writeable and mapping_of(loaded[name]) is None
    assert values == metadata
    again = np.random.default_rng()
    again.bit_generator.state = values["rng"]
    assert again.random() == rng.random()
    assert not list(tmp_path.glob("*.safetensors"))
    for name, array in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_state_is_in_memory_once(tmp_path: Path) -> None:
    path, size = tmp_path / "x.resume", 1 << 22
    checkpoint.save_state(path, {"params": np.zeros(size // 8), "m": np.ones(size // 8)}, {})
    tracemalloc.start()
    try:
        arrays, _ = checkpoint.load_state(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert arrays["m"].nbytes == size and peak < 2 * size + size // 2


@pytest.mark.parametrize("links", [True, False])
def test_what_was_there_is_kept_under_another_name(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    path, keep = tmp_path / "x.resume", tmp_path / "x.resume.1"
    for text in (b"one", b"two", b"three"):
        files.atomic_write(path, text, keep=keep)
    assert (path.read_bytes(), keep.read_bytes()) == (b"three", b"two") and len(os.listdir(tmp_path)) == 2

    replace = os.replace

    def no_replace(source: Any, target: Any) -> None:
        if Path(source).suffix == ".tmp" and Path(target) == path:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", no_replace)
    with pytest.raises(SaveError, match="what was there is unchanged"):
        files.atomic_write(path, b"four", keep=keep)
    assert path.read_bytes() == b"three"
    assert sorted(os.listdir(tmp_path)) == (["x.resume", "x.resume.1"] if links else ["x.resume"])
    assert not links or keep.read_bytes() == b"two"


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'epoch\\":7', b'epoch\\":8'), (b'"a":{', b'"b":{'), (b"[2,3]", b"[3,2]"), (b'"I32"', b'"F32"')],
    ids=["a value", "a name", "a shape", "a type"],
)
def test_a_state_with_another_character_in_its_header_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    """As valid as before, but not what was written."""
    path = tmp_path / "x.resume"
    checkpoint.save_state(path, {"a": np.arange(6, dtype=np.int32).reshape(2, 3)}, {"epoch": 7})
    good = path.read_bytes()
    assert good.count(old) == 1
    path.write_bytes(good.replace(old, new))
    assert "is damaged" in refused(path, checkpoint.load_state)


def test_state_may_be_empty(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path / "x.resume", {}, {})
    assert checkpoint.load_state(tmp_path / "x.resume") == ({}, {})


def test_a_non_finite_state_is_kept(tmp_path: Path) -> None:
    """Whether a moment may be infinite is the trainer's affair; the file gives back what it got."""
    checkpoint.save_state(tmp_path / "x.resume", {"m": np.array([math.inf, math.nan])}, {})
    np.testing.assert_array_equal(checkpoint.load_state(tmp_path / "x.resume")[0]["m"], [math.inf, math.nan])


def test_one_kind_of_file_is_not_taken_for_the_other(path: Path) -> None:
    assert "format is 'rnn-weights', not 'rnn-resume'" in refused(path, checkpoint.load_state)
    checkpoint.save_state(path, dict(make_weights().parameters()), {})
    assert "format is 'rnn-resume', not 'rnn-weights'" in refused(path)


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"a": np.zeros(1, dtype=np.float16)}, {}, "a has the type float16, not one of float32"),
        ({"a": np.array(["x"])}, {}, "a has the type <U1"),
        ({"a": np.array([object()])}, {}, "a has the type object"),
        ({"a": np.zeros(1, dtype=">f4")}, {}, "a has the type >f4"),
        ({"a": np.zeros((2, 0))}, {}, r"a has the shape \[2, 0\], not up to 4 sizes above 0"),
        ({"a": np.zeros((1, 1, 1, 1, 1))}, {}, "not up to 4 sizes above 0"),
        ({str(i): np.zeros(1) for i in range(257)}, {}, "257 tensors, more than 256"),
        ({}, {"loss": math.inf}, r"state\['loss'\] is inf"),
        ({}, {"path": Path("x")}, "which is not JSON"),
    ],
)
def test_state_that_a_file_cannot_hold_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.save_state(tmp_path / "x.resume", arrays, metadata)
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def state_scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "x.resume"
    checkpoint.save_state(path, {"m": np.arange(6.0).reshape(2, 3), "v": np.arange(5, dtype=np.uint8)}, {"a": 1})
    return path, path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_forged_state_is_refused_or_valid(state_scratch: tuple[Path, bytes], data: st.DataObject) -> None:
    path, good = state_scratch
    header, tensors = split(good)
    container, key = data.draw(st.sampled_from(list(places(header))))
    container[key] = data.draw(FORGED)
    path.write_bytes(join(header, tensors))
    try:
        arrays, metadata = checkpoint.load_state(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
    else:
        checkpoint.save_state(path, arrays, metadata)


def test_a_truncated_state_is_refused(state_scratch: tuple[Path, bytes]) -> None:
    path, good = state_scratch
    for size in range(len(good)):
        path.write_bytes(good[:size])
        refused(path, checkpoint.load_state)
    header, tensors = split(good)
    header["__metadata__"]["state"] = "[]"
    path.write_bytes(join(header, tensors))
    assert "state must be a JSON object" in refused(path, checkpoint.load_state)
