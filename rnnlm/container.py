"""Read and write safetensors files under our own limits.

A file is 8 bytes with the length of a JSON header (little-endian), the header, then the tensors, back to back.
Whatever a file contains, reading it returns something valid or raises CheckpointError: nothing in it is executed
(no pickle), and no size is trusted before it is checked.

    UserError
     +-- CheckpointError     the file is missing, damaged or of another kind               exit code 2
          +-- OtherVersion   another version of this program wrote it

The `safetensors` package could write the format too, but its `serialize_file` takes a name, so that the file cannot
be synced before it is renamed, and its `serialize` builds a second copy of the file in memory. The tests read our
files with that package, and its files with ours.
"""

import contextlib
import io
import json
import math
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rnnlm.errors import UserError, reason, show_path
from rnnlm.files import SaveError, atomic_write
from rnnlm.strict_json import Invalid, decode_json, show

MAX_HEADER_BYTES = 4 << 20  # some 15,000 epochs of history; as Python objects up to 25 times that, 100 MB
MAX_TENSORS = 256
MAX_NDIM = 4

_DTYPES = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}
SUFFIX = ".safetensors"  # of the names of weights files
_LISTED_FILES = 3  # of a folder, in a message
_ALIGNMENT = 64  # the header is padded so that the first tensor starts on a cache line


class CheckpointError(UserError):
    """The file is missing, damaged or of another kind. The message names the file, what is wrong, and the limit."""


class OtherVersion(CheckpointError):
    """The file is whole, but another version of this program wrote it."""


class _OtherVersion(Invalid):
    """The version is not ours; `naming` turns this into OtherVersion."""


class Kind(NamedTuple):
    """A kind of file: its `format` and `version` metadata, and what messages say of it.

    name: what users call it.   remedy: for a file that is missing or of another version.   instead: for one that is
    empty or of another kind, which a user has mistaken for one of these.
    """

    format: str
    version: str
    name: str
    remedy: str
    instead: str = ""


class Entry(NamedTuple):
    """A tensor of a file: its bytes [begin, end), counted from the end of the header, its type and its shape."""

    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class MappedFile:
    """A file mapped into memory, read-only, with a descriptor of its own.

    data: (size,) uint8, the whole file; nothing of it has been read yet.
    """

    def __init__(self, file: io.BufferedReader, status: os.stat_result) -> None:
        """status: of `file`, taken before anything in it was read."""
        self.data = np.memmap(file, np.uint8, "r", shape=(status.st_size,))
        self._opened_as = status.st_size, status.st_mtime_ns
        self._descriptor = os.dup(file.fileno())  # stays on this version of the file when its name moves on
        weakref.finalize(self, os.close, self._descriptor)

    def is_unchanged(self) -> bool:
        """Return whether the file still has the size and modification time that it had when it was opened."""
        status = os.fstat(self._descriptor)
        return (status.st_size, status.st_mtime_ns) == self._opened_as


class SafetensorsFile:
    """An open file whose header has been checked.   entries: its tensors by name."""

    def __init__(self, file: io.BufferedReader, kind: Kind) -> None:
        """Read and check the header. Raises Invalid, OSError."""
        self._file, self._status = file, os.fstat(file.fileno())
        size = self._status.st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise Invalid(_misfit(size, length, file.read(1), kind))
        self._start = 8 + length
        self._metadata, self.entries = _parse_header(file.read(length), size - self._start)
        if self._metadata.get("format") != kind.format:
            raise Invalid(
                f"its format is {show(self._metadata.get('format'))}, not {show(kind.format)}{_then(kind.instead)}"
            )
        if self._metadata.get("version") != kind.version:
            raise _OtherVersion(
                f"its version is {show(self._metadata.get('version'))}; this program reads {kind.version!r}: "
                f"{kind.remedy}"
            )

    def metadata(self, key: str) -> str:
        """Return a string of the metadata. Raises Invalid if it is missing."""
        if key not in self._metadata:
            raise Invalid(f"its metadata lacks {key!r}")
        return self._metadata[key]

    def read(self, name: str) -> np.ndarray:
        """Read a tensor into memory: a new, writable array. Raises Invalid."""
        entry = self.entries[name]
        array = np.empty(entry.shape, entry.dtype)
        with _reading():
            self._file.seek(self._start + entry.begin)
            if self._file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
                raise Invalid("was cut short while it was read")
        return array

    def map(self) -> MappedFile:
        """Map the file. Raises Invalid."""
        with _reading():
            return MappedFile(self._file, self._status)

    def view(self, name: str, mapping: MappedFile) -> np.ndarray:
        """Return a read-only view of a tensor on `mapping`; a copy if its place in the file is not aligned."""
        entry = self.entries[name]
        data = mapping.data.view(np.ndarray)[self._start + entry.begin : self._start + entry.end]
        array = data.view(entry.dtype).reshape(entry.shape)
        return array if array.flags.aligned else self.read(name)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], kind: Kind) -> Iterator[SafetensorsFile]:
    """Open a safetensors file of ours and check its header.

    Raises CheckpointError for what is wrong with it, and for every Invalid that the block raises.
    """
    with naming(path), contextlib.ExitStack() as stack:
        with _reading(path, kind.remedy):
            mode = os.stat(path).st_mode  # before open(): opening a named pipe would wait for a writer
            if stat.S_ISDIR(mode):
                raise Invalid(f"is a folder, not a file{_then(_weights_in(path))}")
            if not stat.S_ISREG(mode):
                raise Invalid("is not a regular file")
            file = SafetensorsFile(stack.enter_context(open(path, "rb")), kind)
        yield file


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str] = "", remedy: str = "") -> Iterator[None]:
    """Turn what the operating system says of a file into Invalid.   path, remedy: if it may be missing."""
    try:
        yield
    except Invalid:
        raise
    except FileNotFoundError as error:
        whole = f"{os.fspath(path)}{SUFFIX}"
        is_short = not os.fspath(path).endswith(SUFFIX) and os.path.isfile(whole)
        raise Invalid(f"there is no such file: {f'do you mean {show_path(whole)}?' if is_short else remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path; a file that shrank since fstat
        raise Invalid(f"cannot be read: {reason(error)}") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn Invalid into a CheckpointError that begins with the file's name."""
    try:
        yield
    except Invalid as error:
        kind = OtherVersion if isinstance(error, _OtherVersion) else CheckpointError
        raise kind(f"{show_path(path)}: {error}") from error


def _misfit(size: int, length: int, first: bytes, kind: Kind) -> str:
    """Say why a file cannot have the header that its first 8 bytes promise.   first: the byte after these, if any."""
    if not size:
        return f"is empty{_then(kind.instead)}"
    if size >= 8 and first in (b"", b"{") and 0 < length <= MAX_HEADER_BYTES:
        return f"is cut short: {size:,} bytes, and its header takes {length:,}{_then(kind.instead)}"
    if first == b"{" and MAX_HEADER_BYTES < length <= size - 8:
        return f"its header takes {length:,} bytes, more than {MAX_HEADER_BYTES:,}{_then(kind.instead)}"
    return f"is not a safetensors file, as a {kind.name} must be{_then(kind.instead)}"


def _weights_in(folder: str | os.PathLike[str]) -> str:
    """Return the advice to give one of the weights files in a folder; "" if it has none."""
    found = sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(SUFFIX) and entry.is_file())
    more = ", ..." if len(found) > _LISTED_FILES else ""
    return f"give one in it: {', '.join(map(show_path, found[:_LISTED_FILES]))}{more}" if found else ""


def _then(remedy: str) -> str:
    return f": {remedy}" if remedy else ""


def _parse_header(raw: bytes, data_size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return the metadata and tensors of a header; these must fill `data_size` bytes without holes or overlaps."""
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
        raise Invalid(f"its tensors take {position:,} bytes, but the file has {data_size:,} for them: copy it again")
    return metadata, entries


def _parse_entry(name: str, entry: object) -> Entry:
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
    return Entry(begin, end, _DTYPES[code], tuple(shape))


def _are_sizes(value: object) -> bool:
    # type(), since True is an int to isinstance.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def write(
    path: str | os.PathLike[str],
    kind: Kind,
    metadata: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all.

    tensors: float32, float64, int32, int64 or uint8, not empty, at most MAX_TENSORS; `write` copies none that is
    C-contiguous.   keep: the name under which the file that was at `path` stays.
    Raises SaveError; ValueError for tensors that the format cannot hold.
    """
    if len(tensors) > MAX_TENSORS:
        raise Invalid(f"{len(tensors):,} tensors, more than {MAX_TENSORS}")
    header: dict[str, Any] = {"__metadata__": {"format": kind.format, "version": kind.version, **metadata}}
    blocks: list[npt.NDArray[np.uint8]] = []
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_CODES:
            raise Invalid(f"{name} has the type {tensor.dtype}, not one of {', '.join(map(str, DTYPE_CODES))}")
        if tensor.size == 0 or tensor.ndim > MAX_NDIM:
            raise Invalid(f"{name} has the shape {list(tensor.shape)}, not up to {MAX_NDIM} sizes above 0")
        end = position + tensor.nbytes
        header[name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
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
