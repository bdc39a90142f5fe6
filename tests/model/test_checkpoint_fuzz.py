"""Damaged, forged and random files are refused or valid; nothing else happens."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weights_files import FORGED, assert_equal, join, make_checkpoint, places, put_words, refused, split

from rnnlm import checkpoint
from rnnlm.checkpoint import CheckpointError
from rnnlm.training import state_file


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Return a path for files that are rewritten a thousand times, and the bytes of a good one."""
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    checkpoint.save(path, make_checkpoint())
    return path, path.read_bytes()


def load_or_refuse(path: Path, data: bytes) -> None:
    """Load `data`: either CheckpointError, or a checkpoint that survives another save() and load()."""
    path.write_bytes(data)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and message.isprintable()
        return
    # A byte of a tensor may have become an infinity, which load() leaves to check_finite().
    try:
        checkpoint.check_finite(loaded.weights, path)
    except CheckpointError:
        return
    again = path.with_name("again.safetensors")
    checkpoint.save(again, loaded)
    assert_equal(checkpoint.load(again), loaded)


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
    refused(path, state_file.load)
