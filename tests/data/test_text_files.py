"""Text files as people keep them: compressed, in other encodings, from pipes, wrapped."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import corpora
import pytest
from conftest import ROOT
from corpora import words_of

from rnnlm.data import text_files
from rnnlm.data.corpus import CorpusError, load_corpus
from rnnlm.data.wrapping import unwrap, wrapping

write = corpora.write  # a fixture

TEXT = "The “Größe” of it. Ça va bien?\nLast line"
TOKENS = "The Größe of it | Ça va bien |"


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ---- Compression -----------------------------------------------------------------------------------------------------

PACKED = {
    "gzip": gzip.compress(TEXT.encode()),
    "two gzip members": gzip.compress(TEXT[:20].encode()) + gzip.compress(TEXT[20:].encode()),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "zip": zipped({"folder/text.txt": TEXT.encode()}),
    "gzipped UTF-16": gzip.compress(TEXT.encode("utf-16")),
}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz", "noending"])
def test_compressed_texts_are_known_by_what_they_hold(write, packed: bytes, name: str) -> None:
    assert words_of(load_corpus(write(packed, name)), "train") == TOKENS


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zip"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive_is_one_line(write, kind: str, damage: str) -> None:
    text = "".join(random.Random(1).choices("abcdefgh. ", k=20_000)).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "zip": lambda content: zipped({"text": content}),
    }
    whole = pack[kind](text)
    middle = len(whole) // 2
    content = whole[:middle] if damage == "cut" else whole[:middle] + b"\xff\x00\xff\x00\xff" + whole[middle + 5 :]
    with pytest.raises(CorpusError, match=r"text\.txt' cannot be uncompressed \(.+\): fetch it again") as caught:
        load_corpus(write(content))
    assert "\n" not in str(caught.value)


def test_archives_of_several_files_are_refused_with_their_names(write) -> None:
    with pytest.raises(CorpusError, match=r"holds 2 files \(a.txt, b.txt\): unpack it"):
        load_corpus(write(zipped({"a.txt": b"a b. c d.", "b.txt": b"e f."})))
    with pytest.raises(CorpusError, match=r"holds 0 files"):
        load_corpus(write(zipped({})))


def test_an_archive_from_a_pipe_is_named_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zipped({"a.txt": b"a b. c d.", "b.txt": b"e f."})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    with pytest.raises(CorpusError, match=r"^'standard input' holds 2 files \(a.txt, b.txt\): unpack it"):
        load_corpus("-")


def test_a_zip_from_a_mac_holds_one_file(write) -> None:
    packed = zipped({"text.txt": TEXT.encode(), "__MACOSX/._text.txt": b"\0\1"})
    assert words_of(load_corpus(write(packed)), "train") == TOKENS


def test_a_tar_archive_is_refused(write, tmp_path: Path) -> None:
    plain = write("a b.")
    for mode, name in (("w", "a.tar"), ("w:gz", "a.tar.gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(plain)
        with pytest.raises(CorpusError, match="is a tar archive: unpack it"):
            load_corpus(str(tmp_path / name))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x28\xb5\x2f\xfd", r"is compressed by zstd: uncompress it \(zstd -d\)"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
        (b"%PDF-1.7", "is a PDF: extract its text"),
        (b"PAR1", "is a parquet file: give its folder"),
        (b"\x89PNG\r\n\x1a\n", r"text\.txt' is a PNG image: use a text file$"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG image: use a text file$"),
        (b"GIF89a", "is a GIF image: use a text file$"),
        (b"\x7fELF", "is a program: use a text file$"),
        (b"\xd0\xcf\x11\xe0", "is an office document: save it as plain text"),
        (b"SQLite format 3\0", "is a database: use a text file$"),
        (b"data \0\x01\xff\xd8\xff\xdf", r"text\.txt' is not text: it has a NUL byte at offset 5; use a text file$"),
        (
            "é ü \0\1".encode() + b"\xff\xdf" * 9,
            "at offset 6; use a text file; if it is a damaged text, fetch it again$",
        ),
    ],
)
def test_what_is_no_text_says_what_to_do(write, start: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(write(start + bytes(100)))


def test_text_may_begin_with_the_name_of_an_image_format(write) -> None:
    assert words_of(load_corpus(write("GIF89 is a format. It is old.")), "train") == "is a format |"


# ---- Encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_byte_order_marks(write, monkeypatch: pytest.MonkeyPatch, encoding: str, chunk: int) -> None:
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", chunk)
    assert words_of(load_corpus(write(TEXT.encode(encoding))), "train") == TOKENS


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_orders_of_utf_16(write, order: str) -> None:
    content = ("\N{BOM}" + TEXT).encode(f"utf-16-{order}")
    assert words_of(load_corpus(write(content)), "train") == TOKENS


def advice(path: str) -> str:
    """The command that the refusal of a file names."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(path)
    message = str(caught.value)
    assert "\n" not in message
    start = min(message.index(word) for word in ("iconv", "gzip", "unzip") if word in message.partition(", ")[2])
    return message[start : message.index(", and use ")]


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize(
    ("encoding", "pack", "name"),
    [
        ("cp1252", bytes, "text.txt"),
        ("latin-1", bytes, "a name's.txt"),
        ("utf-16-le", bytes, "text.txt"),
        ("utf-16-be", bytes, "text"),
        ("utf-16-be", lambda content: content + " где дом и".encode("utf-16-be") * 99, "text.txt"),
        ("cp1252", gzip.compress, "text.txt.gz"),
        ("utf-16-le", lambda content: zipped({"text": content}), "text.zip"),
    ],
)
def test_the_advice_for_another_encoding_works(
    write, tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes], name: str
) -> None:
    text = "The café of it. Ça va bien?\nLast line" + ("\x81" if encoding == "latin-1" else "")
    command = advice(write(pack(text.encode(encoding)), name))
    subprocess.run(["sh", "-c", command], check=True)
    (new,) = tmp_path.glob("*.utf8*")
    assert words_of(load_corpus(str(new)), "train") == "The café of it | Ça va bien |"


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("damage", [b"\xff", b"\xc3"], ids=["a byte", "the end is cut off"])
def test_the_advice_for_damaged_utf_8_keeps_the_rest(write, tmp_path: Path, damage: bytes) -> None:
    """Read as Windows-1252 it would load, and be nonsense."""
    command = advice(write("Ça va bien? The café. End".encode() + damage))
    assert "iconv -f UTF-8 -c" in command
    subprocess.run(["sh", "-c", command], check=False)  # iconv says that it left something out
    assert words_of(load_corpus(str(tmp_path / "text.utf8.txt")), "train") == "Ça va bien | The café |"


def test_a_damaged_utf_16_file_names_the_place(write) -> None:
    with pytest.raises(
        CorpusError, match=r"is not UTF-16-LE text: byte 0x\w\w at offset 22; it is damaged there: fetch it again"
    ):
        load_corpus(write("\N{BOM}a b. c d. ".encode("utf-16-le") + b"\x00\xdc\x00\x00"))


def test_zeros_do_not_make_utf_16(write) -> None:
    assert words_of(load_corpus(write(b"a\0 b\0. c d. e f.")), "train") == "| c d |"


# ---- Pipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
@pytest.mark.parametrize(
    "content", [TEXT.encode(), gzip.compress(TEXT.encode()), TEXT.encode("utf-16")], ids=["plain", "gzip", "utf-16"]
)
def test_a_named_pipe_is_read_once(tmp_path: Path, content: bytes) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[content], daemon=True)
    writer.start()
    assert words_of(load_corpus(str(pipe)), "train") == TOKENS
    writer.join()


def test_standard_input(tmp_path: Path) -> None:
    code = (
        "from rnnlm.data.corpus import load_corpus; c = load_corpus('-'); "
        "print(*(c.vocabulary.words[i] for i in c.train), *c.report(), sep='|')"
    )
    environment = os.environ | {"RNN_CACHE_DIR": str(tmp_path), "PYTHONUTF8": "1"}
    for text in (TEXT, TEXT, "Another text. And more."):  # the second time from the cache, the third not
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            input=text.encode(),
            capture_output=True,
            check=True,
            env=environment,
        )
        assert done.stdout.decode().startswith("The|Größe|of" if text == TEXT else "Another|text|<EOS>")
    assert [path.name.startswith("tokens-") for path in tmp_path.iterdir()] == [True]  # and no copy of the input


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
def test_a_device_is_refused() -> None:
    with pytest.raises(CorpusError, match="'/dev/zero' is neither a file nor a pipe"):
        load_corpus("/dev/zero")


def test_a_pipe_that_does_not_fit_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b.")))
    with pytest.raises(CorpusError, match=r"cannot keep standard input in .*: set RNN_CACHE_DIR to a folder with room"):
        load_corpus("-")


# ---- Wrapped prose ---------------------------------------------------------------------------------------------------

PROSE = """It was the best of times, it was the worst of times, it was the age
of wisdom, it was the age of foolishness, it was the epoch of belief, it
was the epoch of incredulity. It was the season of Light; it was the
season of Darkness, it was the spring of hope. It was the winter of
despair, we had everything before us, we had nothing before us, we were
all going direct to Heaven

There were a king with a large jaw and a queen with a plain face, on the
throne of England; there were a king with a large jaw and a queen with a
fair face, on the throne of France.
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("chunk", [1, 16, 1 << 20])
def test_line_ends_inside_paragraphs_end_no_sentence(
    write, monkeypatch: pytest.MonkeyPatch, newline: str, chunk: int
) -> None:
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", chunk)
    found = load_corpus(write(PROSE.replace("\n", newline)))
    sentences = (words_of(found, "train") + " " + words_of(found, "validation")).split(" |")[:-1]
    assert len(sentences) == 4 and sentences[2].endswith("direct to Heaven")  # ended by the blank line
    assert "hard-wrapped at 72 columns (100% of the lines" in found.report()[-1]


def test_wrapped_text_is_reported_whatever_the_tokenizer(write) -> None:
    found = load_corpus(write(PROSE), tokenizer="plain")
    assert found.stats["train"].tokens + found.stats["validation"].tokens == len(PROSE.split()) + 4


@pytest.mark.parametrize(
    "text",
    [
        "The king sat down here in the hall of the palace today.\n" * 50,  # one sentence per line
        "".join("word " * n + "\n" for n in (3, 20, 9, 14, 5, 17, 11, 8, 19, 4)),  # without punctuation
        "short line\n" * 50,
        "word " * 10_000,
        "x" * 300 + "\n" + "y" * 300 + "\n",
        "The first line of a text that was cut here, as long\nas the second, and no more\n",
        "",
    ],
)
def test_what_is_not_wrapped(text: str) -> None:
    assert wrapping(text) is None


def test_licences_are_wrapped() -> None:
    path = Path("/usr/share/common-licenses/GPL-3")
    if not path.exists():
        pytest.skip("needs Debian's licences")
    found = wrapping(path.read_text())
    assert found and 70 <= found.width <= 78 and found.long > 0.95


def test_unwrapping_keeps_every_word_and_paragraph() -> None:
    whole = "".join(unwrap([PROSE]))
    assert whole.split() == PROSE.split() and whole.count("\n") == 1
    cuts = [i + 1 for i, char in enumerate(PROSE) if char.isspace()]
    assert "".join(unwrap(PROSE[a:b] for a, b in zip([0, *cuts], [*cuts, len(PROSE)], strict=True))) == whole


# ---- What was dropped ------------------------------------------------------------------------------------------------


def test_the_report_counts_the_words_of_all_splits(write) -> None:
    found = load_corpus(write("In 1945 the 3rd king's men (1945) sat. In 1946. The end."))
    assert (found.words.kept, found.words.dropped) == (8, 4)
    assert found.words.most_dropped == (("1945", 2), ("3rd", 1), ("1946", 1))
    assert "12 words read, 8 kept, 4 dropped, most often 1945 (2), 3rd (1), 1946 (1)" in found.report()
    warning = found.warning()
    assert warning and warning.startswith("33.3% of the words of ") and "with digits or symbols" in warning


def test_few_dropped_words_are_no_warning(write) -> None:
    assert load_corpus(write("word " * 94 + "5 " * 5 + ". end.")).warning() is None  # 5% of 100 words
    assert load_corpus(write("word " * 93 + "5 " * 5 + ". end.")).warning()


def test_the_warning_for_another_script_names_the_remedy(write) -> None:
    found = load_corpus(write("Привет мир. Hello. Как дела. End."), tokenizer="plain")
    warning = found.warning()
    assert warning and "--tokenizer unicode" in warning and "Привет (1)" in warning


def test_the_warning_names_no_remedy_that_would_not_help(write) -> None:
    found = load_corpus(write("The <unk> of 1945 is <unk> . naïve end ."), tokenizer="wikitext")
    warning = found.warning()
    assert warning and warning.endswith("only words of the letters A to Z are kept")


def test_the_counts_of_dropped_words_are_bounded(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnlm.data import encoding

    monkeypatch.setattr(encoding, "_MAX_DROPPED_TYPES", 3)
    found = load_corpus(write(" ".join(f"a {i}" for i in range(9)) + " 1 1. b."))
    assert found.words.dropped == 11 and found.words.most_dropped == (("1", 3), ("0", 1), ("2", 1))


def test_dropped_words_are_counted_over_all_blocks(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnlm.data import encoding

    monkeypatch.setattr(encoding, "_BLOCK", 3)
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 8)
    found = load_corpus(write("a 1 b 22. " * 20 + "c 1."))
    assert found.words.most_dropped == (("1", 21), ("22", 20)) and found.words.kept == 41
