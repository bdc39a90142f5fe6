"""Text files: compressed or not, in UTF-8 or another encoding that a byte-order mark names, from a disk or a pipe."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import hashlib
import lzma
import os
import shlex
import shutil
import stat
import sys
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rnnlm.data.encoding import CorpusError, cache_folder
from rnnlm.data.wrapping import Wrapping, unwrap, wrapping

_CHUNK_BYTES = 1 << 16
_HEAD_BYTES = 1 << 18  # enough to recognize the encoding and wrapped lines
_MAX_TOKEN_CHARS = 1 << 22

_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# By their first bytes, and who unpacks them.
_OPENERS: dict[bytes, tuple[Callable[[IO[bytes], str], IO[bytes]], str]] = {
    b"\x1f\x8b": (lambda file, name: gzip.GzipFile(fileobj=file), "gzip -dc"),
    b"BZh": (lambda file, name: bz2.BZ2File(file), "bzip2 -dc"),
    b"\xfd7zXZ\0": (lambda file, name: lzma.LZMAFile(file), "xz -dc"),  # noqa: SIM115
    b"PK\x03\x04": (lambda file, name: _open_zip(file, name), "unzip -p"),
    b"PK\x05\x06": (lambda file, name: _open_zip(file, name), "unzip -p"),  # an empty one
}
_FOREIGN = {  # what people mistake for text, and what to do with it
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: uncompress it (zstd -d)",
    b"\x04\x22\x4d\x18": "is compressed by lz4: uncompress it (lz4 -d)",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it (7z x)",
    b"Rar!": "is a rar archive: unpack it (unrar x)",
    b"%PDF": "is a PDF: extract its text (pdftotext)",
    b"PAR1": "is a parquet file: give its folder in the dataset hub's layout, FOLDER:CONFIG",
    b"\x89PNG": "is a PNG image: use a text file",
    b"\xff\xd8\xff": "is a JPEG image: use a text file",
    b"GIF87a": "is a GIF image: use a text file",
    b"GIF89a": "is a GIF image: use a text file",
    b"\x7fELF": "is a program: use a text file",
    b"\xd0\xcf\x11\xe0": "is an office document: save it as plain text",
    b"SQLite format 3\0": "is a database: use a text file",
}
# Of a damaged or shortened file. RuntimeError is zipfile's, for an encrypted archive or a compression that it lacks.
_UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)


class TextFile:
    """One text file. Its first bytes are read at once; the rest is read when asked for.

    name: for messages.   wrapping: how its lines are wrapped; None if they are not.
    size: bytes, compressed if the file is.   position: how many of them were read, while `pieces` is.
    """

    def __init__(self, name: str, opener: Callable[[], IO[bytes]], path: Path | None) -> None:
        """opener: returns the file, at its beginning.   Raises CorpusError."""
        self.name = name
        self._opener, self._path = opener, path
        self._unpack = ""
        self._encoding, self._mark = "utf-8", 0
        self.size = self.position = 0
        with self._opened() as file:
            head = file.read(_HEAD_BYTES)
        for magic, what in _FOREIGN.items():
            if head.startswith(magic):
                raise CorpusError(f"{name!r} {what}")
        if head[257:262] == b"ustar":
            raise CorpusError(f"{name!r} is a tar archive: unpack it (tar xf), and give the folder")
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                self._encoding, self._mark = encoding, len(mark)
                break
        else:
            if unmarked := _utf16_without_mark(head):
                raise CorpusError(
                    f"{name!r} looks like {unmarked} without a byte-order mark: convert it, "
                    f"{self._conversion(unmarked)}"
                )
        self.wrapping: Wrapping | None = wrapping(head[self._mark :].decode(self._encoding, errors="ignore"))

    def digest(self) -> str:
        """Return the SHA-256 of the file's bytes. Raises CorpusError."""
        with self._reading(), contextlib.closing(self._opener()) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces cut at white space, without a byte-order mark. Raises CorpusError.

        So a line may have any length; only the text between two white spaces is bounded. Line ends inside the
        paragraphs of wrapped text are spaces.
        """
        pieces = self._decoded()
        return unwrap(pieces) if self.wrapping else pieces

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self._encoding)()
        carry = ""  # the text after the last white space
        with self._opened() as file:
            offset = len(file.read(self._mark))
            while True:
                chunk = file.read(_CHUNK_BYTES)
                self.position = self._raw.tell()
                pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut
                try:
                    text = carry + decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    raise self._undecodable(error, offset - pending) from error
                offset += len(chunk)
                cut = 1 + max(text.rfind(" "), text.rfind("\n"), text.rfind("\t"), text.rfind("\r"))
                if not chunk:
                    cut = len(text)
                carry = text[cut:]
                if len(carry) > _MAX_TOKEN_CHARS:
                    raise CorpusError(
                        f"{self.name!r} has {len(carry):,} characters without white space before byte {offset:,}: "
                        "it does not look like text in words"
                    )
                if cut:
                    yield text[:cut]
                if not chunk:
                    return

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        """Open the file, and uncompress it if need be."""
        with self._reading(), contextlib.ExitStack() as stack:
            file = stack.enter_context(contextlib.closing(self._opener()))
            magic = file.read(6)
            self.size = file.seek(0, os.SEEK_END)
            file.seek(0)
            self._raw = file
            for start, (opener, program) in _OPENERS.items():
                if magic.startswith(start):
                    self._unpack = program
                    file = stack.enter_context(opener(file, self.name))
                    break
            yield file

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, *_UNPACKING_ERRORS) as error:
            if isinstance(error, _UNPACKING_ERRORS) or (self._unpack and error.errno is None):
                raise CorpusError(f"{self.name!r} cannot be uncompressed ({error}): fetch it again") from error
            raise CorpusError(f"cannot read {self.name!r}: {error.strerror or error}") from error

    def _undecodable(self, error: UnicodeDecodeError, base: int) -> CorpusError:
        """Say which byte is wrong, and which command makes UTF-8 of the file.   base: the offset of error.object."""
        offset = base + error.start
        if not self._mark and (problem := self._binary()):
            damaged = "; if it is a damaged text, fetch it again" if self._has_utf8(offset) else ""
            return CorpusError(f"{self.name!r} {problem}{damaged}")
        encoding = self._encoding.upper()
        where = f"{self.name!r} is not {encoding} text: byte {error.object[error.start]:#04x} at offset {offset:,}; "
        if self._mark or self._has_utf8(offset):
            whole = "UTF-8" if encoding == "UTF-8" else encoding.removesuffix("-LE").removesuffix("-BE")
            return CorpusError(
                f"{where}it is damaged there: fetch it again, or leave out the damage, "
                f"{self._conversion(f'{whole} -c')}"
            )
        western = "CP1252" if self._decodes("cp1252") else "LATIN1"
        return CorpusError(
            f"{where}convert it, {self._conversion(western)}; if it is in another encoding, name that instead "
            "(iconv -l lists them)"
        )

    def _binary(self) -> str:
        """Return why the file is not text; "" if it may be text in an encoding of one byte per character."""
        with self._opened() as file:
            head = file.read(_HEAD_BYTES)
        place = head.find(0)
        if place < 0:
            return ""
        found = f"is not text: it has a NUL byte at offset {place:,}; use a text file"
        for encoding in ("UTF-16LE", "UTF-16BE"):
            with contextlib.suppress(UnicodeDecodeError):
                text = codecs.getincrementaldecoder(encoding)().decode(head)
                if all(char.isprintable() or char.isspace() for char in text):
                    return f"{found}, or if this is {encoding}, convert it, {self._conversion(encoding)}"
        return found

    def _has_utf8(self, size: int) -> bool:
        """Return whether the first `size` bytes, which are UTF-8, have other characters than ASCII's."""
        with self._opened() as file:
            while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
                if not chunk.isascii():
                    return True
                size -= len(chunk)
        return False

    def _decodes(self, encoding: str) -> bool:
        """Return whether the whole file can be read in an encoding of one byte per character."""
        try:
            with self._opened() as file:
                while chunk := file.read(_CHUNK_BYTES):
                    chunk.decode(encoding)
        except UnicodeDecodeError:
            return False
        return True

    def _conversion(self, encoding: str) -> str:
        """Return the command that makes UTF-8 of the file, and what to do with its output, for a message."""
        convert = f"iconv -f {encoding} -t UTF-8"
        if self._path is None:
            return f"... | {convert} | ..., before it comes here"
        old = shlex.quote(str(self._path))
        plain = self._path.with_suffix("") if self._unpack else self._path
        new = plain.with_name(f"{plain.stem}.utf8{plain.suffix}")
        command = f"{self._unpack} {old} | {convert}" if self._unpack else f"{convert} {old}"
        return f"{command} > {shlex.quote(str(new))}, and use {str(new)!r} instead"


def open_path(path: Path) -> TextFile:
    """Open a file, or read a named pipe to its end. Raises CorpusError, OSError (no such file)."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return TextFile(str(path), lambda: open(path, "rb"), path)
    if not stat.S_ISFIFO(mode):
        raise CorpusError(f"{str(path)!r} is neither a file nor a pipe")
    with open(path, "rb") as pipe:
        return _keep(str(path), pipe)


def open_standard_input() -> TextFile:
    """Read standard input to its end. Raises CorpusError."""
    if sys.stdin is None:
        raise CorpusError("there is no standard input to read")
    return _keep("standard input", sys.stdin.buffer)


def _keep(name: str, pipe: IO[bytes]) -> TextFile:
    """Copy what comes from a pipe to a temporary file without a name, since the text is read more than once."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open for as long as the text
        shutil.copyfileobj(pipe, kept, _CHUNK_BYTES)
        kept.flush()
    except OSError as error:
        raise CorpusError(
            f"cannot keep {name} in {str(folder)!r} ({error.strerror or error}): set RNN_CACHE_DIR to a folder with "
            "room"
        ) from error

    def reopen() -> IO[bytes]:
        kept.seek(0)
        return os.fdopen(os.dup(kept.fileno()), "rb")

    weakref.finalize(reopen, kept.close)
    return TextFile(name, reopen, None)


def _open_zip(file: IO[bytes], path: str) -> IO[bytes]:
    """Open the one file of a zip archive. Raises CorpusError if it has several."""
    archive = zipfile.ZipFile(file)
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise CorpusError(f"{path!r} holds {len(names):,} files ({listed}): unpack it (unzip), and give the folder")
    return archive.open(names[0])


def _utf16_without_mark(head: bytes) -> str:
    """Return "UTF-16LE" or "UTF-16BE" if every other byte is mostly zero, as in Western text, else ""."""
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        zeros = head[first::2].count(0)
        if len(head) >= 4 and zeros > 0.7 * (len(head) // 2) and head[1 - first :: 2].count(0) < 0.1 * len(head):
            return name
    return ""
