"""Word vectors in files: read once from front to back, keeping only the rows that are asked for.

The format is recognized by a file's first bytes; the first three may be gzipped, or the only file of a zip archive:

    word2vec binary   "COUNT SIZE\\n"; then for each word: the word, a space, SIZE little-endian float32, maybe "\\n".
                      A word cannot contain spaces: the numbers begin after the first.
    word2vec text     "COUNT SIZE\\n"; then for each word a line: the word and SIZE numbers, separated by spaces.
                      fastText's .vec files are such. A word may contain spaces. COUNT may be wrong by one row.
    GloVe             the same lines without the first one
    gensim's own      what `KeyedVectors.save` or `Word2Vec.save` wrote: see gensim_files.py

gensim would read all of the first three: 3.6 GB for three million words, of which a vocabulary needs some 30,000.
"""

import gzip
import logging
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from rnnlm.arrays import F32, Mask
from rnnlm.data.gensim_files import VectorsRefused, read_gensim
from rnnlm.errors import UserError, counted, shortened
from rnnlm.progress import progress

log = logging.getLogger(__name__)

_GZIP, _PICKLE, _ZIP = b"\x1f\x8b", b"\x80", b"PK"
_MAX_COUNT, _MAX_SIZE = 1 << 31, 1 << 12  # rows; numbers per row
_MAX_HEADER_BYTES, _MAX_WORD_BYTES, _MAX_NUMBER_BYTES = 64, 1 << 12, 32
_SHOWN_ROWS = 1000  # are read between two drawings of the bar
_CHUNK_BYTES = 1 << 23
_JUDGED_SIZE = 8  # fewer arbitrary numbers too often look like those of a word vector
_NOT_ASCII_TEXT = re.compile(rb"[^!-~]").search


class EmbeddingsError(UserError):
    """Word vectors that cannot be read, or that do not fit the vocabulary."""


def read_vectors(path: Path, words: Sequence[str], size: int | None = None) -> tuple[F32, Mask]:
    """Read the vectors of `words`: (len(words), E) float32, zeros where the file has none; and (len(words),) bool.

    size: what E must be; None: whatever the file has.

    If a word occurs twice in the file, its first vector is used, as in gensim. Needs some 30 MB of memory in addition
    to the result.
    Raises EmbeddingsError, naming the file and the place, if the file cannot be read, is cut short or damaged, is in
    another format, names code, has vectors of another size, or has a number that is not finite in the vector of one
    of `words`.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
        if magic.startswith(_PICKLE):
            vectors, found = read_gensim(path, words)
            check_size(str(path), vectors.shape[1], size)
        else:
            with _open(path, magic) as file:
                vectors, found = _Word2VecFile(path, file).read(words, size)
    except OSError as error:
        raise EmbeddingsError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except VectorsRefused as error:
        raise EmbeddingsError(f"{str(path)!r} {error}") from error
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        word = words[int(np.argmin(finite))]
        raise EmbeddingsError(
            f"{str(path)!r} is damaged: the vector of {shortened(word)!r} holds a number that is not finite"
        )
    return vectors, found


def check_size(name: str, size: int, wanted: int | None) -> None:
    """Raise EmbeddingsError unless the vectors of `name` have the size that is wanted (None: any)."""
    if wanted is not None and size != wanted:
        raise EmbeddingsError(f"{name!r} holds vectors of {size:,}, not {wanted:,}: leave out --embedding-size")


def _open(path: Path, magic: bytes) -> IO[bytes]:
    if magic == _GZIP:
        return gzip.open(path)
    if magic != _ZIP:
        return open(path, "rb")
    try:
        archive = zipfile.ZipFile(path)
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        names = [name for name in names if not name.startswith("__MACOSX/")]
        if len(names) == 1:
            return archive.open(names[0])
    except (zipfile.BadZipFile, RuntimeError) as error:
        # Damaged; or, a RuntimeError, compressed in a way that zipfile does not know, or encrypted.
        raise EmbeddingsError(f"{str(path)!r} cannot be unpacked ({error}); fetch it again") from error
    archive.close()
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise EmbeddingsError(f"{str(path)!r} holds {len(names):,} files ({listed}): unpack the one that you want")


class _Word2VecFile:
    """One pass over a file in one of word2vec's two formats, or GloVe's.   count: None without a header."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        self.buffer = b""
        self.position = 0  # in the buffer, of what comes next
        self.base = 0  # of the buffer, in the (uncompressed) file
        self.row, self.size = 0, 0
        self.count: int | None = 0
        self.last = b"", b""  # the row before, in the binary format: word, numbers
        self.is_odd = False  # whether these are no numbers of a word vector

    def read(self, words: Sequence[str], size: int | None) -> tuple[F32, Mask]:
        self.read_header()
        check_size(str(self.path), self.size, size)
        wanted = {word.encode(): i for i, word in enumerate(words)}
        vectors = np.zeros((len(words), self.size), dtype=np.float32)
        found = np.zeros(len(words), dtype=np.bool_)
        is_text = self.count is None or self.is_text()
        next_row, parse = (self.next_line, self.parse_text) if is_text else (self.next_record, self.parse_binary)
        between = b"\r\n" if is_text else b"\n"  # rows; a binary file's word may begin with a carriage return
        slack = 1 if is_text else 0  # whoever wrote the header may have counted it too, or not the last line
        with progress("reading vectors", self.count or 0, "rows") as shown:
            while self.count is None or self.row < self.count + slack:
                if (self.count is None or self.row >= self.count - 1) and not self.has_more(between):
                    break
                self.row += 1
                word, numbers = next_row()
                i = wanted.get(word)
                if i is not None and not found[i]:
                    vectors[i] = parse(numbers)
                    found[i] = True
                if self.row % _SHOWN_ROWS == 0:
                    shown.advance(_SHOWN_ROWS)
        if self.has_more():
            raise self.damaged("goes on after its last row:")
        if self.count is not None and self.row + slack < self.count:
            self.row += 1
            raise self.damaged("is cut short")
        if self.count not in (None, self.row):
            log.warning(
                "%s: its first line promises %s, and it has %s",
                self.path,
                counted(self.count, "vector"),
                f"{self.row:,}",
            )
        return vectors, found

    def has_more(self, skipped: bytes = b"\r\n") -> bool:
        """Skip the bytes in `skipped`; return False at the end of the file."""
        while self.position >= len(self.buffer) or self.buffer[self.position] in skipped:
            if self.position < len(self.buffer):
                self.position += 1
            elif not self.fill():
                return False
        return True

    def read_header(self) -> None:
        self.fill_to(_MAX_HEADER_BYTES)
        if not self.buffer:
            raise EmbeddingsError(f"{str(self.path)!r} is empty: name another file, or run with --embeddings train")
        line, _, _ = self.buffer[:_MAX_HEADER_BYTES].partition(b"\n")
        fields = line.split()
        if len(fields) != 2 or not all(field.isdigit() for field in fields):
            self.count, self.size = None, self.first_line_size()
            return
        self.count, self.size = map(int, fields)
        if not (1 <= self.count <= _MAX_COUNT and 1 <= self.size <= _MAX_SIZE):
            raise EmbeddingsError(
                f"{str(self.path)!r} says that it holds {self.count:,} vectors of {self.size:,} numbers; "
                f"1 to {_MAX_COUNT:,} vectors of 1 to {_MAX_SIZE:,} numbers can be read"
            )
        self.position = len(line) + 1

    def first_line_size(self) -> int:
        """Return how many numbers follow the first word of a file without a header. Raises EmbeddingsError."""
        self.fill_to(_MAX_WORD_BYTES + _MAX_SIZE * _MAX_NUMBER_BYTES)
        numbers = self.buffer.partition(b"\n")[0].rstrip().split(b" ")[1:]
        if not 2 <= len(numbers) <= _MAX_SIZE or not all(map(_is_number, numbers)):
            raise EmbeddingsError(
                f"{str(self.path)!r} begins neither with word2vec's line COUNT SIZE nor, as GloVe's files do, with a "
                "word and its numbers: it is in another format"
            )
        return len(numbers)

    def is_text(self) -> bool:
        """Return whether the first row reads as text, which `SIZE` binary numbers hardly ever do."""
        self.fill_to(self.max_line_bytes)
        fields = self.buffer[self.position :].partition(b"\n")[0].rstrip().rsplit(b" ", self.size)
        return len(fields) == self.size + 1 and all(map(_is_number, fields[1:]))

    @property
    def max_line_bytes(self) -> int:
        return _MAX_WORD_BYTES + self.size * _MAX_NUMBER_BYTES

    def fill(self) -> bool:
        """Drop the used part of the buffer and read on; return False at the end of the file."""
        try:
            chunk = self.file.read(_CHUNK_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
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
                word, numbers = self.buffer[start:space].lstrip(b"\n"), self.buffer[space + 1 : end]
                if self.is_odd or (_NOT_ASCII_TEXT(word) and not _is_text(word)):
                    self.check_last()
                self.position, self.last, self.is_odd = end, (word, numbers), False
                return word, numbers
            if space < 0 and len(self.buffer) - start >= _MAX_WORD_BYTES:
                raise self.damaged("is damaged: no word begins")
            if not self.fill():
                raise self.damaged("is cut short")

    def check_last(self) -> None:
        """Raise EmbeddingsError if the word of the row before contains a space.

        The numbers then begin after a later space. Those that were read include letters of the word, so some of them
        are of absurd sizes, and the next word begins with the bytes that were left over. A word that is no text proves
        nothing by itself, as word2vec.c cuts long words within a character: so the numbers after the later space must
        be plausible.
        """
        word, numbers = self.last
        if self.size < _JUDGED_SIZE or _is_plausible(numbers):
            return
        row = numbers + self.buffer[self.position : self.position + _MAX_WORD_BYTES]
        space = row.find(b" ", 0, _MAX_WORD_BYTES)
        while space >= 0 and _is_text(row[:space]):
            if _is_plausible(row[space + 1 : space + 1 + len(numbers)]):
                shown = (word + b" " + row[:space]).decode(errors="replace")
                raise EmbeddingsError(
                    f"{str(self.path)!r} cannot be read in row {self.row - 1:,} of {self.count:,}: the word {shown!r} "
                    "contains a space, after which word2vec's binary format has numbers; save the vectors in the text "
                    "format, or run with --embeddings train"
                )
            space = row.find(b" ", space + 1, _MAX_WORD_BYTES)

    def parse_binary(self, numbers: bytes) -> F32:
        self.is_odd = not _is_plausible(numbers)
        return np.frombuffer(numbers, dtype="<f4")

    def next_line(self) -> tuple[bytes, bytes]:
        """Return the next row of the text format: word, numbers."""
        end = self.buffer.find(b"\n", self.position)
        while end < 0 and len(self.buffer) - self.position < self.max_line_bytes and self.fill():
            end = self.buffer.find(b"\n")
        if end < 0:
            end = len(self.buffer)  # the last line may lack its line feed
        word, _, numbers = self.buffer[self.position : end].rstrip().partition(b" ")
        spaces = numbers.count(b" ")
        if spaces != self.size - 1 or not numbers:
            *several, numbers = numbers.split(b" ", max(spaces - self.size + 1, 0))
            if not several or _is_number(several[-1]):
                is_cut = end == len(self.buffer) and not self.fill()
                raise self.damaged("is cut short" if is_cut else f"is damaged: {self.size:,} numbers expected")
            word = b" ".join([word, *several])  # a word with spaces in it
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
        of = "" if self.count is None else f" of {self.count:,}"
        place = f"in row {self.row:,}{of}, at byte {self.base + self.position:,}"
        return EmbeddingsError(f"{str(self.path)!r} {what} {place}; fetch it again, or run with --embeddings train")


def _is_text(word: bytes) -> bool:
    try:
        return word.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _is_plausible(numbers: bytes) -> bool:
    """Return whether these float32 are of sizes that word vectors have."""
    if len(numbers) % 4:
        return False
    sizes = np.abs(np.frombuffer(numbers, dtype="<f4"))
    return bool(((sizes == 0.0) | ((sizes > 1e-12) & (sizes < 1e9))).all())


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
