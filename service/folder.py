"""The weights folder: which files it has, and what their headers say.

A file is identified by its inode, time and size. Every request for it asks the file system for these, so a file that
was replaced (by an upload here, in another process or on a mounted bucket) is noticed at once.

Symbolic links are followed within the folder only. A link that leads elsewhere counts as missing.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rnnlm import binding, checkpoint
from rnnlm.checkpoint import Checkpoint
from rnnlm.container import SUFFIX, MappedFile
from rnnlm.errors import UserError
from rnnlm.library import RNNLibraryError, library
from service.errors import FolderFailed, InvalidRequest, NoSpace, WeightsNotFound

log = logging.getLogger(__name__)

# The file system's errors for what does not exist. Any other error means that it does not know.
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
# Further errors for a link: it leads in a circle, or to where this service has no access.
_ASTRAY = (*_ABSENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def check_name(name: str) -> str:
    """Return a weights name without its suffix. Raises InvalidRequest for anything else, and so for any path."""
    bare = name.removesuffix(SUFFIX)
    if not _is_name(bare):
        raise InvalidRequest(
            "a weights name has 1 to 64 letters, digits, '.', '_' and '-', starts with a letter or digit, "
            f"does not contain '..', and does not end with {SUFFIX} twice"
        )
    return bare


def _is_name(bare: str) -> bool:
    return bool(_NAME.fullmatch(bare)) and ".." not in bare and not bare.endswith(SUFFIX)


class Fingerprint(NamedTuple):
    """Distinguishes one version of a file from another."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class Summary:
    """What is shown of a weights file.   problem: why it cannot be used; the rest is then unknown."""

    name: str
    size: int
    modified: float
    vocabulary: int | None = None
    embedding_size: int | None = None
    hidden_size: int | None = None
    trained_by: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    problem: str | None = None


class Loaded(NamedTuple):
    """A file that was read.   source: None if it cannot be used.   intact: whether it is still what was read."""

    summary: Summary
    source: Checkpoint | None
    intact: Callable[[], bool]


class Version:
    """One version of a weights file. It is read once and hashed once, however many requests ask at a time."""

    def __init__(self, name: str, path: Path, fingerprint: Fingerprint) -> None:
        self.name = name
        self.path = path
        self.fingerprint = fingerprint
        self._reading = threading.Lock()
        self._summary: Summary | None = None
        self._hashing = threading.Lock()
        self._sha256: str | None = None

    def summary(self) -> Summary:
        """Return what the file's header and vocabulary say."""
        known = self._summary
        if known is not None:
            return known  # without the lock, which a slow load may hold
        with self._reading:
            return self._summary or self._read(copy=False).summary

    def sha256(self) -> str:
        """Return the digest of the whole file. Raises OSError, also if the file is no longer this version."""
        with self._hashing:
            if self._sha256 is None:
                with self.path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    if Fingerprint.of(os.fstat(file.fileno())) != self.fingerprint:
                        raise OSError(f"{self.path} was replaced")
                self._sha256 = digest
            return self._sha256

    def load(self, *, copy: bool) -> Loaded:
        """Check the file and map it, or copy it to memory."""
        with self._reading:
            return self._read(copy=copy)

    def _read(self, *, copy: bool) -> Loaded:
        known: dict[str, Any] = {
            "name": self.name,
            "size": self.fingerprint.size,
            "modified": self.fingerprint.modified_ns / 1e9,
        }
        source, passing = None, False
        intact = _always
        try:
            source = checkpoint.load(self.path, copy=copy or not _can_guard())
            if source.mapping:
                intact = _watch(source.mapping)
            summary = Summary(
                **known,
                vocabulary=source.weights.vocab_size,
                embedding_size=source.weights.embed_size,
                hidden_size=source.weights.hidden_size,
                trained_by=source.backend,
                tokenizer=source.tokenizer,
                config=source.config,
                history=source.history,
            )
        except checkpoint.CheckpointError as error:
            summary = Summary(**known, problem=public_reason(error, self.path))
            log.warning("%s", error)
            passing = isinstance(getattr(error.__cause__, "__cause__", None), OSError)  # not the file's fault
        except OSError as error:
            summary, passing = Summary(**known, problem="it cannot be read"), True
            log.warning("%s cannot be read: %s", self.path, error)
        except MemoryError:
            summary, passing = Summary(**known, problem="there is not enough memory for it"), True
            log.warning("%s: out of memory", self.path)
        self._summary = None if passing else summary  # a passing problem is tried again
        return Loaded(summary, source, intact)


def _always() -> bool:
    return True  # a copy in memory stays as it is


def _watch(mapping: MappedFile) -> Callable[[], bool]:
    """Guard a mapping, and return a function that tells whether everything read from it until now is what was mapped.

    Uploads and trainers replace a file by renaming, and what is mapped stays as it was. But anybody who may write to
    the folder can also write into a file (`cp` over it) or truncate it, and the model's numbers change or disappear.
    The library's guard lets the process survive that, and the function reports it, so that the requests concerned end
    with an error before a word is sent, and the next ones load the file again.
    Raises RNNLibraryError, RNNError.
    """
    lost = binding.guard(mapping.data)
    return lambda: not lost() and mapping.is_unchanged()


class Folder:
    """A folder of weights files. Threads may share it; all methods may wait for the disk."""

    def __init__(self, path: Path) -> None:
        self.root = path
        self._lock = threading.Lock()
        self._versions: dict[str, Version] = {}  # the last version seen of each name

    def path(self, name: str) -> Path:
        return self.root / (check_name(name) + SUFFIX)

    def names(self) -> list[str]:
        """Return the names of the weights files, sorted, usable or not. Raises FolderFailed."""
        try:
            with os.scandir(self.root) as found:
                files = [entry.name for entry in found if entry.name.endswith(SUFFIX) and self._is_file(entry)]
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _failed(self.root, error) from error
            files = []
        names = sorted(name for name in (file.removesuffix(SUFFIX) for file in files) if _is_name(name))
        with self._lock:
            for gone in self._versions.keys() - set(names):
                del self._versions[gone]
        return names

    def objection(self) -> str:
        """Return why there is nothing to serve, with the folder's name, for whoever starts the service; or "".

        Raises FolderFailed.
        """
        if self.names():
            return ""
        where = f"the weights folder {self.root} (RNN_WEIGHTS_DIR)"
        if self.root.exists() and not self.root.is_dir():
            return f"{where} is a file, not a folder: name the folder that the weights files are in"
        problem = "has no weights files" if self.root.is_dir() else "does not exist"
        return (
            f"{where} {problem}: train some weights (make train), upload a file (POST /weights), or name another folder"
        )

    def version(self, name: str) -> Version:
        """Return the newest version of a file. Raises WeightsNotFound, InvalidRequest, FolderFailed."""
        name = check_name(name)
        path = self.path(name)
        try:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) and self._leads_inside(path):
                status = path.stat()
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _failed(path, error) from error
            raise _no_such(name) from error
        if not stat.S_ISREG(status.st_mode):
            raise _no_such(name)
        fingerprint = Fingerprint.of(status)
        with self._lock:
            version = self._versions.get(name)
            if version is None or version.fingerprint != fingerprint:
                version = self._versions[name] = Version(name, path, fingerprint)
            return version

    def versions(self) -> list[Version]:
        """Return the newest version of every file, by name. Raises FolderFailed."""
        found = []
        for name in self.names():
            try:
                found.append(self.version(name))
            except WeightsNotFound:
                continue  # deleted meanwhile
        return found

    def delete(self, name: str) -> None:
        """Remove a file. Requests that use it are not disturbed.

        Raises WeightsNotFound, InvalidRequest, FolderFailed, NoSpace.
        """
        version = self.version(name)
        try:
            version.path.unlink()
        except FileNotFoundError as error:
            raise _no_such(version.name) from error
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise NoSpace("the weights folder of this service is not writable") from error
            raise

    def _is_file(self, entry: os.DirEntry[str]) -> bool:
        """Raises OSError."""
        if entry.is_symlink():
            return self._leads_inside(Path(entry.path)) and entry.is_file()
        return entry.is_file()

    def _leads_inside(self, link: Path) -> bool:
        """Raises OSError."""
        try:
            return link.resolve(strict=True).is_relative_to(self.root.resolve())
        except RuntimeError:  # Python 3.11 raises this for a circle
            return False
        except OSError as error:
            if error.errno in _ASTRAY:
                return False  # no reason to hide the other files
            raise


def _no_such(name: str) -> WeightsNotFound:
    return WeightsNotFound(f"there are no weights named {name}: GET /weights lists those that exist")


def _failed(path: Path, error: OSError) -> FolderFailed:
    log.warning("%s cannot be read: %s", path, error.strerror or error)
    return FolderFailed()


def _can_guard() -> bool:
    """Return whether mapped files can be guarded. That needs the C library, which a torch-only service may lack."""
    try:
        return bool(library())
    except RNNLibraryError as error:
        log.warning("%s: until then weights are copied to memory, not mapped", error)
        return False


def public_reason(error: UserError, path: Path) -> str:
    """Return what is wrong with a file, without the path at the start of the message."""
    return str(error).removeprefix(f"{path}: ")
