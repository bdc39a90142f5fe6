"""Text files and folders of them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnlm.data.encoding import CorpusError

_CHUNK_BYTES = 1 << 20
_MAX_TOKEN_CHARS = 1 << 22


@dataclass(frozen=True)
class Source:
    """A text that can be read.

    identity: JSON that changes when the text does; None if it is not known.
    open: returns the splits in order, train first, each as pieces of text cut at white space.
    """

    tokenizer: str
    identity: Any
    open: Callable[[], Mapping[str, Iterable[str]]]


def identity(folder: Path, files: Iterable[Path]) -> list[Any]:
    """Return a value that changes when one of these files does."""
    stats = [(path, path.stat()) for path in sorted(files)]
    return [str(folder.resolve())] + [[str(path.relative_to(folder)), s.st_size, s.st_mtime_ns] for path, s in stats]


def text_file(path: Path) -> Source:
    """Open a text file."""
    return Source("plain", identity(path.parent, [path]), lambda: {"train": _read_text(path)})


def folder(path: Path) -> Source:
    """Open the text files of a folder. Raises CorpusError if there are none."""
    files = sorted(file for file in path.glob("*.txt") if file.is_file())
    if not files:
        raise CorpusError(
            f"no .txt files in the folder {str(path)!r}; if it is in the dataset hub's layout, add its config: "
            f"{path}:CONFIG"
        )
    return Source("plain", identity(path, files), lambda: {"train": _read_files(files)})


def _read_files(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        yield from _read_text(path)
        yield "\n"


def _read_text(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file, without a byte order mark, in pieces cut at white space.

    So a line may have any length; only the text between two white spaces is bounded.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    carry = ""  # the text after the last white space
    try:
        with open(path, "rb") as file:
            offset = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
            file.seek(offset)
            while True:
                chunk = file.read(_CHUNK_BYTES)
                pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut
                try:
                    text = carry + decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{str(path)!r} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset "
                        f"{offset - pending + error.start}; convert it, e.g. with iconv -f LATIN1 -t UTF-8"
                    ) from error
                offset += len(chunk)
                cut = 1 + max(text.rfind(" "), text.rfind("\n"), text.rfind("\t"), text.rfind("\r"))
                if not chunk:
                    cut = len(text)
                carry = text[cut:]
                if len(carry) > _MAX_TOKEN_CHARS:
                    raise CorpusError(
                        f"{str(path)!r} has {len(carry):,} characters without white space before byte {offset:,}: "
                        "it does not look like text in words"
                    )
                if cut:
                    yield text[:cut]
                if not chunk:
                    return
    except OSError as error:
        raise CorpusError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
