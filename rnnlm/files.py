"""Writing a file whole or not at all.

A file is written under a temporary name beside its place, synced to disk and renamed: whoever reads sees the old file
or the new one, and a crash leaves one of the two.
"""

import contextlib
import errno
import glob
import hashlib
import logging
import os
import stat
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rnnlm.errors import Failure, reason, show_path

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 60.0  # between a temporary file's last byte and its rename lies less


class SaveError(Failure):
    """The file could not be written. What stood under its name is unharmed, and no temporary file is left."""


def atomic_write(
    path: str | os.PathLike[str],
    *parts: bytes | npt.NDArray[np.uint8],
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write a file of these parts: under a temporary name, synced to disk, then renamed; mode 0644.

    keep: what was there until now gets this name.
    The folder is made if need be. Raises SaveError: what was there is then unharmed, and nothing new is left.
    """
    target = Path(path)
    try:
        handle, temporary = _create_temporary(target)
        try:
            with open(handle, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                if os.name == "posix":
                    os.fchmod(handle, 0o644)  # from mkstemp's 0600: a service reads it as another user
                os.fsync(handle)
            if keep is not None and target.exists():
                _replace_keeping(temporary, target, keep)
            else:
                os.replace(temporary, target)
        except BaseException:  # Ctrl-C too
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _save_error(path, error) from error
    sync_folder(target.parent)


def _replace_keeping(temporary: str, target: Path, keep: str | os.PathLike[str]) -> None:
    """Rename `temporary` to `target`, which becomes `keep`. Where the first fails, both are what they were."""
    old = temporary.removesuffix(".tmp") + "-old.tmp"
    try:
        os.link(target, old)
    except OSError:  # a file system without links
        os.replace(target, keep)
        try:
            os.replace(temporary, target)
        except BaseException:
            os.replace(keep, target)
            raise
        return
    try:
        os.replace(temporary, target)
        try:
            os.replace(old, keep)
        except OSError as error:  # the new file is in place all the same
            log.warning("%s: what was there before is not kept as %s (%s)", target, keep, reason(error))
    finally:
        with contextlib.suppress(OSError):  # it has been renamed
            os.unlink(old)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise SaveError now, not after hours of training, where atomic_write would. Makes the folder."""
    try:
        handle, temporary = _create_temporary(Path(path))
        os.close(handle)
        os.unlink(temporary)
    except (OSError, ValueError) as error:
        raise _save_error(path, error) from error


def _create_temporary(target: Path) -> tuple[int, str]:
    """An open file beside `target`, and its name, which no listing of weights files shows."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):  # a rename would put a file in the place of /dev/null
            raise OSError(errno.EINVAL, "what has that name is not a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".saving-{target.name[:100]}-"
    _remove_abandoned(target.parent, prefix)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)
    _lock(handle)
    return handle, name


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove what saves of the same file left that were killed: it is old, and locked no more."""
    for path in folder.glob(glob.escape(prefix) + "*.tmp"):
        if not path.is_file():
            continue  # not left by a save; to open a pipe would wait for its other end
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_SECONDS and _lock(file.fileno()):
                os.unlink(path)


def _lock(handle: int) -> bool:
    """Whether the file is now this process's own, until it is closed. Never on Windows, nor where no file has locks."""
    if os.name != "posix":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _save_error(path: str | os.PathLike[str], error: Exception) -> SaveError:
    return SaveError(
        f"{show_path(path)}: cannot be saved ({reason(error)}), and what was there is unchanged: "
        "make room, or choose another place"
    )


def sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut. Without it the old file may come back, whole: hence no error."""
    if os.name != "posix":
        return  # Windows cannot open a folder
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        log.warning("%s: the folder cannot be synced to disk (%s)", folder, reason(error))


def digest(*parts: bytes | np.ndarray) -> str:
    """SHA-256 of the parts one after the other, in hexadecimal; of an array its numbers in C order, not its shape."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return sha256.hexdigest()
