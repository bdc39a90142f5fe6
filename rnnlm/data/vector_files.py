"""Word vectors in files: read once from front to back, keeping only the rows that are asked for.

The format is recognised by a file's first bytes; the first two may be gzipped:

    word2vec binary   "COUNT SIZE\\n"; then for each word: the word, a space, SIZE little-endian float32, maybe "\\n"
    word2vec text     "COUNT SIZE\\n"; then for each word a line: the word and SIZE numbers, separated by spaces
    gensim's own      what `KeyedVectors.save` or `Word2Vec.save` wrote: see gensim_files.py

gensim would read all of the first two: 3.6 GB for three million words, of which a vocabulary needs some 30,000.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rnnlm.data.gensim_files import VectorsRefused, read_gensim
from rnnlm.errors import UserError

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_GZIP, _PICKLE = b"\x1f\x8b", b"\x80"
_MAX_COUNT, _MAX_SIZE = 1 << 31, 1 << 12  # rows; numbers per row
_MAX_HEADER_BYTES, _MAX_WORD_BYTES, _MAX_NUMBER_BYTES = 64, 1 << 12, 32
_CHUNK_BYTES = 1 << 23


class EmbeddingsError(UserError):
    """Word vectors that cannot be read, or that do not fit the vocabulary."""


def read_vectors(path: Path, words: Sequence[str]) -> tuple[F32, Mask]:
    """Read the vectors of `words`: (len(words), E) float32, zeros where the file has none; and (len(words),) bool.

    If a word occurs twice in the file, its first vector is used, as in gensim. Needs some 30 MB of memory in addition
    to the result.
    Raises EmbeddingsError, naming the file and the place, if the file cannot be read, is cut short or damaged, is in
    another format, names code, or has a number that is not finite in the vector of one of `words`.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
        if magic.startswith(_PICKLE):
            vectors, found = read_gensim(path, words)
        else:
            with gzip.open(path) if magic == _GZIP else open(path, "rb") as file:
                vectors, found = _Word2VecFile(path, file).read(words)
    except OSError as error:
        raise EmbeddingsError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except VectorsRefused as error:
        raise EmbeddingsError(f"{str(path)!r} {error}") from error
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        word = words[int(np.argmin(finite))]
        raise EmbeddingsError(f"{str(path)!r} is damaged: the vector of {word!r} holds a number that is not finite")
    return vectors, found


class _Word2VecFile:
    """One pass over a file in one of word2vec's two formats."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.buffer = b""
        self.position = 0  # in the buffer, of what comes next
        self.base = 0  # of the buffer, in the (uncompressed) file
        self.row, self.count, self.size = 0, 0, 0

    def read(self, words: Sequence[str]) -> tuple[F32, Mask]:
        self.read_header()
        wanted = {word.encode(): i for i, word in enumerate(words)}
        vectors = np.zeros((len(words), self.size), dtype=np.float32)
        found = np.zeros(len(words), dtype=np.bool_)
        next_row, parse = (self.next_line, self.parse_text) if self.is_text() else (self.next_record, self.parse_binary)
        while self.row < self.count:
            self.row += 1
            word, numbers = next_row()
            i = wanted.get(word)
            if i is not None and not found[i]:
                vectors[i] = parse(numbers)
                found[i] = True
        while not self.buffer[self.position :].strip():
            self.position = len(self.buffer)
            if not self.fill():
                return vectors, found
        raise self.damaged("goes on after its last row:")

    def read_header(self) -> None:
        self.fill_to(_MAX_HEADER_BYTES)
        line, _, _ = self.buffer[:_MAX_HEADER_BYTES].partition(b"\n")
        fields = line.split()
        if len(fields) != 2 or not all(field.isdigit() for field in fields):
            raise EmbeddingsError(
                f"{str(self.path)!r} does not begin with word2vec's line COUNT SIZE; it is in another format, or it is "
                "a GloVe file, which lacks that line: add it as the first line"
            )
        self.count, self.size = map(int, fields)
        if not (1 <= self.count <= _MAX_COUNT and 1 <= self.size <= _MAX_SIZE):
            raise EmbeddingsError(
                f"{str(self.path)!r} says that it holds {self.count} vectors of {self.size} numbers; "
                f"1 to {_MAX_COUNT} vectors of 1 to {_MAX_SIZE} numbers can be read"
            )
        self.position = len(line) + 1

    def is_text(self) -> bool:
        """Return whether the first row reads as text, which `SIZE` binary numbers hardly ever do."""
        self.fill_to(self.max_line_bytes)
        line, _, _ = self.buffer[self.position :].partition(b"\n")
        try:
            return self.parse_text(line.rstrip().partition(b" ")[2]).size == self.size
        except EmbeddingsError:
            return False

    @property
    def max_line_bytes(self) -> int:
        return _MAX_WORD_BYTES + self.size * _MAX_NUMBER_BYTES

    def fill(self) -> bool:
        """Drop the used part of the buffer and read on; return False at the end of the file."""
        try:
            chunk = self.file.read(_CHUNK_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.base += len(self.buffer) - self.position  # it was good up to here
            raise self.damaged(f"cannot be uncompressed ({error})") from error
        self.base += self.position
        self.buffer = self.buffer[self.position :] + chunk
        self.position = 0
        return bool(chunk)

    def fill_to(self, size: int) -> None:
        """Have `size` bytes in the buffer, or all that there are."""
        while len(self.buffer) - self.position < size and self.fill():
            pass

    def next_record(self) -> tuple[bytes, bytes]:
        """Return the next row of the binary format: word, numbers."""
        row_bytes = 4 * self.size
        while True:
            start = self.position
            space = self.buffer.find(b" ", start, start + _MAX_WORD_BYTES)
            end = space + 1 + row_bytes
            if space >= 0 and end <= len(self.buffer):
                self.position = end
                return self.buffer[start:space].lstrip(b"\n"), self.buffer[space + 1 : end]
            if space < 0 and len(self.buffer) - start >= _MAX_WORD_BYTES:
                raise self.damaged("is damaged: no word begins")
            if not self.fill():
                raise self.damaged("is cut short")

    def parse_binary(self, numbers: bytes) -> F32:
        return np.frombuffer(numbers, dtype="<f4")

    def next_line(self) -> tuple[bytes, bytes]:
        """Return the next row of the text format: word, numbers."""
        end = self.buffer.find(b"\n", self.position)
        while end < 0 and len(self.buffer) - self.position < self.max_line_bytes and self.fill():
            end = self.buffer.find(b"\n")
        if end < 0:
            end = len(self.buffer)  # the last line may lack its line feed
        word, _, numbers = self.buffer[self.position : end].rstrip().partition(b" ")
        if numbers.count(b" ") != self.size - 1 or not numbers:
            is_cut = end == len(self.buffer) and not self.fill()
            raise self.damaged("is cut short" if is_cut else f"is damaged: {self.size} numbers expected")
        self.position = end + 1
        return word, numbers

    def parse_text(self, numbers: bytes) -> F32:
        try:
            values = [float(number) for number in numbers.split(b" ")]
        except ValueError:
            raise self.damaged("is damaged: not a number") from None
        with np.errstate(over="ignore"):  # too large for float32 is not finite, and read_vectors says so
            return np.array(values, dtype=np.float32)

    def damaged(self, what: str) -> EmbeddingsError:
        place = f"in row {self.row:,} of {self.count:,}, at byte {self.base + self.position:,}"
        return EmbeddingsError(f"{str(self.path)!r} {what} {place}; fetch it again, or run with --embeddings train")
