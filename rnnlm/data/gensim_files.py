"""Word vectors in gensim's own files (`KeyedVectors.save`, `Word2Vec.save`), read without running anything in them.

Such a file is a Python pickle, and unpickling can call any function that the file names. Here nothing is called: of
the names in a file only those below are accepted, and each is replaced by a class or function of this module that
stores what it is given. Arrays are then built from those parts, and only the arrays that are needed. Large arrays
are in .npy files beside the pickle, which are mapped.
"""

import pickle  # nosec B403
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rnnlm.arrays import F32, I64, Mask
from rnnlm.errors import shortened

# The classes that gensim 4.4 writes, and those that earlier versions wrote and 4.4 still reads.
_GENSIM_CLASSES = {
    "gensim.models.doc2vec": ("Doc2Vec",),
    "gensim.models.fasttext": ("FastText", "FastTextKeyedVectors", "FastTextTrainables", "FastTextVocab"),
    "gensim.models.keyedvectors": (
        *("CompatVocab", "Doc2VecKeyedVectors", "EuclideanKeyedVectors", "FastTextKeyedVectors"),
        *("KeyedVectors", "Vocab", "Word2VecKeyedVectors"),
    ),
    "gensim.models.poincare": ("PoincareKeyedVectors",),
    "gensim.models.word2vec": ("Vocab", "Word2Vec", "Word2VecTrainables", "Word2VecVocab"),
    "gensim.utils": ("call_on_class_only",),
}
# What a model holds beside its vectors: a hash function, a random generator. None of it is used.
_UNUSED = {
    "builtins": ("frozenset", "hash", "int", "set"),
    "__builtin__": ("frozenset", "hash", "int", "long", "set"),  # the same in protocol 2
    "numpy": ("memmap", "ndarray"),
    "numpy.random": ("__RandomState_ctor",),
    "numpy.random._mt19937": ("MT19937",),
    "numpy.random._pcg64": ("PCG64",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    "numpy.random.mtrand": ("__randomstate_ctor",),
}


class VectorsRefused(ValueError):
    """A file that holds something other than word vectors as gensim saves them; the message says what."""


def read_gensim(path: Path, words: Sequence[str]) -> tuple[F32, Mask]:
    """Read the vectors of `words`: (len(words), E) float32, zeros where the file has none; and (len(words),) bool.

    Raises VectorsRefused, whose one-line message goes on from the file's name, and OSError.
    """
    with open(path, "rb") as file:
        saved = _unpickle(file)
    if isinstance(saved, _Saved) and "wv" in saved.state:  # a whole model: take its vectors
        saved, path = saved.state["wv"], Path(f"{path}.wv")
    if not isinstance(saved, _Saved) or not type(saved).__name__.endswith("KeyedVectors"):
        raise VectorsRefused(f"holds no KeyedVectors, but a {type(saved).__name__.lstrip('_')}")
    ids = _ids(saved, words)
    vectors = _rows(saved, path, words, ids)
    return vectors, ids >= 0


def _ids(saved: "_Saved", words: Sequence[str]) -> I64:
    """Return the row of each word, -1 where the file has none."""
    table = saved.state.get("key_to_index", saved.state.get("vocab"))  # "vocab": before gensim 4
    if not isinstance(table, dict):
        raise VectorsRefused("is damaged: its KeyedVectors have no table of words")
    ids = np.full(len(words), -1, dtype=np.int64)
    for i, word in enumerate(words):
        row = table.get(word, -1)
        if isinstance(row, _Saved):
            row = row.state.get("index")
        if not isinstance(row, int) or not -1 <= row < 1 << 31:
            raise VectorsRefused(f"is damaged: the row of {shortened(word)!r} is {_short(row)}")
        ids[i] = row
    return ids


def _rows(saved: "_Saved", path: Path, words: Sequence[str], ids: I64) -> F32:
    name = next((name for name in ("vectors", "syn0") if saved.has(name)), None)  # "syn0": before gensim 3
    is_fasttext = name is None and saved.has("vectors_vocab")
    table = _table(saved, path, name or "vectors_vocab")
    missing = ids[ids >= len(table)]
    if missing.size:
        raise VectorsRefused(f"is damaged: it has {len(table):,} vectors, and a word in row {missing[0]:,}")
    found = np.flatnonzero(ids >= 0)
    vectors = np.zeros((len(words), table.shape[1]), dtype=np.float32)
    with np.errstate(over="ignore"):  # too large for float32 is not finite, and read_vectors says so
        vectors[found] = table[ids[found]]
    if is_fasttext:
        _add_ngrams(saved, path, vectors, {int(i): words[i] for i in found})
    return vectors


def _add_ngrams(saved: "_Saved", path: Path, vectors: F32, words: dict[int, str]) -> None:
    """Turn the vectors of fastText's whole words into the mean of those and of their n-grams', as gensim does."""
    from gensim.models.fasttext import ft_ngram_hashes

    sizes = [saved.state.get(name) for name in ("min_n", "max_n", "bucket")]
    if not all(isinstance(size, int) and 0 <= size < 1 << 31 for size in sizes) or not saved.state.get(
        "compatible_hash"
    ):
        raise VectorsRefused("is a fastText model of a version before gensim 3.8; save it again with that version")
    min_n, max_n, bucket = sizes
    if not bucket:
        return
    ngrams = _table(saved, path, "vectors_ngrams")
    if ngrams.shape != (bucket, vectors.shape[1]):
        raise VectorsRefused(f"is damaged: its n-grams are {ngrams.shape}, not {(bucket, vectors.shape[1])}")
    for i, word in words.items():
        hashes = ft_ngram_hashes(word, min_n, max_n, bucket)
        for row in hashes:  # in this order, and in float32: the same sums as gensim's, to the bit
            vectors[i] += ngrams[row]
        vectors[i] /= len(hashes) + 1


def _table(saved: "_Saved", path: Path, name: str) -> npt.NDArray[Any]:
    """Return an array of two dimensions, mapped if it has a file of its own."""
    stored = saved.state.get(name)
    if stored is None and name in saved.separate:
        file = Path(f"{path}.{name}.npy")
        try:
            stored = np.lib.format.open_memmap(file, mode="r")  # numbers only: it knows no pickles and no archives
        except OSError as error:
            raise VectorsRefused(f"needs {file.name!r} beside it: {error.strerror or error}") from error
        except Exception as error:  # a damaged header raises errors of Python's parser
            raise VectorsRefused(f"has a damaged file beside it, {file.name!r}: {_short(error)}") from error
    elif isinstance(stored, _Array):
        stored = stored.build()
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype.kind not in "fiu":
        raise VectorsRefused(f"holds no table of numbers as its {name}")
    return stored


# ---------------------------------------------------------------- the pickle


class _Saved:
    """An object of a pickle: its class, by name, and its attributes, as a dict. It has no behaviour."""

    __slots__ = ("state",)
    state: dict[Any, Any]

    def __new__(cls, *_args: Any) -> "_Saved":
        saved = object.__new__(cls)
        saved.state = {}
        return saved

    def __init__(self, *_args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    @property
    def separate(self) -> Sequence[Any]:
        """Return the names of the arrays that have files of their own."""
        names = self.state.get("__numpys")
        return names if isinstance(names, list) else []

    def has(self, name: str) -> bool:
        return self.state.get(name) is not None or name in self.separate


class _Array:
    """The parts of a pickled array."""

    __slots__ = ("data", "dtype", "is_fortran", "shape")

    def __init__(self, *_args: Any) -> None:
        self.__setstate__((None, None, None, None, None))

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.data = state

    def build(self) -> npt.NDArray[Any]:
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # str: written by Python 2
        if not isinstance(self.dtype, _Dtype) or not isinstance(data, bytes | bytearray):
            raise VectorsRefused("holds an array of something other than numbers")
        dtype, order = self.dtype.build(), "F" if self.is_fortran else "C"
        try:
            return np.frombuffer(data, dtype).reshape(self.shape, order=order)
        except (OverflowError, TypeError, ValueError) as error:
            raise VectorsRefused(f"is damaged: {_short(error)}") from error


class _Dtype:
    """The parts of a pickled dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any = None, *_args: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def build(self) -> np.dtype[Any]:
        name = f"{self.order}{self.code}"
        if not re.fullmatch(r"[<>=|](b1|[fiu][1248]|U\d{1,6})", name, re.ASCII):
            raise VectorsRefused(f"holds an array of something other than numbers: {_short(self.code)}")
        return np.dtype(name)


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:  # since protocol 5
    array = _Array()
    array.__setstate__((None, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    try:
        return _array_from_buffer(data, dtype, (1,), "C").build().item()
    except VectorsRefused:
        return _Saved()  # of another kind than a number or a word, so not needed


def _latin1(text: Any, _encoding: Any) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes in protocol 2, and the only encoding it names


def _stand_ins() -> dict[tuple[str, str], Any]:
    """Return what takes the place of each name that is accepted."""
    names: dict[tuple[str, str], Any] = {
        (module, name): type(name, (_Saved,), {"__slots__": ()})
        for module, listed in (_GENSIM_CLASSES | _UNUSED).items()
        for name in listed
    }
    for module in ("numpy.core", "numpy._core"):
        names[module + ".multiarray", "_reconstruct"] = _Array
        names[module + ".multiarray", "scalar"] = _scalar
        names[module + ".numeric", "_frombuffer"] = _array_from_buffer
    names["numpy", "dtype"] = _Dtype
    names["_codecs", "encode"] = _latin1
    names["__builtin__", "bytes"] = lambda: b""
    names["collections", "defaultdict"] = lambda *_factory: {}
    return names


class _Unpickler(pickle.Unpickler):
    """Finds the stand-ins and nothing else, so that a file cannot call anything."""

    stand_ins = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.stand_ins[module, name]
        except KeyError:
            raise VectorsRefused(
                f"is refused: it names {_short(f'{module}.{name}')}, which is no part of word vectors, and unpickling "
                "can run what it names; if you trust the file, load it in gensim and save it by save_word2vec_format"
            ) from None


def _unpickle(file: BinaryIO) -> Any:
    try:
        return _Unpickler(file, encoding="latin1").load()
    except (VectorsRefused, OSError):
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise VectorsRefused(f"is damaged: {type(error).__name__}: {_short(error)}") from error


def _short(value: Any) -> str:
    """Return `value` as at most 80 printable characters on one line."""
    text = ascii(str(value))
    return text if len(text) <= 80 else text[:79] + "…'"
