"""The weights folder: which files are there, and what each of them says of itself.

A file is known by its inode, time and size: whoever asks for it asks the file system for these, so that a file which
was replaced, by an upload here, in another process or on a mounted bucket, is seen at once.

Symbolic links are followed within the folder only: what a link leads to elsewhere is not there for this service.
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
from rnnlm.binding import RNNLibraryError, library
from rnnlm.checkpoint import Checkpoint
from rnnlm.container import MappedFile
from rnnlm.errors import UserError
from service.errors import FolderFailed, InvalidRequest, NoSpace, WeightsNotFound

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"

# What the file system says of what is not there. All else that it may say means that it does not know.
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
# Of a link besides: it leads round in a circle, or to where this service may not look.
_ASTRAY = (*_ABSENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def check_name(name: str) -> str:
    """A weights name without its suffix. Raises InvalidRequest for what is not one: so no path can be named."""
    bare = name.removesuffix(SUFFIX)
    if not _is_name(bare):
        raise InvalidRequest(
            "a weights name has 1 to 64 letters, digits, '.', '_' and '-', starts with a letter or digit, "
            f"has no '..' in it, and does not end with {SUFFIX} twice"
        )
    return bare


def _is_name(bare: str) -> bool:
    return bool(_NAME.fullmatch(bare)) and ".." not in bare and not bare.endswith(SUFFIX)


class Fingerprint(NamedTuple):
    """What tells one version of a file from another."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class Summary:
    """What is told of a weights file. problem: why it cannot be used; the rest is then not known."""

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
    """A file that was read. source: None where it cannot be used.   intact: whether it still is what was read."""

    summary: Summary
    source: Checkpoint | None
    intact: Callable[[], bool]


class Version:
    """One version of a weights file. What is learned of it is learned once, however many ask at a time."""

    def __init__(self, name: str, path: Path, fingerprint: Fingerprint) -> None:
        self.name = name
        self.path = path
        self.fingerprint = fingerprint
        self._reading = threading.Lock()
        self._summary: Summary | None = None
        self._hashing = threading.Lock()
        self._sha256: str | None = None

    def summary(self) -> Summary:
        """From the file's header and vocabulary alone."""
        known = self._summary
        if known is not None:
            return known  # without the lock, which a slow load may hold
        with self._reading:
            return self._summary or self._read(copy=False).summary

    def sha256(self) -> str:
        """Of all of the file. Raises OSError, also for a file that is not this version any more."""
        with self._hashing:
            if self._sha256 is None:
                with self.path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    if Fingerprint.of(os.fstat(file.fileno())) != self.fingerprint:
                        raise OSError(f"{self.path} was replaced")
                self._sha256 = digest
            return self._sha256

    def load(self, *, copy: bool) -> Loaded:
        """Check and map a file, or copy it to memory."""
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
            passing = isinstance(getattr(error.__cause__, "__cause__", None), OSError)  # not the file's own fault
        except OSError as error:
            summary, passing = Summary(**known, problem="it cannot be read"), True
            log.warning("%s cannot be read: %s", self.path, error)
        except MemoryError:
            summary, passing = Summary(**known, problem="there is no memory left for it"), True
            log.warning("%s: out of memory", self.path)
        self._summary = None if passing else summary  # what passes is tried again
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
    """Safe to share between threads; all methods may wait for the disk."""

    def __init__(self, path: Path) -> None:
        self.root = path
        self._lock = threading.Lock()
        self._versions: dict[str, Version] = {}  # the last that was seen of each name

    def path(self, name: str) -> Path:
        return self.root / (check_name(name) + SUFFIX)

    def names(self) -> list[str]:
        """The weights files there, by name, whether they can be used or not. Raises FolderFailed."""
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

    def version(self, name: str) -> Version:
        """The newest version of a file. Raises WeightsNotFound, InvalidRequest, FolderFailed."""
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
        """The newest version of every file, by name. Raises FolderFailed."""
        found = []
        for name in self.names():
            try:
                found.append(self.version(name))
            except WeightsNotFound:
                continue  # deleted meanwhile
        return found

    def delete(self, name: str) -> None:
        """Remove a file; who runs on it is not disturbed.

        Raises WeightsNotFound, InvalidRequest, FolderFailed, NoSpace.
        """
        version = self.version(name)
        try:
            version.path.unlink()
        except FileNotFoundError as error:
            raise _no_such(version.name) from error
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise NoSpace("the weights folder of this service cannot be written to") from error
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
        except RuntimeError:  # what Python 3.11 raises for a circle
            return False
        except OSError as error:
            if error.errno in _ASTRAY:
                return False  # no reason to hide the others
            raise


def _no_such(name: str) -> WeightsNotFound:
    return WeightsNotFound(f"there are no weights named {name}: GET /weights lists what there is")


def _failed(path: Path, error: OSError) -> FolderFailed:
    log.warning("%s cannot be read: %s", path, error.strerror or error)
    return FolderFailed()


def _can_guard() -> bool:
    """Whether mapped files can be guarded, which takes the C library. A service of torch alone does without it."""
    try:
        return bool(library())
    except RNNLibraryError as error:
        log.warning("%s: until then weights are copied, not mapped", error)
        return False


def public_reason(error: UserError, path: Path) -> str:
    """What is wrong with a file, without the path that the message starts with."""
    return str(error).removeprefix(f"{path}: ")
