"""Write a file whole or not at all.

A file is written under a temporary name in the same folder, synced to disk and renamed. A reader sees the old file or
the new one, and so does whoever looks after a crash.
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

ABANDONED_SECONDS = 60.0  # longer than it takes from a temporary file's last byte to its rename


class SaveError(Failure):
    """The file could not be written. An existing file is unharmed, and no temporary file is left."""


def atomic_write(
    path: str | os.PathLike[str],
    *parts: bytes | npt.NDArray[np.uint8],
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write a file that consists of `parts`, with mode 0644. Creates the folder if necessary.

    keep: the new name of the file that was at `path`.
    Raises SaveError; an existing file is then unharmed, and nothing new is left.
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
                    os.fchmod(handle, 0o644)  # mkstemp makes 0600, but a service may run as another user
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
    """Rename `temporary` to `target`, and the old `target` to `keep`. If that fails, both are as they were."""
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
        except OSError as error:  # but the new file is in place
            log.warning("%s: the file before it could not be kept as %s (%s)", target, keep, reason(error))
    finally:
        with contextlib.suppress(OSError):  # renamed already, if all went well
            os.unlink(old)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise SaveError now if atomic_write would raise it after hours of training. Creates the folder."""
    try:
        handle, temporary = _create_temporary(Path(path))
        os.close(handle)
        os.unlink(temporary)
    except (OSError, ValueError) as error:
        raise _save_error(path, error) from error


def _create_temporary(target: Path) -> tuple[int, str]:
    """Create a file in the folder of `target`; return its descriptor and its name, which no list of weights shows."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(target).st_mode):  # a rename would replace /dev/null by a file
            raise OSError(errno.EINVAL, "it is not a regular file")
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".saving-{target.name[:100]}-"
    _remove_abandoned(target.parent, prefix)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=target.parent)
    _lock(handle)
    return handle, name


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the temporary files of killed saves of the same file: those that are old and no longer locked."""
    for path in folder.glob(glob.escape(prefix) + "*.tmp"):
        if not path.is_file():
            continue  # not from a save; opening a pipe would wait for its other end
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_SECONDS and _lock(file.fileno()):
                os.unlink(path)


def _lock(handle: int) -> bool:
    """Lock a file until it is closed; return whether that worked. It never does on Windows, nor without file locks."""
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
    """Make a rename survive a power cut. Without this the old file may come back, but whole, so failure is no error."""
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
    """Return the SHA-256 of the concatenated parts, in hexadecimal. An array counts as its numbers in C order."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return sha256.hexdigest()
