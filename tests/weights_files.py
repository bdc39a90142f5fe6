"""What the tests of weights files and resume files share: a good file, its parts, refusals."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
from hypothesis import strategies as st

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint, CheckpointError, Weights

V, E, H = 7, 5, 3  # all different, so that no transposed matrix fits
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
    return conftest.make_weights(v, e, h, seed)


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
    """Split a safetensors file into its header and its tensors' bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(header: object, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def refused(path: str | os.PathLike[str], read: Callable[[Any], object] = checkpoint.load) -> str:
    """Return the message that refuses `path`: one line that starts with the name as given."""
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{os.fspath(path)}: ") and "\n" not in message and len(message) < 600
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Save a good weights file, the only file of its folder."""
    path = tmp_path / "weights" / "good.safetensors"
    checkpoint.save(path, make_checkpoint())
    return path


def put_words(path: Path, words: bytes) -> None:
    """Replace the vocabulary, which is the last tensor."""
    header, data = split(path.read_bytes())
    begin = header["vocabulary"]["data_offsets"][0]
    header["vocabulary"] |= {"shape": [len(words)], "data_offsets": [begin, begin + len(words)]}
    path.write_bytes(join(header, data[:begin] + words))


def mapping_of(array: np.ndarray) -> object:
    """Return the mapping that a view ends in, or None if the array owns its memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def resident(array: np.ndarray) -> int:
    """Return how many bytes of the file mapping that holds `array` are in memory."""
    at = array.ctypes.data
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if re.match("[0-9a-f]+-", line) and int(line.split("-")[0], 16) <= at < int(re.split("[- ]", line)[1], 16):
            return next(int(each.split()[1]) << 10 for each in lines if each.startswith("Rss:"))
    raise AssertionError("nowhere")


# JSON as a forger would write it: words of the format, and numbers around the limits of integers.
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
    """Yield every (container, key) inside a JSON value."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from places(child)
