"""The weights file and the resume file: written atomically, checked before use, mapped instead of read.

Both are safetensors files: 8 bytes with the length of a JSON header (little-endian), the header, then the
tensors, one after the other. Whatever a file from outside holds, `load` and `load_state` return something
valid or raise CheckpointError: nothing in it is executed (no pickle), and no size is taken on trust.

    UserError
     +-- CheckpointError     the file is missing, damaged or not ours                     exit code 2
     |    +-- OtherVersion   another version of this program wrote it
     +-- VocabularyError     words that no weights file can hold (also a ValueError)      exit code 2
     +-- Failure
          +-- SaveError      it cannot be written: a full disk, an unwritable folder      exit code 1
    ValueError               the caller built what no file could hold: a bug

The format is written here rather than by the `safetensors` package because its `serialize_file` takes a name,
so that the file cannot be synced before it is renamed, and its `serialize` builds the whole file in memory a
second time. tests/test_checkpoint.py reads our files with that package, and its files with ours.
"""

import contextlib
import json
import logging
import math
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rnnlm.data.text import EOS, TOKENIZERS
from rnnlm.errors import UserError, reason, show_path
from rnnlm.files import SaveError, atomic_write, digest
from rnnlm.strict_json import Invalid, decode_json, encode_json, show

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

PARAMETERS = ("Wxh", "Whh", "bh", "Why", "by")  # the order of the C library's flat parameter buffer
BACKENDS = ("c", "torch")

MAX_VOCAB = 1 << 24  # RNN_MAX_VOCAB,
MAX_EMBED = 1 << 14  # RNN_MAX_EMBED,
MAX_HIDDEN = 1 << 14  # RNN_MAX_HIDDEN in csrc/rnnlib.h
MAX_HEADER_BYTES = 4 << 20  # some 15,000 epochs of history; as Python objects it may grow 25-fold, to 100 MB
MAX_TENSORS = 256
MAX_NDIM = 4
MAX_VOCABULARY_BYTES = 8 << 20  # WikiText-103 has 2 MB of distinct words; as Python objects 25-fold
MAX_WORD_LENGTH = 1024  # characters

_WEIGHTS_FORMAT = "rnn-weights"
_STATE_FORMAT = "rnn-resume"
_REMEDIES = {
    _WEIGHTS_FORMAT: "train a model (python main.py), or name another",
    _STATE_FORMAT: "train without --resume",
}
_VERSIONS = {_WEIGHTS_FORMAT: "1", _STATE_FORMAT: "3"}
_DTYPES = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # the header is padded so that the first tensor starts on a cache line


class CheckpointError(UserError):
    """The file is missing, damaged or not ours. The message names it, what is wrong, and the limit."""


class OtherVersion(CheckpointError):
    """The file is whole, but another version of this program wrote it."""


class _OtherVersion(Invalid):
    """A version that is not ours."""


class VocabularyError(Invalid, UserError):
    """Words that no weights file can hold."""


# ---- What a weights file holds -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Weights:
    """The numbers of a model of V words, embedding size E and H hidden units, all float32 and C-contiguous.

    The arrays may be read-only views of a file. Raises ValueError for a wrong type, shape or size.
    """

    embeddings: F32  # (V, E), frozen in training
    Wxh: F32  # (E, H)
    Whh: F32  # (H, H)
    bh: F32  # (H,)
    Why: F32  # (H, V)
    by: F32  # (V,)

    def __post_init__(self) -> None:
        for field in fields(self):
            array = getattr(self, field.name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                kind = getattr(array, "dtype", type(array).__name__)
                raise Invalid(f"{field.name} must be an array of float32, not {kind}")
            if not (array.flags.c_contiguous and array.flags.aligned):
                raise Invalid(f"{field.name} must be C-contiguous and aligned")
        if self.embeddings.ndim != 2 or self.bh.ndim != 1:
            shapes = f"{list(self.embeddings.shape)} and {list(self.bh.shape)}"
            raise Invalid(f"embeddings must be (V, E) and bh (H), not {shapes}")
        for name, size, limit in (
            ("vocabulary size V", self.vocab_size, MAX_VOCAB),
            ("embedding size E", self.embed_size, MAX_EMBED),
            ("hidden size H", self.hidden_size, MAX_HIDDEN),
        ):
            if not 1 <= size <= limit:
                raise Invalid(f"the {name} is {size:,}, outside 1..{limit:,}")
        for name, shape in parameter_shapes(self.vocab_size, self.embed_size, self.hidden_size).items():
            if getattr(self, name).shape != shape:
                raise Invalid(f"{name} has shape {list(getattr(self, name).shape)}, expected {list(shape)}")

    @property
    def vocab_size(self) -> int:
        """V, the number of words."""
        return int(self.embeddings.shape[0])

    @property
    def embed_size(self) -> int:
        """E, the size of a word's embedding."""
        return int(self.embeddings.shape[1])

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden units."""
        return int(self.bh.shape[0])

    def parameters(self) -> dict[str, F32]:
        """The trained tensors by name, in the order PARAMETERS; no copies."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def flat_parameters(self) -> F32:
        """A new, writable (P,) buffer of the parameters in the order PARAMETERS, as the C library has it."""
        return np.concatenate([array.reshape(-1) for array in self.parameters().values()])

    @classmethod
    def from_flat(cls, embeddings: F32, flat: F32, hidden_size: int) -> Self:
        """Weights whose parameters are views of `flat`, (P,) in the order PARAMETERS.

        Raises ValueError when P is not E*H + H*H + H + H*V + V.
        """
        shapes = parameter_shapes(*embeddings.shape, hidden_size)
        sizes = [math.prod(shape) for shape in shapes.values()]
        if flat.shape != (sum(sizes),):
            raise Invalid(f"the flat parameters have shape {list(flat.shape)}, expected [{sum(sizes)}]")
        parts = zip(np.split(flat, np.cumsum(sizes)[:-1]), shapes.values(), strict=True)
        return cls(embeddings, *(part.reshape(shape) for part, shape in parts))


def parameter_shapes(vocab_size: int, embed_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, in the order PARAMETERS."""
    v, e, h = vocab_size, embed_size, hidden_size
    return dict(zip(PARAMETERS, ((e, h), (h, h), (h,), (h, v), (v,)), strict=True))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model with what it takes to use it and to know where it comes from.

    vocabulary: V distinct words in id order, among them <EOS>.   tokenizer: one of text.TOKENIZERS.
    backend: what trained it, one of BACKENDS; either can run it.   config: the training configuration.
    history: one entry per epoch. Both are plain JSON values: finite numbers, string keys.
    Raises ValueError when a part does not fit the others.
    """

    weights: Weights
    vocabulary: tuple[str, ...]
    tokenizer: str
    backend: str
    config: dict[str, Any]
    history: list[dict[str, Any]]

    def __post_init__(self) -> None:
        check_vocabulary(self.vocabulary)
        if len(self.vocabulary) != self.weights.vocab_size:
            raise Invalid(f"{len(self.vocabulary):,} words, but embeddings for {self.weights.vocab_size:,}")
        if self.tokenizer not in TOKENIZERS:
            raise Invalid(f"tokenizer is {show(self.tokenizer)}, not one of {', '.join(TOKENIZERS)}")
        if self.backend not in BACKENDS:
            raise Invalid(f"backend is {show(self.backend)}, not one of {', '.join(BACKENDS)}")
        if not isinstance(self.config, dict):
            raise Invalid("config must be a JSON object")
        if not isinstance(self.history, list) or not all(isinstance(entry, dict) for entry in self.history):
            raise Invalid("history must be a JSON list of objects")


def check_vocabulary(words: Sequence[str]) -> None:
    """Raise VocabularyError unless a weights file can hold these words: worth asking before training on them.

    They must be distinct, not empty, of at most MAX_WORD_LENGTH characters, free of white space and of what a
    terminal would obey (control characters), with <EOS> among them, in at most MAX_VOCABULARY_BYTES.
    """
    if not 1 <= len(words) <= MAX_VOCAB:
        raise VocabularyError(f"the vocabulary has {len(words):,} words, outside 1..{MAX_VOCAB:,}")
    distinct = set(words)
    if len(distinct) != len(words):
        raise VocabularyError(f"the vocabulary names {len(words) - len(distinct):,} words more than once")
    if "" in distinct:
        raise VocabularyError("the vocabulary has an empty word")
    if EOS not in distinct:
        raise VocabularyError(f"the vocabulary lacks {EOS}")
    longest = max(words, key=len)
    if len(longest) > MAX_WORD_LENGTH:
        raise VocabularyError(
            f"the vocabulary's word {show(longest)} has {len(longest):,} characters, more than "
            f"{MAX_WORD_LENGTH:,}: take it out of the text, or cut rare words (--vocab-size)"
        )
    text = "".join(words)
    if " " in text or not text.isprintable():
        bad = next(word for word in words if " " in word or not word.isprintable())
        raise VocabularyError(f"the vocabulary's word {show(bad)} has a space or an unprintable character")
    size = len(text.encode()) + len(words) - 1
    if size > MAX_VOCABULARY_BYTES:
        raise VocabularyError(
            f"the vocabulary takes {size:,} bytes, more than {MAX_VOCABULARY_BYTES:,}: cut rare words (--vocab-size)"
        )


# ---- The weights file --------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a weights file; the folder is made if need be. The same checkpoint gives the same bytes.

    The new file appears whole or not at all, whatever happens in between, and then survives a power cut.
    Readers that mapped the old one keep it. (Windows replaces no file that is mapped: see load's `copy`.)
    Raises SaveError, also for weights that are not finite; ValueError when config or history is not JSON.
    """
    weights = checkpoint.weights
    found = _non_finite(weights)
    if found:
        raise SaveError(f"{show_path(path)}: not saved, since {found}: the training has diverged")
    metadata = {
        "tokenizer": checkpoint.tokenizer,
        "backend": checkpoint.backend,
        "config": encode_json("config", checkpoint.config),
        "history": encode_json("history", checkpoint.history),
    }
    words = np.frombuffer("\n".join(checkpoint.vocabulary).encode(), np.uint8)
    # The words come last: they may take an odd number of bytes, and a float32 behind them would need copying.
    tensors = {"embeddings": weights.embeddings, **weights.parameters(), "vocabulary": words}
    _write(path, _WEIGHTS_FORMAT, metadata, tensors)


def load(
    path: str | os.PathLike[str], *, copy: bool = False, on_map: Callable[[int, np.memmap], None] | None = None
) -> Checkpoint:
    """Check a weights file and map it: its tensors are read-only views, read when used, shared by processes.

    Only the header and the vocabulary are read. That the numbers are finite takes reading them: check_finite.
    copy: read the tensors into memory instead, writable, and let go of the file: for a trainer, which will
    save under the same name.   on_map: told of the open file and of its mapping, before anything in that is read.
    Raises CheckpointError.
    """
    with _naming(path):
        metadata, tensors = _read(path, _WEIGHTS_FORMAT, copy, on_map)
        expected = {field.name for field in fields(Weights)} | {"vocabulary"}
        if tensors.keys() != expected:
            missing, unknown = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
            raise Invalid(f"its tensors are not ours: {show(missing)} missing, {show(unknown)} unknown")
        # Another writer may have put the vocabulary first, and no float32 is then where a processor wants it.
        arrays = {
            name: view if view.flags.aligned else view.copy() for name, view in tensors.items() if name != "vocabulary"
        }
        weights = Weights(**arrays)
        return Checkpoint(
            weights=weights,
            vocabulary=_split_vocabulary(tensors["vocabulary"], weights.vocab_size),
            tokenizer=_metadata(metadata, "tokenizer"),
            backend=_metadata(metadata, "backend"),
            config=decode_json("config", _metadata(metadata, "config")),
            history=decode_json("history", _metadata(metadata, "history")),
        )


def check_finite(weights: Weights, name: str | os.PathLike[str] = "weights") -> None:
    """Raise CheckpointError, naming the tensor and the place, unless every number is finite.

    Reads everything once, in blocks, for which 2 MB suffice.   name: the file's, for the message.
    """
    found = _non_finite(weights)
    if found:
        raise CheckpointError(f"{show_path(name)}: {found}: train again, or use another file")


def _non_finite(weights: Weights) -> str:
    """Where the first number is that is not finite, for a message; "" when there is none."""
    block = 1 << 20
    for field in fields(weights):
        array = getattr(weights, field.name)
        flat = array.reshape(-1)
        for start in range(0, flat.size, block):
            bad = ~np.isfinite(flat[start : start + block])
            if bad.any():
                place = start + int(bad.argmax())
                index = ", ".join(str(int(i)) for i in np.unravel_index(place, array.shape))
                return f"{field.name}[{index}] is {flat[place]}"
    return ""


def drop_pages(array: np.ndarray) -> None:
    """Take a mapped array out of this process's resident memory; what is read again comes back from the system's cache.

    Does nothing to an array that is not mapped, nor on Windows.
    """
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: at either end lie other arrays
    size = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if size > 0:
        base.madvise(mmap.MADV_DONTNEED, first, size)


def _split_vocabulary(data: np.ndarray, vocab_size: int) -> tuple[str, ...]:
    """The words of the uint8 tensor `vocabulary`; sizes are checked before anything is made of it."""
    if data.dtype != np.uint8 or data.ndim != 1:
        raise Invalid(f"vocabulary must be one row of uint8, not {data.dtype} {list(data.shape)}")
    if data.size > MAX_VOCABULARY_BYTES:
        raise Invalid(f"the vocabulary takes {data.size:,} bytes, more than {MAX_VOCABULARY_BYTES:,}")
    count = int(np.count_nonzero(data == ord("\n"))) + 1
    if count != vocab_size:
        raise Invalid(f"the vocabulary has {count:,} words, but there are embeddings for {vocab_size:,}")
    try:
        return tuple(data.tobytes().decode("utf-8").split("\n"))
    except UnicodeDecodeError as error:
        raise Invalid(f"the vocabulary is not UTF-8 at byte {error.start:,}") from error


# ---- The resume file ---------------------------------------------------------------------------------------


def save_state(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write what it takes to go on training: named arrays, and JSON values (loop position, generator state).

    arrays: float32, float64, int32, int64 or uint8, not empty, at most MAX_TENSORS.   Atomic, as save.
    keep: the name that the file which `path` was until now gets, once the new one is whole.
    Raises SaveError; ValueError for an array or a value that the file cannot hold.
    """
    text = encode_json("state", dict(metadata))
    _write(path, _STATE_FORMAT, {"state": text, "sha256": _state_digest(text, arrays)}, arrays, keep)


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays (new, writable, in memory) and the values of a resume file. Raises CheckpointError, OtherVersion.

    As long as one of the arrays is kept, the memory of all is.
    """
    with _naming(path):
        metadata, tensors = _read(path, _STATE_FORMAT, copy=True)
        text = _metadata(metadata, "state")
        state = decode_json("state", text)
        if not isinstance(state, dict):
            raise Invalid("state must be a JSON object")
        # Parts of one block of memory, which all of them keep; no second copy but where a processor needs it.
        arrays = {name: view if view.flags.aligned else view.copy() for name, view in tensors.items()}
        if _state_digest(text, arrays) != _metadata(metadata, "sha256"):
            raise Invalid("is damaged: it does not hold what was saved")
        return arrays, state


def _state_digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that a resume file holds: the JSON text, and each array's name, type, shape and numbers."""
    heads = [[name, _CODES.get(array.dtype), array.shape] for name, array in arrays.items()]
    return digest(json.dumps([text, heads]).encode(), *arrays.values())


# ---- Reading the container ---------------------------------------------------------------------------------


def _read(
    path: str | os.PathLike[str],
    kind: str,
    copy: bool,
    on_map: Callable[[int, np.memmap], None] | None = None,
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata of a safetensors file of ours, and views of its tensors: read-only on one mapping, or of a copy."""
    try:
        mode = os.stat(path).st_mode  # before open(): opening a named pipe would wait for a writer
        if stat.S_ISDIR(mode):
            raise Invalid("is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise Invalid("is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise Invalid(
                    f"is not a safetensors file, or cut short: {size:,} bytes, which start with a header of "
                    f"{length:,} (at most {MAX_HEADER_BYTES:,})"
                )
            metadata, entries = _parse_header(file.read(length), size - 8 - length)
            if copy:  # without a mapping, which whoever cuts the file short would take from under it
                data = np.empty(size - 8 - length, np.uint8)
                if file.readinto(data) != data.size:
                    raise Invalid("was cut short while it was read")
            else:
                mapping = np.memmap(file, np.uint8, "r", shape=(size,))
                if on_map:
                    on_map(file.fileno(), mapping)
                data = mapping.view(np.ndarray)[8 + length :]
    except Invalid:
        raise
    except FileNotFoundError as error:
        raise Invalid(f"there is no such file: {_REMEDIES[kind]}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path; a file that shrank since fstat
        raise Invalid(f"cannot be read: {reason(error)}") from error
    if metadata.get("format") != kind:
        raise Invalid(f"its format is {show(metadata.get('format'))}, not {show(kind)}")
    if metadata.get("version") != _VERSIONS[kind]:
        raise _OtherVersion(
            f"its version is {show(metadata.get('version'))}; this program reads {_VERSIONS[kind]!r}: {_REMEDIES[kind]}"
        )
    return metadata, {
        name: data[entry.begin : entry.end].view(entry.dtype).reshape(entry.shape) for name, entry in entries.items()
    }


class _Entry(NamedTuple):
    """Where a tensor is: bytes [begin, end) of what follows the header."""

    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _parse_header(raw: bytes, data_size: int) -> tuple[dict[str, str], dict[str, _Entry]]:
    """Metadata and tensors of a header; these must fill `data_size` bytes without holes or overlaps."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"its header is not UTF-8 at byte {error.start:,}") from error
    header = decode_json("the header", text)
    if not isinstance(header, dict):
        raise Invalid("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Invalid("its metadata must be an object of strings")
    if len(header) > MAX_TENSORS:
        raise Invalid(f"it has {len(header):,} tensors, more than {MAX_TENSORS}")
    entries = {name: _parse_entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position:
            raise Invalid(f"the tensor {show(name)} starts at byte {entry.begin:,}, expected {position:,}")
        position = entry.end
    if position != data_size:
        raise Invalid(f"its tensors take {position:,} bytes, but the file has {data_size:,} for them")
    return metadata, entries


def _parse_entry(name: str, entry: object) -> _Entry:
    """One tensor's line of the header, checked on its own: known type, and a size that multiplies out."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Invalid(f"the tensor {show(name)} must have dtype, shape and data_offsets, nothing else")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise Invalid(f"the tensor {show(name)} has the type {show(code)}, not {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or 0 in shape or len(shape) > MAX_NDIM:
        raise Invalid(f"the tensor {show(name)} has the shape {show(shape)}, not up to {MAX_NDIM} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise Invalid(f"the tensor {show(name)} has the bytes {show(offsets)}, not [begin, end]")
    begin, end = offsets
    size = math.prod(shape) * _DTYPES[code].itemsize
    if end - begin != size:
        raise Invalid(f"the tensor {show(name)} takes {show(size)} bytes, but has {show(offsets)}")
    return _Entry(begin, end, _DTYPES[code], tuple(shape))


def _are_sizes(value: object) -> bool:
    # type(), since True is an int to isinstance.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _metadata(metadata: Mapping[str, str], key: str) -> str:
    if key not in metadata:
        raise Invalid(f"its metadata lacks {key!r}")
    return metadata[key]


# ---- Writing the container ---------------------------------------------------------------------------------


def _write(
    path: str | os.PathLike[str],
    kind: str,
    metadata: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all."""
    if len(tensors) > MAX_TENSORS:
        raise Invalid(f"{len(tensors):,} tensors, more than {MAX_TENSORS}")
    header: dict[str, Any] = {"__metadata__": {"format": kind, "version": _VERSIONS[kind], **metadata}}
    blocks: list[npt.NDArray[np.uint8]] = []
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise Invalid(f"{name} has the type {tensor.dtype}, not one of {', '.join(map(str, _CODES))}")
        if tensor.size == 0 or tensor.ndim > MAX_NDIM:
            raise Invalid(f"{name} has the shape {list(tensor.shape)}, not up to {MAX_NDIM} sizes above 0")
        end = position + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        blocks.append(np.asarray(tensor, order="C").reshape(-1).view(np.uint8))
        position = end
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGNMENT)
    if len(raw) > MAX_HEADER_BYTES:
        raise SaveError(
            f"{show_path(path)}: not saved, since its configuration and history take {len(raw):,} bytes "
            f"(at most {MAX_HEADER_BYTES:,}): train for fewer epochs, or evaluate less often"
        )
    atomic_write(path, len(raw).to_bytes(8, "little"), raw, *blocks, keep=keep)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn "what is wrong" into a CheckpointError that begins with the file's name."""
    try:
        yield
    except Invalid as error:
        kind = OtherVersion if isinstance(error, _OtherVersion) else CheckpointError
        raise kind(f"{show_path(path)}: {error}") from error
