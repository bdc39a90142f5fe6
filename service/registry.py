"""The weights folder, and the models that are loaded from it.

A file is mapped once and shared by both back ends (and, through the page cache, by all worker processes). What is
loaded stays in a small cache under its name together with the file's inode, time and size: each request asks for
these, so that a file which was replaced, by an upload here, in another process or on a mounted bucket, is seen by the
next request, while those that run keep the old one until they are done.

A mapped file must be replaced by renaming, as our uploads and trainers do. Who changes it in place (`cp` over it) ends
the requests that run on it with an error (service/watch.py); the next ones load it anew. For folders where that is the
custom, RNN_WEIGHTS_MODE=read copies the weights to memory instead, and those requests end well.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint
from checkpoint import BACKENDS, Checkpoint
from errors import UserError
from rnnlib import RNNLibraryError, library
from service.engines import CEngine, Engine, TorchEngine
from service.errors import BackendMissing, InvalidRequest, NotReady, WeightsNotFound, WeightsUnusable
from service.metrics import Metrics
from service.settings import Settings
from service.watch import Watch
from text import Vocabulary

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
UPLOAD_PREFIX = ".upload-"  # of files that are not weights yet; no listing shows a name that starts with a dot

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def check_name(name: str) -> str:
    """A weights name without its suffix. Raises InvalidRequest for what is not one: so no path can be named."""
    bare = name.removesuffix(SUFFIX)
    if not _NAME.fullmatch(bare) or ".." in bare:
        raise InvalidRequest(
            "a weights name has 1 to 64 letters, digits, '.', '_' and '-', starts with a letter or digit, "
            "and has no '..' in it"
        )
    return bare


class Fingerprint(NamedTuple):
    """What tells one version of a file from another."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Raises OSError."""
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class Summary:
    """What is told of a weights file. problem: why it cannot be used; the rest is then not known."""

    name: str
    size: int
    modified: float
    sha256: str | None = None
    vocabulary: int | None = None
    embedding_size: int | None = None
    hidden_size: int | None = None
    trained_by: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    problem: str | None = None


class Entry:
    """One version of a weights file: mapped, and with the models that were asked for."""

    def __init__(
        self,
        summary: Summary,
        fingerprint: Fingerprint,
        source: Checkpoint,
        settings: Settings,
        intact: Callable[[], bool],
    ) -> None:
        self.name = summary.name
        self.sha256 = summary.sha256 or ""
        self.fingerprint = fingerprint
        self.vocabulary = Vocabulary(source.vocabulary)
        self.intact = intact
        self._source = source
        self._settings = settings
        self._engines: dict[str, Engine] = {}
        self._locks = {backend: threading.Lock() for backend in BACKENDS}  # a slow load holds its own back end up only

    def engine(self, backend: str) -> Engine:
        """The model under a back end, loaded at first use. Raises BackendMissing, WeightsUnusable."""
        if (engine := self._engines.get(backend)) is not None:
            return engine
        with self._locks[backend]:
            if backend not in self._engines:
                started = time.monotonic()
                try:
                    self._engines[backend] = self._c() if backend == "c" else self._torch()
                except RNNLibraryError as error:
                    log.error("%s", error)
                    raise BackendMissing(
                        "the C library cannot be loaded; build it with `make lib`, the log says more"
                    ) from error
                except (UserError, MemoryError) as error:
                    raise WeightsUnusable(f"the weights {self.name} cannot be used: {error}") from error
                self._engines[backend].intact = self.intact
                log.info("loaded %s for %s in %.3f s", self.name, backend, time.monotonic() - started)
            return self._engines[backend]

    def _c(self) -> Engine:
        import rnn

        settings = self._settings
        model = rnn.RNN(
            self._source, precision=settings.precision, threads=settings.c_threads, vocabulary=self.vocabulary
        )
        return CEngine(model, settings.max_sequences)

    def _torch(self) -> Engine:
        import torch

        import torch_rnn

        torch.set_num_threads(self._settings.torch_threads)
        checkpoint.check_finite(self._source.weights, self.name)  # the C model checks for itself
        return TorchEngine(torch_rnn.RNN.mapped(self._source.weights, self.vocabulary))

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._engines)


class Registry:
    """The weights of one folder. Safe to share between threads; all methods may wait for the disk."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.folder = settings.weights_dir
        self._settings = settings
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the two that follow, for moments
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # the least recently used first
        self._summaries: dict[str, tuple[Fingerprint, Summary]] = {}
        self._loading = threading.Lock()  # one load at a time; who finds what is loaded does not wait for it

    def path(self, name: str) -> Path:
        return self.folder / (check_name(name) + SUFFIX)

    def names(self) -> list[str]:
        """The weights files there, by name, whether they can be used or not."""
        try:
            found = [entry.name for entry in os.scandir(self.folder) if entry.is_file()]
        except OSError:
            return []
        bare = (name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))
        return sorted(name for name in bare if _NAME.fullmatch(name) and ".." not in name)

    def default(self) -> str:
        """The weights for a request that names none. Raises NotReady where there are none."""
        names = self.names()
        if not names:
            raise NotReady("there are no weights yet: train some (make train), or upload a file (POST /weights)")
        return self._settings.default_weights if self._settings.default_weights in names else names[0]

    def get(self, name: str | None) -> Entry:
        """The newest version of some weights. Raises InvalidRequest, WeightsNotFound, WeightsUnusable, NotReady."""
        name = self._name(name)
        for _ in range(3):  # a file that is replaced just now is looked at again
            fingerprint = self._fingerprint(name)
            entry = self._kept(name)
            if entry and entry.fingerprint == fingerprint and entry.intact():
                return entry
            with self._loading:
                if self._entries.get(name) is not entry:
                    continue  # another request has loaded it meanwhile
                summary, source, intact = self._read(name, fingerprint)
                if self._fingerprint(name) != fingerprint or not intact():
                    continue
                if source is None:
                    raise WeightsUnusable(f"the weights {name} cannot be used: {summary.problem}")
                entry = Entry(summary, fingerprint, source, self._settings, intact)
                self._keep(entry)
                return entry
        raise WeightsUnusable(f"the weights {name} are being replaced over and over: try again")

    def engine(self, backend: str, name: str | None) -> tuple[Entry, Engine]:
        """Weights and a model that runs them. Raises as `get`, and BackendMissing."""
        self._check_served(backend)
        entry = self.get(name)
        if backend not in entry.loaded:
            entry.engine(backend)
            self._metrics.model_info.labels(backend, entry.name, entry.sha256, str(len(entry.vocabulary))).set(1)
        return entry, entry.engine(backend)

    def loaded_engine(self, backend: str, name: str | None) -> tuple[Entry, Engine] | None:
        """What `engine` gives, or None where it would have to load something first."""
        self._check_served(backend)
        name = self._name(name)
        fingerprint = self._fingerprint(name)
        entry = self._kept(name)
        if entry and entry.fingerprint == fingerprint and entry.intact() and backend in entry.loaded:
            return entry, entry.engine(backend)
        return None

    def summaries(self) -> list[Summary]:
        """What is told of each weights file. A version of a file is read once."""
        names = self.names()
        with self._lock:
            self._summaries = {name: known for name, known in self._summaries.items() if name in names}
        result = []
        for name in names:
            try:
                fingerprint = self._fingerprint(name)
            except WeightsNotFound:
                continue  # deleted meanwhile
            known = self._summaries.get(name)
            summary = known[1] if known and known[0] == fingerprint else self._read(name, fingerprint)[0]
            result.append(summary)
        return result

    def delete(self, name: str) -> None:
        """Remove a weights file; requests that run on it are not disturbed. Raises WeightsNotFound."""
        path = self.path(name)
        try:
            path.unlink()
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            if path.is_file():
                raise
            raise WeightsNotFound(f"there are no weights named {check_name(name)}") from error
        with self._lock:
            self._entries.pop(check_name(name), None)
            self._summaries.pop(check_name(name), None)

    def remove_stale_uploads(self) -> None:
        """Remove what uploads left that a crash or a power cut ended."""
        for path in self.folder.glob(UPLOAD_PREFIX + "*"):
            try:
                if time.time() - path.stat().st_mtime > 2 * self._settings.upload_seconds:
                    path.unlink()
                    log.info("removed a stale upload, %s", path.name)
            except OSError as error:
                log.warning("a stale upload cannot be removed: %s", error)

    def _name(self, name: str | None) -> str:
        return self.default() if name is None else check_name(name)

    def _check_served(self, backend: str) -> None:
        if backend not in self._settings.served_backends:
            raise BackendMissing(
                "torch is not installed here: use the C model"
                if backend in self._settings.backends
                else f"this service does not offer the back end {backend}"
            )

    def _kept(self, name: str) -> Entry | None:
        """What is loaded of some weights, newest or not; it is then the last to be dropped."""
        with self._lock:
            entry = self._entries.get(name)
            if entry:
                self._entries.move_to_end(name)
            return entry

    def _fingerprint(self, name: str) -> Fingerprint:
        try:
            return Fingerprint.of(self.path(name))
        except OSError as error:
            raise WeightsNotFound(f"there are no weights named {name}: GET /weights lists what there is") from error

    def _read(self, name: str, fingerprint: Fingerprint) -> tuple[Summary, Checkpoint | None, Callable[[], bool]]:
        """Check and map a file. Returns what is told of it, what it holds, and what says whether that still holds."""
        path = self.path(name)
        before = self._summaries.get(name)
        sha256 = before[1].sha256 if before and before[0] == fingerprint else None
        known: dict[str, Any] = {
            "name": name,
            "size": fingerprint.size,
            "modified": fingerprint.modified_ns / 1e9,
        }
        source, passing = None, False
        watches: list[Watch] = []
        try:
            source = checkpoint.load(
                path,
                copy=self._settings.weights_mode == "read" or not _can_guard(),
                on_map=lambda handle, mapping: watches.append(Watch(handle, mapping)),
            )
            summary = Summary(
                **known,
                sha256=sha256 or _sha256(path),
                vocabulary=source.weights.vocab_size,
                embedding_size=source.weights.embed_size,
                hidden_size=source.weights.hidden_size,
                trained_by=source.backend,
                tokenizer=source.tokenizer,
                config=source.config,
                history=source.history,
            )
        except checkpoint.CheckpointError as error:
            summary = Summary(**known, problem=public_reason(error, path))
            log.warning("%s", error)
            passing = isinstance(getattr(error.__cause__, "__cause__", None), OSError)  # not the file's own fault
        except OSError as error:
            summary, passing = Summary(**known, problem="it cannot be read"), True
            log.warning("%s cannot be read: %s", path, error)
        except MemoryError:
            summary, passing = Summary(**known, problem="there is no memory left for it"), True
            log.warning("%s: out of memory", path)
        with self._lock:
            if passing:  # the next request tries again
                self._summaries.pop(name, None)
            else:
                self._summaries[name] = fingerprint, summary
        return summary, source, lambda: all(watch.intact() for watch in watches)

    def _keep(self, entry: Entry) -> None:
        with self._lock:
            self._entries[entry.name] = entry
            self._entries.move_to_end(entry.name)
            while len(self._entries) > self._settings.cached_weights:
                self._entries.popitem(last=False)


def _can_guard() -> bool:
    """Whether mapped files can be guarded, which takes the C library. A service of torch alone does without it."""
    try:
        return bool(library())
    except RNNLibraryError as error:
        log.warning("%s: until then weights are copied, not mapped", error)
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def public_reason(error: UserError, path: Path) -> str:
    """What is wrong with a file, without the path that the message starts with."""
    return str(error).removeprefix(f"{path}: ")
