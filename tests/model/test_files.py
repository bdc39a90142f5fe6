"""Files are written whole or not at all, whatever fails and whenever it fails."""

import errno
import functools
import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weights_files
from conftest import ROOT
from weights_files import POSIX, assert_equal, make_checkpoint, make_weights

from rnnlm import checkpoint, files
from rnnlm.errors import Failure
from rnnlm.files import SaveError
from rnnlm.training import state_file

path = weights_files.path  # a fixture


class Full(io.FileIO):
    """A file on a disk with room for `room` more bytes."""

    def __init__(self, handle: int, mode: str, *, room: int) -> None:
        super().__init__(handle, mode)
        self.room = room

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        written = super().write(data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


def assert_unharmed(path: Path, before: bytes) -> None:
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_disk_that_fills_up_at_any_byte_harms_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    for room in range(0, len(before), 37):
        monkeypatch.setattr(files, "open", functools.partial(Full, room=room), raising=False)
        with pytest.raises(SaveError, match=r"cannot be saved \(No space left on device\).*unchanged: make room"):
            checkpoint.save(path, make_checkpoint(seed=1))
        assert_unharmed(path, before)
    monkeypatch.undo()
    checkpoint.save(path, make_checkpoint(seed=1))
    assert_equal(checkpoint.load(path), make_checkpoint(seed=1))


@pytest.mark.parametrize("call", ["fsync", "replace", pytest.param("fchmod", marks=POSIX)])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()])
def test_a_failing_call_harms_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    before = path.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(SaveError if isinstance(error, OSError) else type(error)) as caught:
        checkpoint.save(path, make_checkpoint(seed=1))
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{path}: cannot be saved (Input/output error)")
        assert isinstance(caught.value, Failure) and caught.value.exit_code == 1
    assert_unharmed(path, before)


@POSIX
def test_the_file_is_synced_before_it_is_renamed_and_the_folder_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        status = os.fstat(handle)
        events.append("folder" if stat.S_ISDIR(status.st_mode) else f"file of {status.st_size}")
        fsync(handle)

    def spy_replace(source: str, target: Path) -> None:
        assert Path(source).parent == target.parent and not source.endswith(".safetensors")
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    checkpoint.save(path, make_checkpoint(seed=1))
    assert events == [f"file of {path.stat().st_size}", "rename", "folder"]


@POSIX
def test_a_folder_that_cannot_be_synced_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync = os.fsync

    def fail_for_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    checkpoint.save(path, make_checkpoint(seed=1))
    assert "the folder cannot be synced to disk (Invalid argument)" in caplog.text
    assert_equal(checkpoint.load(path), make_checkpoint(seed=1))


@POSIX
def test_a_real_limit_on_the_file_size_harms_nothing(path: Path) -> None:
    import resource

    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(SaveError, match=r"cannot be saved \(File too large\)"):
            checkpoint.save(path, make_checkpoint(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_unharmed(path, before)


@POSIX
def test_a_process_that_dies_while_saving_leaves_the_old_file(path: Path) -> None:
    """As after SIGKILL or a power cut: nothing is cleaned up, and yet no listing shows half a file."""
    before = path.read_bytes()
    script = (
        "import os, sys; from rnnlm import checkpoint\n"
        "good = checkpoint.load(sys.argv[1])\n"
        "os.fsync = lambda handle: os._exit(9)\n"
        "checkpoint.save(sys.argv[1], good)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, check=False).returncode == 9
    assert path.read_bytes() == before
    assert len(os.listdir(path.parent)) == 2 and list(path.parent.glob("*.safetensors")) == [path]
    checkpoint.save(path, make_checkpoint(seed=1))
    assert_equal(checkpoint.load(path), make_checkpoint(seed=1))


def test_a_history_that_is_too_long_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    history = [{"epoch": i, "note": "x" * 100} for i in range(50_000)]
    with pytest.raises(SaveError, match=r"history take [\d,]+ bytes \(at most 4,194,304\): train for fewer"):
        checkpoint.save(path, make_checkpoint(history=history))
    assert_unharmed(path, before)
    checkpoint.save(path, make_checkpoint(history=history[:30_000]))
    assert checkpoint.load(path).history == history[:30_000]


SAVERS: list[Callable[[Any], None]] = [
    lambda path: checkpoint.save(path, make_checkpoint()),
    lambda path: state_file.save(path, {"a": np.zeros(3)}, {}),
    lambda path: files.atomic_write(path, b"text"),
    files.check_writable,
]


@pytest.mark.parametrize("saver", SAVERS, ids=["save", "save_state", "atomic_write", "check_writable"])
def test_a_place_that_cannot_be_written_is_a_save_error(tmp_path: Path, saver: Callable[[Any], None]) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "file/x.safetensors": "",
        "file/deeper/x.safetensors": "",
        "folder": "it is not a regular file",
        "x" * 300 + ".safetensors": "",
        "nul\0.safetensors": "",
    }.items():
        with pytest.raises(SaveError, match=rf"cannot be saved \({reason}") as caught:
            saver(tmp_path / name)
        assert str(caught.value).isprintable()
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(tmp_path / "folder")


@POSIX
@pytest.mark.parametrize("saver", SAVERS, ids=["save", "save_state", "atomic_write", "check_writable"])
def test_what_is_not_a_file_is_not_replaced(tmp_path: Path, saver: Callable[[Any], None]) -> None:
    """As root, --out /dev/null must not replace the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SaveError, match="it is not a regular file"):
        saver(pipe)
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs POSIX, and root may write anywhere")
def test_a_read_only_folder_is_a_save_error(path: Path) -> None:
    before = path.read_bytes()
    path.parent.chmod(0o555)
    try:
        with pytest.raises(SaveError, match="Permission denied"):
            checkpoint.save(path, make_checkpoint(seed=1))
    finally:
        path.parent.chmod(0o755)
    assert_unharmed(path, before)


@POSIX
@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_the_mode_is_0644_whatever_the_umask(path: Path, umask: int) -> None:
    path.chmod(0o600)
    before = os.umask(umask)
    try:
        checkpoint.save(path, make_checkpoint())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_check_writable_makes_the_folder_and_nothing_else(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "new" / "x.safetensors")
    assert os.listdir(tmp_path) == ["new"] and not os.listdir(tmp_path / "new")
    (tmp_path / "new" / "x.safetensors").write_bytes(b"precious")
    files.check_writable(tmp_path / "new" / "x.safetensors")
    assert (tmp_path / "new" / "x.safetensors").read_bytes() == b"precious"


def test_a_relative_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save("x.safetensors", make_checkpoint())
    assert os.listdir() == ["x.safetensors"]
    assert_equal(checkpoint.load("x.safetensors"), make_checkpoint())


@POSIX  # Windows does not replace a mapped file
def test_readers_see_one_whole_file_while_others_write(path: Path) -> None:
    def write(seed: int) -> None:
        for _ in range(10):
            checkpoint.save(path, make_checkpoint(seed=seed))

    writers = [threading.Thread(target=write, args=(seed,)) for seed in (0, 1)]
    first = [float(make_weights(seed=seed).embeddings[0, 0]) for seed in (0, 1)]
    for writer in writers:
        writer.start()
    try:
        while any(writer.is_alive() for writer in writers):
            loaded = checkpoint.load(path)
            seed = first.index(float(loaded.weights.embeddings[0, 0]))
            assert_equal(loaded, make_checkpoint(seed=seed))
    finally:
        for writer in writers:
            writer.join()
    assert os.listdir(path.parent) == [path.name]


@POSIX
def test_a_pipe_with_a_saves_name_holds_up_no_save(path: Path) -> None:
    """Opening it would wait for its other end."""
    pipe = path.parent / f".saving-{path.name}-left.tmp"
    os.mkfifo(pipe)
    os.utime(pipe, (1, 1))
    saving = threading.Thread(target=checkpoint.save, args=(path, make_checkpoint(seed=1)), daemon=True)
    saving.start()
    saving.join(10)
    assert not saving.is_alive() and pipe.exists()
    assert_equal(checkpoint.load(path), make_checkpoint(seed=1))
