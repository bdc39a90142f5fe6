"""A mapped weights file: loading does not read its tensors, and a change in place is detected."""

import os
from pathlib import Path

import pytest
from conftest import make_checkpoint
from weights_files import POSIX, resident

from rnnlm import checkpoint


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_loading_reads_nothing_through_the_mapping(weights_file: Path) -> None:
    """So a caller can guard the mapping before anything touches it, in case the file is cut short."""
    loaded = checkpoint.load(weights_file)
    assert loaded.mapping and loaded.mapping.data.size == weights_file.stat().st_size
    assert resident(loaded.mapping.data) == 0
    assert loaded.weights.by.any()
    assert resident(loaded.mapping.data) > 0


def test_a_copy_has_no_mapping(weights_file: Path) -> None:
    assert checkpoint.load(weights_file, copy=True).mapping is None


@POSIX  # Windows does not replace a mapped file
def test_a_mapping_stays_on_its_version_of_the_file(weights_file: Path) -> None:
    mapping = checkpoint.load(weights_file).mapping
    assert mapping and mapping.is_unchanged()
    checkpoint.save(weights_file, make_checkpoint(vocab=20))  # renames a new file to this name
    assert mapping.is_unchanged()


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_change_in_place_is_seen(weights_file: Path, change: str) -> None:
    mapping = checkpoint.load(weights_file).mapping
    assert mapping and mapping.is_unchanged()
    if change == "size":
        with weights_file.open("ab") as file:
            file.write(b"\0")
    else:
        os.utime(weights_file, (1, 1))
    assert not mapping.is_unchanged()
