"""One run at a time for each --out: a lock beside the weights file, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from rnnlm.errors import reason, show_path
from rnnlm.training.config import ConfigError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(weights: Path) -> Iterator[None]:
    """Hold the lock of the run that writes `weights`, within this block. Its folder must exist.

    The operating system drops the lock of a process that ends, however it ends. The empty file .NAME.lock may then
    stay, and means nothing. Raises ConfigError (another run holds the lock; the file cannot be opened).
    """
    path = weights.with_name(f".{weights.name}.lock")
    try:
        handle = _acquire(path)
    except OSError as error:
        raise ConfigError(f"{show_path(path)}: cannot be locked ({reason(error)}): remove it") from error
    if handle is None:
        raise ConfigError(
            f"{show_path(weights)}: another run is writing there: wait for its end, or choose another --out"
        )
    try:
        yield
    finally:
        _release(path, handle)


def _acquire(path: Path) -> int | None:
    """Return a descriptor that holds the lock; None if another process holds it. Raises OSError."""
    for _ in range(100):
        # A symbolic link is not followed, nor is anything written: what others put there comes to no harm.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            is_locked = _lock(handle)
            if is_locked and _is_at(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if not is_locked:
            return None
        # The run that held the lock has just removed the file, so this lock keeps nobody out: once more.
    raise OSError(errno.EBUSY, "it is replaced again and again")


def _lock(handle: int) -> bool:
    """Lock a file until it is closed; return False if another process has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        log.warning("this file system has no locks (%s): do not start a second run with this --out", reason(error))
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Return whether the open file still has this name. On Windows an open file cannot lose its name."""
    if sys.platform == "win32":
        return True
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _release(path: Path, handle: int) -> None:
    is_ours = _is_at(path, handle) and os.fstat(handle).st_size == 0  # we write nothing into it
    if sys.platform == "win32":  # where an open file cannot be removed
        os.close(handle)
    with contextlib.suppress(OSError):
        if is_ours:
            os.unlink(path)
    if sys.platform != "win32":  # only now, so that no other run has locked it before it is gone
        os.close(handle)
