"""The weights file: a safetensors file (see container.py), written atomically and checked before it is used.

UserError
 +-- CheckpointError     the file is missing, damaged or of another kind              exit code 2
 |    +-- OtherVersion   another version of this program wrote it
 +-- VocabularyError     words that no weights file can hold (also a ValueError)      exit code 2
 +-- Failure
      +-- SaveError      it cannot be written: a full disk, a read-only folder        exit code 1
ValueError               the caller built what no file could hold: a bug
"""

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from rnnlm import container
from rnnlm.arguments import check_type
from rnnlm.arrays import F32, MAX_EMBED, MAX_HIDDEN, MAX_VOCAB
from rnnlm.container import CheckpointError, Kind, MappedFile, OtherVersion
from rnnlm.data.text import EOS, TOKENIZERS
from rnnlm.errors import UserError, show_path
from rnnlm.files import SaveError
from rnnlm.strict_json import Invalid, decode_json, encode_json, show

__all__ = [
    "BACKENDS",
    "PARAMETERS",
    "Checkpoint",
    "CheckpointError",
    "OtherVersion",
    "VocabularyError",
    "Weights",
    "check_finite",
    "check_vocabulary",
    "drop_pages",
    "load",
    "parameter_shapes",
    "save",
]

PARAMETERS = ("Wxh", "Whh", "bh", "Why", "by")  # the order of the C library's flat parameter buffer
BACKENDS = ("c", "torch")

MAX_VOCABULARY_BYTES = 8 << 20  # WikiText-103 has 2 MB of distinct words; as Python objects up to 25 times that
MAX_WORD_LENGTH = 1024  # characters

_REMEDY = "train a model (make train), or use another file"
_WEIGHTS = Kind("rnn-weights", "1", "weights file", _REMEDY, _REMEDY)


class VocabularyError(Invalid, UserError):
    """The words cannot be kept in a weights file."""


# ---- What a weights file holds -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Weights:
    """The parameters of a model with V words, embedding size E and H hidden units, all float32 and C-contiguous.

    The arrays may be read-only views of a file. Raises TypeError for what is no array, ValueError for a wrong dtype,
    shape or size.
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
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{field.name} must be an array of float32, not {type(array).__name__}")
            if array.dtype != np.float32:
                raise Invalid(f"{field.name} must be an array of float32, not {array.dtype}")
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
        """Return the trained tensors by name, in the order PARAMETERS, without copying them."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def flat_parameters(self) -> F32:
        """Return a new (P,) buffer with the parameters in the order PARAMETERS, the layout of the C library."""
        return np.concatenate([array.reshape(-1) for array in self.parameters().values()])

    @classmethod
    def from_flat(cls, embeddings: F32, flat: F32, hidden_size: int) -> Self:
        """Make weights whose parameters are views of `flat`, (P,) in the order PARAMETERS.

        Raises ValueError if P is not E*H + H*H + H + H*V + V.
        """
        shapes = parameter_shapes(*embeddings.shape, hidden_size)
        sizes = [math.prod(shape) for shape in shapes.values()]
        if flat.shape != (sum(sizes),):
            raise Invalid(f"the flat parameters have shape {list(flat.shape)}, expected [{sum(sizes)}]")
        parts = zip(np.split(flat, np.cumsum(sizes)[:-1]), shapes.values(), strict=True)
        return cls(embeddings, *(part.reshape(shape) for part, shape in parts))


def parameter_shapes(vocab_size: int, embed_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter, in the order PARAMETERS."""
    v, e, h = vocab_size, embed_size, hidden_size
    return dict(zip(PARAMETERS, ((e, h), (h, h), (h,), (h, v), (v,)), strict=True))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model: its weights, its words, and how it was trained.

    vocabulary: V distinct words in id order, including <EOS>.   tokenizer: one of text.TOKENIZERS.
    backend: the back end that trained it, one of BACKENDS; both can run it.
    config: the training configuration.   history: one entry per evaluation. Both are JSON values with finite numbers.
    mapping: the mapped file that `weights` were loaded from, if any.
    Raises ValueError if the parts do not fit each other.
    """

    weights: Weights
    vocabulary: tuple[str, ...]
    tokenizer: str
    backend: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    mapping: MappedFile | None = None

    def __post_init__(self) -> None:
        check_type("weights", self.weights, Weights)
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle has. The mapping, with its descriptor, stays in this process."""
        return self.__dict__ | {"mapping": None}


def check_vocabulary(words: Sequence[str]) -> None:
    """Raise VocabularyError unless a weights file can hold these words. Call it before training on them.

    Words must be distinct, not empty, at most MAX_WORD_LENGTH characters long, and free of white space and of
    unprintable characters (a terminal would obey control characters). <EOS> must be one of them. Together they take
    at most MAX_VOCABULARY_BYTES.
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
    """Write a weights file. Creates the folder if necessary. The same checkpoint gives the same bytes.

    The new file appears whole or not at all, and survives a power cut. Readers that have mapped the old file keep it.
    (Windows does not replace a file that is mapped: see `copy` of load.)
    Raises SaveError, also for weights that are not finite; ValueError if config or history is not JSON.
    """
    check_type("path", path, os.PathLike)
    check_type("checkpoint", checkpoint, Checkpoint)
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
    # The words come last: they may take an odd number of bytes, after which a float32 would not be aligned.
    tensors = {"embeddings": weights.embeddings, **weights.parameters(), "vocabulary": words}
    container.write(path, _WEIGHTS, metadata, tensors)


def load(path: str | os.PathLike[str], *, copy: bool = False) -> Checkpoint:
    """Check a weights file and map it: the tensors are read-only views, read when used and shared by processes.

    Only the header and the vocabulary are read now, and those not through the mapping, so the caller can guard it
    first. Checking that all numbers are finite means reading them all: see check_finite.
    copy: read the tensors into memory instead, writable, and close the file. A trainer needs this, since it will save
    under the same name.
    Raises CheckpointError.
    """
    check_type("path", path, os.PathLike)
    with container.opened(path, _WEIGHTS) as file:
        names = {field.name for field in fields(Weights)}
        expected = names | {"vocabulary"}
        if file.entries.keys() != expected:
            missing, unknown = sorted(expected - file.entries.keys()), sorted(file.entries.keys() - expected)
            raise Invalid(f"its tensors are not ours: {show(missing)} missing, {show(unknown)} unknown")
        mapping = None if copy else file.map()
        weights = Weights(**{name: file.view(name, mapping) if mapping else file.read(name) for name in names})
        return Checkpoint(
            weights=weights,
            vocabulary=_read_vocabulary(file, weights.vocab_size),
            tokenizer=file.metadata("tokenizer"),
            backend=file.metadata("backend"),
            config=decode_json("config", file.metadata("config")),
            history=decode_json("history", file.metadata("history")),
            mapping=mapping,
        )


def check_finite(weights: Weights, name: str | os.PathLike[str] = "weights") -> None:
    """Raise CheckpointError, naming the tensor and the place, unless every number is finite.

    Reads everything once, in blocks, and needs 2 MB of memory.   name: the file's, for the message.
    """
    found = _non_finite(weights)
    if found:
        raise CheckpointError(f"{show_path(name)}: {found}: train again, or use another file")


def _non_finite(weights: Weights) -> str:
    """Describe the first number that is not finite, for a message; return "" if there is none."""
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
    """Release the resident memory of a mapped array. Pages that are read again come from the system's page cache.

    Does nothing for an array that is not mapped, or on Windows.
    """
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: those at the ends also hold other arrays
    size = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if size > 0:
        base.madvise(mmap.MADV_DONTNEED, first, size)


def _read_vocabulary(file: container.SafetensorsFile, vocab_size: int) -> tuple[str, ...]:
    """Read the words. Their number and size are checked before anything is made of them."""
    entry = file.entries["vocabulary"]
    if entry.dtype != np.uint8 or len(entry.shape) != 1:
        raise Invalid(f"vocabulary must be one row of uint8, not {entry.dtype} {list(entry.shape)}")
    if entry.shape[0] > MAX_VOCABULARY_BYTES:
        raise Invalid(f"the vocabulary takes {entry.shape[0]:,} bytes, more than {MAX_VOCABULARY_BYTES:,}")
    data = file.read("vocabulary")
    count = int(np.count_nonzero(data == ord("\n"))) + 1
    if count != vocab_size:
        raise Invalid(f"the vocabulary has {count:,} words, but there are embeddings for {vocab_size:,}")
    try:
        return tuple(data.tobytes().decode("utf-8").split("\n"))
    except UnicodeDecodeError as error:
        raise Invalid(f"the vocabulary is not UTF-8 at byte {error.start:,}") from error
