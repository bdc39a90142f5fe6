"""Word vectors for a vocabulary: read from a file, downloaded by gensim, or trained on the corpus.

The rows that a vocabulary needs are cached in $RNN_CACHE_DIR (or ~/.cache/rnn-words), so the second start takes a
second. gensim is imported only to download, to train, and to compose fastText's vectors.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnnlm.arrays import F32, Mask
from rnnlm.data import word2vec
from rnnlm.data.corpus import Corpus
from rnnlm.data.encoding import cache_folder
from rnnlm.data.network import why_unreachable
from rnnlm.data.text import EOS, UNK
from rnnlm.data.vector_files import EmbeddingsError, check_size, read_vectors
from rnnlm.errors import counted
from rnnlm.files import digest
from rnnlm.signals import Deferred

log = logging.getLogger(__name__)

_SENTENCE_END = "</s>"  # word2vec's name for <EOS>
_CACHE_VERSION = 2
_DEFAULT_SIZE = 300  # of vectors that are made, not read
_RANDOM_SCALE = np.float32(0.4)  # the standard deviation of GloVe's numbers
_ROOTED_SCALE = np.float32(0.5)

_DOWNLOAD_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".bin", ".txt", ".vec", ".gz", ".zip", ".kv", ".model")


class EmbeddingsUnavailable(EmbeddingsError):
    """The vectors are not on this machine and cannot be downloaded now."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The vectors of a vocabulary.

    vectors: (V, E) float32, C-contiguous, finite.   found: (V,) bool, False for a word that got a random vector.
    type_coverage: the share of the V words that were found.   token_coverage: their share of the training tokens.
    lowered: how many words were found only in lower case.
    """

    vectors: F32
    found: Mask
    source: str
    type_coverage: float
    token_coverage: float
    lowered: int = 0

    def report(self) -> str:
        """Describe the vectors in one line."""
        words, size = self.vectors.shape
        if not self.found.any():
            return f"{self.source}: vectors of {size} for the {words:,} words"
        lowered = f", {counted(self.lowered, 'word')} in lower case" if self.lowered else ""
        rest = "" if self.found.all() else "; random ones for the rest"
        return (
            f"{self.source}: vectors of {size} for {self.type_coverage:.2%} of the {words:,} words, "
            f"{self.token_coverage:.2%} of the training tokens{lowered}{rest}"
        )


def root_lengths(vectors: F32) -> F32:
    """Return vectors (V, E) whose lengths are in proportion to the square roots of the given ones.

    word2vec's vectors are long for frequent words and short for rare ones, which a hidden layer then hardly notices.
    The numbers get the standard deviation 0.5.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = vectors / np.sqrt(np.where(lengths > 0, lengths, 1))
    return np.ascontiguousarray(scaled * (_ROOTED_SCALE / (scaled.std() or 1)), dtype=np.float32)


class _Rows(NamedTuple):
    """vectors: (V, E).   found: (V,).   lowered: how many were found only in lower case."""

    vectors: F32
    found: Mask
    lowered: int


def load_embeddings(source: str, corpus: Corpus, *, size: int | None = None, seed: int) -> Embeddings:
    """Return the vectors of a corpus's vocabulary.

    source: "train" (word2vec on the whole training split: word2vec.py), "random", the path of a file (vector_files.py),
    or a name that gensim's downloader knows. A word that a file lacks gets the vector of its lower-case form, if there
    is one.
    size: how many numbers a vector has; None: what the file has, or 300 for "train" and "random".
    seed: for "train", and for words without a vector. These get a random one: normal, with the standard deviation of
    the vectors that were found, and a function of only the word and the seed. `<EOS>` uses the vector of word2vec's
    `</s>`.
    Raises EmbeddingsError (no such file, a damaged one, none of the words in it, another size) and
    EmbeddingsUnavailable (not on this machine, and cannot be downloaded).
    """
    words, signals = corpus.vocabulary.words, Deferred()
    if size is not None and size < 1:
        raise EmbeddingsError(f"embedding size must be at least 1, got {size}")
    if source == "random":
        return _random(words, size or _DEFAULT_SIZE, seed)
    if source == "train":
        halves = word2vec.settings(corpus, size or _DEFAULT_SIZE, seed)
        identity = ["train", digest(corpus.whole_train), halves, version("gensim")]
        name, read = "word2vec trained on the corpus", functools.partial(_train, corpus, halves, signals)
    else:
        with _readable(source):
            path = _on_disk(source) or _download(source)
            identity = ["file", *_file_identity(path)]
        name, read = source, functools.partial(_read, path, words, size)

    key = json.dumps([_CACHE_VERSION, identity, digest("\n".join(words).encode())])
    file = cache_folder() / f"vectors-{digest(key.encode())[:32]}.npz"
    cached = _load_cached(file, key, len(words))
    with signals:
        vectors, found, lowered = cached or read()
        if source != "train":
            check_size(source, vectors.shape[1], size)
        if not any(found[i] for i, word in enumerate(words) if word not in (EOS, UNK)):
            raise EmbeddingsError(
                f"{source!r} has a vector for none of the {len(words):,} words (such as {words[0]!r}): are its words "
                "in another language or case?"
            )
        if cached is None:
            _save_cached(file, key, _Rows(vectors, found, lowered))
    fill_missing(vectors, found, words, seed)
    return Embeddings(
        vectors=vectors,
        found=found,
        source=name,
        type_coverage=float(found.mean()),
        token_coverage=float(corpus.counts[found].sum() / corpus.counts.sum()),
        lowered=lowered,
    )


def _random(words: Sequence[str], size: int, seed: int) -> Embeddings:
    vectors, found = np.zeros((len(words), size), dtype=np.float32), np.zeros(len(words), dtype=np.bool_)
    _fill(vectors, found, words, seed, _RANDOM_SCALE)
    return Embeddings(vectors, found, "random", type_coverage=0.0, token_coverage=0.0)


def fill_missing(vectors: F32, found: Mask, words: Sequence[str], seed: int) -> None:
    """Give each word without a vector a random one, of the scale of the others. Those are zeros before."""
    _fill(vectors, found, words, seed, _scale(vectors, found))


def _scale(vectors: F32, found: Mask) -> np.float32:
    """Return the standard deviation over the found rows. The others are zeros, and add nothing to either sum."""
    numbers = np.count_nonzero(found) * vectors.shape[1]
    mean = vectors.sum(dtype=np.float64) / numbers
    return np.float32(np.sqrt(np.einsum("ij,ij->", vectors, vectors, dtype=np.float64) / numbers - mean**2))


def _fill(vectors: F32, found: Mask, words: Sequence[str], seed: int, scale: np.float32) -> None:
    """Give each word without a vector a random one, which depends only on the word, the seed and the scale."""
    for i in np.flatnonzero(~found):
        key = int.from_bytes(hashlib.sha256(f"{seed}\n{words[i]}".encode()).digest()[:16], "little")
        generator = np.random.Generator(np.random.Philox(key=key))
        vectors[i] = scale * generator.standard_normal(vectors.shape[1], dtype=np.float32)


# ---------------------------------------------------------------- from a file


def _read(path: Path, words: Sequence[str], size: int | None) -> _Rows:
    log.info("reading the vectors of %s from %s", counted(len(words), "word"), path)
    lower = [word.lower() for word in words]
    lower[words.index(EOS)] = _SENTENCE_END
    asked = list(dict.fromkeys([*words, *lower]))
    vectors, found = read_vectors(path, asked, size)
    place = {word: i for i, word in enumerate(asked)}
    own, second = slice(len(words)), np.array([place[word] for word in lower])
    taken = ~found[own] & found[second]
    vectors[own][taken] = vectors[second[taken]]
    is_word = np.array([word not in (EOS, UNK) for word in words])
    return _Rows(vectors[own], found[own] | taken, int(np.count_nonzero(taken & is_word)))


def check_source(source: str) -> None:
    """Raise what `load_embeddings` would for a source that is neither here nor within reach, before a corpus is read.

    Raises EmbeddingsError (no such file) and EmbeddingsUnavailable (not on this machine, and cannot be downloaded).
    """
    if source in ("random", "train"):
        return
    with _readable(source):
        if _on_disk(source) is None:
            _check_reachable(source)


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a parent folder that may not be read, a name that is too long
        raise EmbeddingsError(f"cannot read vectors {source!r}: {error.strerror or error}") from error


def _data_folder() -> Path:
    """Return where gensim's downloader keeps what it downloads."""
    return Path(os.environ.get("GENSIM_DATA_DIR") or "~/gensim-data").expanduser()


def _on_disk(source: str) -> Path | None:
    """Return the file that `source` names: a path, or a download of gensim's; None if that must be fetched first."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix in _FILE_SUFFIXES or not _DOWNLOAD_NAME.fullmatch(source):
        raise EmbeddingsError(
            f"no vectors file {source!r}: --embeddings takes a file, a name of gensim's downloader, train, or random"
        )
    # gensim's downloader asks the network for its list on every call, even if it has the file on disk.
    folder = _data_folder() / source
    if not folder.is_dir():
        return None
    usual = folder / f"{source}.gz"
    files = (
        [usual] if usual.is_file() else [f for f in folder.iterdir() if f.is_file() and f.suffix not in (".py", ".npy")]
    )
    if len(files) != 1:
        raise EmbeddingsError(f"{str(folder)!r} holds no {source}.gz: remove the folder to download it again")
    return files[0]


def _check_reachable(name: str) -> None:
    import gensim.downloader

    reason = why_unreachable(gensim.downloader.DATA_LIST_URL)
    if reason is not None:
        raise EmbeddingsUnavailable(
            f"vectors {name!r} are not in {_data_folder()}, and gensim's downloads cannot be reached "
            f"({gensim.downloader.DATA_LIST_URL}: {reason}): run with --embeddings train, or with a path to a vectors "
            "file, --embeddings PATH"
        )


def _download(name: str) -> Path:
    import gensim.downloader

    _check_reachable(name)
    log.info("downloading %s to %s", name, _data_folder())
    try:
        with word2vec.quiet_gensim(), contextlib.redirect_stdout(sys.stderr):  # progress belongs there
            known = gensim.downloader.info(name_only=True)["models"]
            if name in known:
                return Path(gensim.downloader.load(name, return_path=True))
    except MemoryError:
        raise
    except Exception as error:  # besides network and disk errors it raises plain Exceptions (a wrong checksum)
        raise EmbeddingsUnavailable(
            f"downloading {name!r} failed: {type(error).__name__}: {error}; try again, or run with --embeddings train"
        ) from error
    raise EmbeddingsError(f"gensim's downloader does not know {name!r}; it knows {', '.join(sorted(known))}")


def _train(corpus: Corpus, halves: list[dict[str, Any]], signals: Deferred) -> _Rows:
    vectors, found = word2vec.train(corpus, halves, signals)
    return _Rows(vectors, found, 0)


# ---------------------------------------------------------------- the cache


def _file_identity(path: Path) -> list[Any]:
    """Return a value that changes when the file does, or one of those in which gensim keeps its large arrays."""
    files = [path, *sorted(f for f in path.parent.iterdir() if f.name.startswith(path.name + "."))]
    return [str(path.resolve())] + [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _load_cached(file: Path, key: str, words: int) -> _Rows | None:
    try:
        # Opened here, since NumPy leaves a damaged file open.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            stored, found, rows, lowered = arrays["key"], arrays["found"], arrays["rows"], arrays["lowered"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("ignoring the damaged cache file %s (%s)", file, error)
        return None
    valid = (
        stored.shape == ()
        and stored.item() == key
        and found.dtype == np.bool_
        and found.shape == (words,)
        and rows.dtype == np.float32
        and rows.ndim == 2
        and rows.shape[0] == np.count_nonzero(found)
        and bool(np.isfinite(rows).all())
        and lowered.shape == ()
        and lowered.dtype == np.int64
    )
    if not valid:
        log.warning("ignoring the cache file %s: it holds something else", file)
        return None
    vectors = np.zeros((words, rows.shape[1]), dtype=np.float32)
    vectors[found] = rows
    return _Rows(vectors, found, int(lowered))


def _save_cached(file: Path, key: str, rows: _Rows) -> None:
    """Write under a temporary name, then rename, so that nobody reads half a file. Failure only warns."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, suffix=".tmp", delete=False) as out:
            temporary = Path(out.name)
            found, lowered = rows.found, np.array(rows.lowered, dtype=np.int64)
            np.savez(out, key=np.array(key), found=found, rows=rows.vectors[found], lowered=lowered)
        temporary.replace(file)
    except BaseException as error:  # Ctrl-C too
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        log.warning("the vectors are not cached: %s; set RNN_CACHE_DIR to a folder that can be written", error)
