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
import errno
import glob
import hashlib
import json
import logging
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from data.text import EOS, TOKENIZERS
from errors import Failure, UserError

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
MAX_JSON_DEPTH = 16  # what is loaded gets encoded again (by the service), which recurses
MAX_JSON_INTEGER = 1 << 128  # the state of NumPy's generator needs that many; a float holds its magnitude

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
ABANDONED_SECONDS = 60.0  # between a temporary file's last byte and its rename lies less
_ALIGNMENT = 64  # the header is padded so that the first tensor starts on a cache line


class CheckpointError(UserError):
    """The file is missing, damaged or not ours. The message names it, what is wrong, and the limit."""


class OtherVersion(CheckpointError):
    """The file is whole, but another version of this program wrote it."""


class SaveError(Failure):
    """The file could not be written. What stood under its name is unharmed, and no temporary file is left."""


class _Invalid(ValueError):
    """What is wrong, without the file's name; load() turns it into a CheckpointError."""


class _OtherVersion(_Invalid):
    """A version that is not ours."""


class VocabularyError(_Invalid, UserError):
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
                raise _Invalid(f"{field.name} must be an array of float32, not {kind}")
            if not (array.flags.c_contiguous and array.flags.aligned):
                raise _Invalid(f"{field.name} must be C-contiguous and aligned")
        if self.embeddings.ndim != 2 or self.bh.ndim != 1:
            shapes = f"{list(self.embeddings.shape)} and {list(self.bh.shape)}"
            raise _Invalid(f"embeddings must be (V, E) and bh (H), not {shapes}")
        for name, size, limit in (
            ("vocabulary size V", self.vocab_size, MAX_VOCAB),
            ("embedding size E", self.embed_size, MAX_EMBED),
            ("hidden size H", self.hidden_size, MAX_HIDDEN),
        ):
            if not 1 <= size <= limit:
                raise _Invalid(f"the {name} is {size:,}, outside 1..{limit:,}")
        for name, shape in parameter_shapes(self.vocab_size, self.embed_size, self.hidden_size).items():
            if getattr(self, name).shape != shape:
                raise _Invalid(f"{name} has shape {list(getattr(self, name).shape)}, expected {list(shape)}")

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
            raise _Invalid(f"the flat parameters have shape {list(flat.shape)}, expected [{sum(sizes)}]")
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
            raise _Invalid(f"{len(self.vocabulary):,} words, but embeddings for {self.weights.vocab_size:,}")
        if self.tokenizer not in TOKENIZERS:
            raise _Invalid(f"tokenizer is {_show(self.tokenizer)}, not one of {', '.join(TOKENIZERS)}")
        if self.backend not in BACKENDS:
            raise _Invalid(f"backend is {_show(self.backend)}, not one of {', '.join(BACKENDS)}")
        if not isinstance(self.config, dict):
            raise _Invalid("config must be a JSON object")
        if not isinstance(self.history, list) or not all(isinstance(entry, dict) for entry in self.history):
            raise _Invalid("history must be a JSON list of objects")


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
            f"the vocabulary's word {_show(longest)} has {len(longest):,} characters, more than "
            f"{MAX_WORD_LENGTH:,}: take it out of the text, or cut rare words (--vocab-size)"
        )
    text = "".join(words)
    if " " in text or not text.isprintable():
        bad = next(word for word in words if " " in word or not word.isprintable())
        raise VocabularyError(f"the vocabulary's word {_show(bad)} has a space or an unprintable character")
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
        raise SaveError(f"{_show_path(path)}: not saved, since {found}: the training has diverged")
    metadata = {
        "tokenizer": checkpoint.tokenizer,
        "backend": checkpoint.backend,
        "config": _encode_json("config", checkpoint.config),
        "history": _encode_json("history", checkpoint.history),
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
            raise _Invalid(f"its tensors are not ours: {_show(missing)} missing, {_show(unknown)} unknown")
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
            config=_decode_json("config", _metadata(metadata, "config")),
            history=_decode_json("history", _metadata(metadata, "history")),
        )


def check_finite(weights: Weights, name: str | os.PathLike[str] = "weights") -> None:
    """Raise CheckpointError, naming the tensor and the place, unless every number is finite.

    Reads everything once, in blocks, for which 2 MB suffice.   name: the file's, for the message.
    """
    found = _non_finite(weights)
    if found:
        raise CheckpointError(f"{_show_path(name)}: {found}: train again, or use another file")


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


def _split_vocabulary(data: np.ndarray, vocab_size: int) -> tuple[str, ...]:
    """The words of the uint8 tensor `vocabulary`; sizes are checked before anything is made of it."""
    if data.dtype != np.uint8 or data.ndim != 1:
        raise _Invalid(f"vocabulary must be one row of uint8, not {data.dtype} {list(data.shape)}")
    if data.size > MAX_VOCABULARY_BYTES:
        raise _Invalid(f"the vocabulary takes {data.size:,} bytes, more than {MAX_VOCABULARY_BYTES:,}")
    count = int(np.count_nonzero(data == ord("\n"))) + 1
    if count != vocab_size:
        raise _Invalid(f"the vocabulary has {count:,} words, but there are embeddings for {vocab_size:,}")
    try:
        return tuple(data.tobytes().decode("utf-8").split("\n"))
    except UnicodeDecodeError as error:
        raise _Invalid(f"the vocabulary is not UTF-8 at byte {error.start:,}") from error


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
    text = _encode_json("state", dict(metadata))
    _write(path, _STATE_FORMAT, {"state": text, "sha256": _state_digest(text, arrays)}, arrays, keep)


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays (new, writable, in memory) and the values of a resume file. Raises CheckpointError, OtherVersion.

    As long as one of the arrays is kept, the memory of all is.
    """
    with _naming(path):
        metadata, tensors = _read(path, _STATE_FORMAT, copy=True)
        text = _metadata(metadata, "state")
        state = _decode_json("state", text)
        if not isinstance(state, dict):
            raise _Invalid("state must be a JSON object")
        # Parts of one block of memory, which all of them keep; no second copy but where a processor needs it.
        arrays = {name: view if view.flags.aligned else view.copy() for name, view in tensors.items()}
        if _state_digest(text, arrays) != _metadata(metadata, "sha256"):
            raise _Invalid("is damaged: it does not hold what was saved")
        return arrays, state


def _state_digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that a resume file holds: the JSON text, and each array's name, type, shape and numbers."""
    heads = [[name, _CODES.get(array.dtype), array.shape] for name, array in arrays.items()]
    digest = hashlib.sha256(json.dumps([text, heads]).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


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
            raise _Invalid("is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise _Invalid("is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise _Invalid(
                    f"is not a safetensors file, or cut short: {size:,} bytes, which start with a header of "
                    f"{length:,} (at most {MAX_HEADER_BYTES:,})"
                )
            metadata, entries = _parse_header(file.read(length), size - 8 - length)
            if copy:  # without a mapping, which whoever cuts the file short would take from under it
                data = np.empty(size - 8 - length, np.uint8)
                if file.readinto(data) != data.size:
                    raise _Invalid("was cut short while it was read")
            else:
                mapping = np.memmap(file, np.uint8, "r", shape=(size,))
                if on_map:
                    on_map(file.fileno(), mapping)
                data = mapping.view(np.ndarray)[8 + length :]
    except _Invalid:
        raise
    except FileNotFoundError as error:
        raise _Invalid(f"there is no such file: {_REMEDIES[kind]}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path; a file that shrank since fstat
        raise _Invalid(f"cannot be read: {_reason(error)}") from error
    if metadata.get("format") != kind:
        raise _Invalid(f"its format is {_show(metadata.get('format'))}, not {_show(kind)}")
    if metadata.get("version") != _VERSIONS[kind]:
        raise _OtherVersion(
            f"its version is {_show(metadata.get('version'))}; this program reads {_VERSIONS[kind]!r}: "
            f"{_REMEDIES[kind]}"
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
        raise _Invalid(f"its header is not UTF-8 at byte {error.start:,}") from error
    header = _decode_json("the header", text)
    if not isinstance(header, dict):
        raise _Invalid("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Invalid("its metadata must be an object of strings")
    if len(header) > MAX_TENSORS:
        raise _Invalid(f"it has {len(header):,} tensors, more than {MAX_TENSORS}")
    entries = {name: _parse_entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position:
            raise _Invalid(f"the tensor {_show(name)} starts at byte {entry.begin:,}, expected {position:,}")
        position = entry.end
    if position != data_size:
        raise _Invalid(f"its tensors take {position:,} bytes, but the file has {data_size:,} for them")
    return metadata, entries


def _parse_entry(name: str, entry: object) -> _Entry:
    """One tensor's line of the header, checked on its own: known type, and a size that multiplies out."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Invalid(f"the tensor {_show(name)} must have dtype, shape and data_offsets, nothing else")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise _Invalid(f"the tensor {_show(name)} has the type {_show(code)}, not {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or 0 in shape or len(shape) > MAX_NDIM:
        raise _Invalid(f"the tensor {_show(name)} has the shape {_show(shape)}, not up to {MAX_NDIM} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _Invalid(f"the tensor {_show(name)} has the bytes {_show(offsets)}, not [begin, end]")
    begin, end = offsets
    size = math.prod(shape) * _DTYPES[code].itemsize
    if end - begin != size:
        raise _Invalid(f"the tensor {_show(name)} takes {_show(size)} bytes, but has {_show(offsets)}")
    return _Entry(begin, end, _DTYPES[code], tuple(shape))


def _are_sizes(value: object) -> bool:
    # type(), since True is an int to isinstance.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _metadata(metadata: Mapping[str, str], key: str) -> str:
    if key not in metadata:
        raise _Invalid(f"its metadata lacks {key!r}")
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
        raise _Invalid(f"{len(tensors):,} tensors, more than {MAX_TENSORS}")
    header: dict[str, Any] = {"__metadata__": {"format": kind, "version": _VERSIONS[kind], **metadata}}
    blocks: list[npt.NDArray[np.uint8]] = []
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise _Invalid(f"{name} has the type {tensor.dtype}, not one of {', '.join(map(str, _CODES))}")
        if tensor.size == 0 or tensor.ndim > MAX_NDIM:
            raise _Invalid(f"{name} has the shape {list(tensor.shape)}, not up to {MAX_NDIM} sizes above 0")
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
            f"{_show_path(path)}: not saved, since its configuration and history take {len(raw):,} bytes "
            f"(at most {MAX_HEADER_BYTES:,}): train for fewer epochs, or evaluate less often"
        )
    atomic_write(path, len(raw).to_bytes(8, "little"), raw, *blocks, keep=keep)


# ---- Writing any file whole or not at all ------------------------------------------------------------------


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
            log.warning("%s: what was there before is not kept as %s (%s)", target, keep, _reason(error))
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
        f"{_show_path(path)}: cannot be saved ({_reason(error)}), and what was there is unchanged: "
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
        log.warning("%s: the folder cannot be synced to disk (%s)", folder, _reason(error))


# ---- JSON, and text for messages ---------------------------------------------------------------------------


def _decode_json(name: str, text: str) -> Any:
    """JSON as the standard has it: no duplicate keys, NaN, infinity or lone surrogates; bounded in depth."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise _Invalid(f"{name} is nested more than {MAX_JSON_DEPTH} deep") from None
    except ValueError as error:
        raise _Invalid(f"{name} is not valid JSON: {error}") from error
    _check_json(name, value)
    return value


def _encode_json(name: str, value: object) -> str:
    """JSON text that _decode_json accepts. Raises ValueError, naming the place, for what is not JSON."""
    _check_json(name, value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_json(name: str, value: object, *keys: str | int) -> None:
    """Raise unless `value` is JSON, finite (Python's parser takes NaN and 1e999), and not nested too deep.

    name, keys: where it stands, for the message; put together only when there is one.
    """
    if isinstance(value, dict | list | tuple):
        if len(keys) >= MAX_JSON_DEPTH:
            raise _Invalid(f"{name} is nested more than {MAX_JSON_DEPTH} deep")
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if not isinstance(key, str):
                    raise _Invalid(f"{_place(name, *keys)} has the key {_show(key)}, which is not a string")
                _check_text(key, name, *keys)
            _check_json(name, child, *keys, key)
    elif isinstance(value, str):
        _check_text(value, name, *keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Invalid(f"{_place(name, *keys)} is {value}, which is not a finite number")
    elif isinstance(value, int) and abs(value) >= MAX_JSON_INTEGER:
        raise _Invalid(f"{_place(name, *keys)} is {_show(value)}, which takes more than 128 bits")
    elif value is not None and not isinstance(value, int | float):
        raise _Invalid(f"{_place(name, *keys)} is of type {type(value).__name__}, which is not JSON")


def _check_text(text: str, name: str, *keys: str | int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; nothing can print it
        raise _Invalid(f"{_place(name, *keys)} holds half of a surrogate pair") from error


def _place(name: str, *keys: str | int) -> str:
    return name + "".join(f"[{key!r:.40}]" for key in keys)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _Invalid(f"the key {_show(key)} stands twice")
        result[key] = value
    return result


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn "what is wrong" into a CheckpointError that begins with the file's name."""
    try:
        yield
    except _Invalid as error:
        kind = OtherVersion if isinstance(error, _OtherVersion) else CheckpointError
        raise kind(f"{_show_path(path)}: {error}") from error


def _show(value: object) -> str:
    """A value from outside, for one line of a message: escaped and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _show_path(path: str | os.PathLike[str]) -> str:
    """The path as given, unless it would break the line."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def _reason(error: Exception) -> str:
    """The operating system's words without its number and the path, which the message already has."""
    return getattr(error, "strerror", None) or str(error)
