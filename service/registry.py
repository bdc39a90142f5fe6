"""The models that are loaded from the weights folder.

A file is mapped once and shared by both back ends (and, through the page cache, by all worker processes). Loaded models
stay in a small cache, as long as they fit in memory together. Each request checks whether the file is still the same.
If it was replaced, the request loads the new one, and running requests keep the old one until they finish. `prune`
drops models that no request can ask for.

A mapped file must be replaced by renaming, as our uploads and trainers do. Changing it in place (`cp` over it) ends the
requests that use it with an error (service/folder.py), and the next ones load it again. For folders where files change
in place, RNN_WEIGHTS_MODE=read copies the weights to memory, and such requests finish.
"""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from rnnlm import checkpoint
from rnnlm.checkpoint import BACKENDS, Checkpoint
from rnnlm.data.text import Vocabulary
from rnnlm.errors import UserError
from rnnlm.library import RNNLibraryError
from service.capacity import Capacity
from service.engines import CEngine, Engine, TorchEngine
from service.errors import BackendMissing, FolderFailed, InvalidRequest, NotReady, WeightsNotFound, WeightsUnusable
from service.folder import SUFFIX, Folder, Version, check_name
from service.settings import Settings, variable

log = logging.getLogger(__name__)


class Entry:
    """One version of a weights file, mapped, with the models that requests asked for."""

    def __init__(
        self, version: Version, sha256: str, source: Checkpoint, settings: Settings, intact: Callable[[], bool]
    ) -> None:
        self.version = version
        self.name = version.name
        self.sha256 = sha256
        self.vocabulary = Vocabulary(source.vocabulary, source.tokenizer)
        self.intact = intact
        self._source = source
        self._settings = settings
        self._engines: dict[str, Engine] = {}
        self._locks = {backend: threading.Lock() for backend in BACKENDS}  # a slow load delays only its own back end

    def engine(self, backend: str) -> Engine:
        """Return the model under a back end, loading it at first use. Raises BackendMissing, WeightsUnusable."""
        if (engine := self._engines.get(backend)) is not None:
            return engine
        with self._locks[backend]:
            if backend not in self._engines:
                started = time.monotonic()
                try:
                    engine = self._c() if backend == "c" else self._torch()
                except RNNLibraryError as error:
                    log.error("%s", error)
                    raise BackendMissing(
                        "the C library cannot be loaded: build it with `make lib`; the log has the details"
                    ) from error
                except (UserError, MemoryError) as error:
                    raise WeightsUnusable(f"the weights {self.name} cannot be used: {error}") from error
                engine.intact = self.intact
                # Loading has just read all of them (C computes from them, torch checks them); serving hardly does.
                checkpoint.drop_pages(self._source.weights.embeddings)
                self._engines[backend] = engine  # last: readers of this dict take no lock
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
        checkpoint.check_finite(self._source.weights, self.name)  # the C model checks its own
        return TorchEngine(torch_rnn.RNN.mapped(self._source.weights, self.vocabulary))

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._engines)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """V, H, E"""
        weights = self._source.weights
        return weights.vocab_size, weights.hidden_size, weights.embed_size


class Registry:
    """The models of one folder. Threads may share it; all methods may wait for the disk."""

    def __init__(self, settings: Settings) -> None:
        self.folder = Folder(settings.weights_dir)
        self._settings = settings
        self._default = settings.default_weights.removesuffix(SUFFIX)
        self._lock = threading.Lock()  # guards the next line, for moments
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # least recently used first
        self._in_use: WeakValueDictionary[str, Entry] = WeakValueDictionary()  # dropped, but a request still has it
        self._loading = threading.Lock()  # one load at a time; requests for loaded weights do not wait for it

    def default(self) -> str:
        """Return the weights for a request that names none. Raises NotReady if there are none, and FolderFailed."""
        names = self.folder.names()
        if not names:
            raise NotReady(
                "there are no weights yet: train some (make train), or upload a file (POST /weights); "
                "GET /ready names the folder"
            )
        return self._default if self._default in names else names[0]

    def missing_default(self) -> str:
        """Return a warning if the setting names a default that is not there; "" if there are no weights at all."""
        names = self.folder.names()
        if not names or self._default in (*names, Settings.default_weights):
            return ""
        return (
            f"{variable('default_weights')}: there are no weights named {self._default!r}; "
            f"requests that name none get {names[0]}"
        )

    def check_ready(self) -> None:
        """Raise NotReady unless the header of the default weights is valid. Raises FolderFailed, too."""
        if objection := self.folder.objection():
            raise NotReady(objection)
        name = self.default()
        if self.folder.version(name).summary().problem:
            raise NotReady(
                f"the default weights, {name}, cannot be used: GET /weights says why; replace them, train some "
                "(make train), or name others (RNN_DEFAULT_WEIGHTS)"
            )

    def get(self, name: str | None) -> Entry:
        """Return the newest version of some weights.

        Raises InvalidRequest, WeightsNotFound, WeightsUnusable, NotReady, FolderFailed.
        """
        name = self._name(name)
        for _ in range(3):  # look again at a file that is being replaced
            version = self.folder.version(name)
            entry = self._kept(name) or self._kept_again(name)
            if entry and _is_current(entry, version):
                return entry
            with self._loading:
                if self._entries.get(name) is not entry:
                    continue  # another request has loaded it
                summary, source, intact = version.load(copy=self._settings.weights_mode == "read")
                if source is None:
                    if self.folder.version(name) is version:
                        raise WeightsUnusable(f"the weights {name} cannot be used: {summary.problem}")
                    continue
                try:
                    sha256 = version.sha256()
                except OSError:
                    continue
                if self.folder.version(name) is not version or not intact():
                    continue
                entry = Entry(version, sha256, source, self._settings, intact)
                self._keep(entry)
                return entry
        raise WeightsUnusable(f"the weights {name} are being replaced again and again: try again later")

    def engine(self, backend: str, name: str | None) -> tuple[Entry, Engine]:
        """Return weights and a model that runs them. Raises as `get` does, and BackendMissing."""
        self._check_served(backend)
        entry = self.get(name)
        return entry, entry.engine(backend)

    def loaded_engine(self, backend: str, name: str | None) -> tuple[Entry, Engine] | None:
        """Return what `engine` returns, or None if it would have to load something first."""
        self._check_served(backend)
        name = self._name(name)
        version = self.folder.version(name)
        entry = self._kept(name)
        if entry and _is_current(entry, version) and backend in entry.loaded:
            return entry, entry.engine(backend)
        return None

    def loaded(self) -> list[tuple[str, Entry]]:
        """Return (back end, weights) for each model in the cache."""
        with self._lock:
            entries = list(self._entries.values())
        return [(backend, entry) for entry in entries for backend in entry.loaded]

    def delete(self, name: str) -> None:
        """Remove a weights file. Requests that use it are not disturbed. Raises as Folder.delete does."""
        self.folder.delete(name)
        self.prune()

    def prune(self) -> None:
        """Drop models whose file was replaced or deleted, which no request may ever ask for again."""
        with self._lock:
            entries = list(self._entries.values())
        gone = [entry for entry in entries if not self._is_there(entry)]
        with self._lock:
            for entry in gone:
                if self._entries.get(entry.name) is entry:
                    del self._entries[entry.name]
        if gone:
            log.info("dropped %s", ", ".join(entry.name for entry in gone))
            del entries, gone, entry
            gc.collect()  # torch's modules refer to themselves

    def _is_there(self, entry: Entry) -> bool:
        try:
            return _is_current(entry, self.folder.version(entry.name))
        except WeightsNotFound:
            return False
        except FolderFailed:  # it may still exist
            return True

    def _name(self, name: str | None) -> str:
        """Return a weights name as it is listed. Raises InvalidRequest, FolderFailed."""
        if name is None:
            return self.default()
        try:
            return check_name(name)
        except InvalidRequest as error:
            meant = re.split(r"[/\\]", name)[-1].removesuffix(SUFFIX)
            if meant in self.folder.names():
                raise InvalidRequest(f"weights are named without a folder: do you mean {meant}?") from error
            raise

    def _check_served(self, backend: str) -> None:
        if backend not in self._settings.served_backends:
            raise BackendMissing(
                "torch is not installed here: use the C model"
                if backend in self._settings.backends
                else f"this service does not offer the back end {backend}"
            )

    def _kept(self, name: str) -> Entry | None:
        """Return the cached version of some weights, newest or not, and make it the last to be dropped."""
        with self._lock:
            entry = self._entries.get(name)
            if entry:
                self._entries.move_to_end(name)
            return entry

    def _kept_again(self, name: str) -> Entry | None:
        """Keep weights that were dropped while a request still has them, and return them."""
        with self._lock:
            entry = self._in_use.get(name)
        if entry:
            self._keep(entry)
        return entry

    def _keep(self, entry: Entry) -> None:
        """Keep an entry, and drop the oldest others that are too many, or do not fit in memory beside it."""
        most, capacity = self._settings.cached_weights, Capacity.of(self._settings)
        with self._lock:
            before = len(self._entries)
            self._entries[entry.name] = entry
            self._entries.move_to_end(entry.name)
            while (left := len(self._entries)) > 1 and not (
                left <= most and capacity.holds(kept.sizes for kept in self._entries.values())
            ):
                dropped, its = self._entries.popitem(last=False)
                self._in_use[dropped] = its
                del its
        if left <= before:
            gc.collect()  # torch's modules refer to themselves


def _is_current(entry: Entry, version: Version) -> bool:
    return entry.version.fingerprint == version.fingerprint and entry.intact()
