"""The resume file: what goes in comes out, and everything else is refused."""

import errno
import math
import os
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
from weights_files import FORGED, join, make_weights, mapping_of, places, refused, split

from rnnlm import files
from rnnlm.checkpoint import CheckpointError
from rnnlm.files import SaveError
from rnnlm.training import state_file

path = weights_files.path  # a fixture


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
        "step": np.array(7.0, dtype=np.float32),  # torch keeps its step count like this
    }
    metadata = {"epoch": 3, "best": None, "rng": rng.bit_generator.state}
    state_file.save(path, arrays, metadata)
    loaded, values = state_file.load(path)
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
    state_file.save(path, {"params": np.zeros(size // 8), "m": np.ones(size // 8)}, {})
    tracemalloc.start()
    try:
        arrays, _ = state_file.load(path)
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
    """The header is still valid, but not the one that was written."""
    path = tmp_path / "x.resume"
    state_file.save(path, {"a": np.arange(6, dtype=np.int32).reshape(2, 3)}, {"epoch": 7})
    good = path.read_bytes()
    assert good.count(old) == 1
    path.write_bytes(good.replace(old, new))
    assert "is damaged" in refused(path, state_file.load)


def test_state_may_be_empty(tmp_path: Path) -> None:
    state_file.save(tmp_path / "x.resume", {}, {})
    assert state_file.load(tmp_path / "x.resume") == ({}, {})


def test_a_non_finite_state_is_kept(tmp_path: Path) -> None:
    """Whether a moment may be infinite is for the trainer to judge; the file returns what it was given."""
    state_file.save(tmp_path / "x.resume", {"m": np.array([math.inf, math.nan])}, {})
    np.testing.assert_array_equal(state_file.load(tmp_path / "x.resume")[0]["m"], [math.inf, math.nan])


def test_one_kind_of_file_is_not_taken_for_the_other(path: Path) -> None:
    assert "format is 'rnn-weights', not 'rnn-resume'" in refused(path, state_file.load)
    state_file.save(path, dict(make_weights().parameters()), {})
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
        state_file.save(tmp_path / "x.resume", arrays, metadata)
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def state_scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("fuzz") / "x.resume"
    state_file.save(path, {"m": np.arange(6.0).reshape(2, 3), "v": np.arange(5, dtype=np.uint8)}, {"a": 1})
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
        arrays, metadata = state_file.load(path)
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
    else:
        state_file.save(path, arrays, metadata)


def test_a_truncated_state_is_refused(state_scratch: tuple[Path, bytes]) -> None:
    path, good = state_scratch
    for size in range(len(good)):
        path.write_bytes(good[:size])
        refused(path, state_file.load)
    header, tensors = split(good)
    header["__metadata__"]["state"] = "[]"
    path.write_bytes(join(header, tensors))
    assert "state must be a JSON object" in refused(path, state_file.load)
