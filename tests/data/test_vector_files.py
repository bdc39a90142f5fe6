"""Vectors files: the same rows as gensim reads, only the requested ones, and everything that can be wrong."""

from __future__ import annotations

import gzip
import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from unittest.mock import patch

import gensim
import numpy as np
import pytest
from gensim.models import KeyedVectors, Word2Vec
from hypothesis import example, given
from hypothesis import strategies as st

from rnnlm.data import vector_files
from rnnlm.data.vector_files import EmbeddingsError, read_vectors

GENSIM_DATA = Path(gensim.__file__).parent / "test" / "test_data"
WORDS = ["the", "king", "Größe", "日本", "a", "</s>", "New_York"]


def keyed(words: list[str], size: int = 5, seed: int = 0) -> KeyedVectors:
    vectors = KeyedVectors(size)
    vectors.add_vectors(words, np.random.default_rng(seed).standard_normal((len(words), size)).astype(np.float32))
    return vectors


def binary(rows: list[tuple[bytes, list[float]]], count: int | None = None, newline: bytes = b"") -> bytes:
    size = len(rows[0][1])
    body = b"".join(word + b" " + np.array(numbers, dtype="<f4").tobytes() + newline for word, numbers in rows)
    return f"{len(rows) if count is None else count} {size}\n".encode() + body


@pytest.fixture
def file(tmp_path: Path):
    def write(content: bytes, name: str = "vectors.bin") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


# ---- What gensim wrote -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["v.bin", "v.txt", "v.bin.gz", "v.txt.gz", "v.kv", "v.large.kv", "v.model", "no-suffix"]
)
def test_the_rows_are_those_that_gensim_wrote(tmp_path: Path, name: str) -> None:
    written, path = keyed(WORDS), tmp_path / name
    if name.endswith("kv"):
        written.save(str(path), sep_limit=0 if "large" in name else 10**9)  # with and without separate files for arrays
    elif name.endswith("model"):
        model = Word2Vec([WORDS], vector_size=5, min_count=1, workers=1)
        model.save(str(path))
        written = model.wv
    else:
        written.save_word2vec_format(str(path), binary="txt" not in name)
    asked = ["king", "queen", "日本", "the", "Größe"]
    vectors, found = read_vectors(path, asked)
    assert found.tolist() == [True, False, True, True, True]
    assert vectors.dtype == np.float32 and vectors.flags.c_contiguous and vectors.flags.writeable
    assert not vectors[1].any()
    for i in (0, 2, 3, 4):
        np.testing.assert_array_equal(vectors[i], written[asked[i]])


@pytest.mark.parametrize(
    ("name", "is_binary"),
    [
        ("euclidean_vectors.bin", True),
        ("high_precision.kv.bin", True),
        ("high_precision.kv.txt", False),
        ("lee_fasttext.vec", False),
        ("crime-and-punishment.vec", False),
        ("EN.1-10.cbow1_wind5_hs0_neg10_size300_smpl1e-05.txt", False),
    ],
)
def test_the_files_that_gensim_tests_itself_with(name: str, is_binary: bool) -> None:
    path = GENSIM_DATA / name
    if not path.is_file():
        pytest.skip(f"this gensim does not ship {name}")
    want = KeyedVectors.load_word2vec_format(str(path), binary=is_binary)
    vectors, found = read_vectors(path, [*want.index_to_key, "no such word"])
    assert found.tolist() == [True] * len(want) + [False]
    np.testing.assert_array_equal(vectors[:-1], want.vectors)


def test_gensims_own_file_of_glove() -> None:
    lines = [line.split(" ") for line in (GENSIM_DATA / "test_glove.txt").read_text("utf-8").splitlines()]
    vectors, found = read_vectors(GENSIM_DATA / "test_glove.txt", [line[0] for line in lines])
    assert found.all()
    np.testing.assert_array_equal(vectors, np.array([line[1:] for line in lines], dtype=np.float64).astype(np.float32))


@example(words=["\r"], size=1, newline=b"", chunk=1, seed=0)
@given(
    words=st.lists(st.text(st.characters(exclude_characters=" \n", exclude_categories=["Cs"]), min_size=1), min_size=1),
    size=st.integers(1, 12),
    newline=st.sampled_from([b"", b"\n"]),  # as gensim and as the original word2vec.c
    chunk=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_any_words_sizes_and_chunks(words: list[str], size: int, newline: bytes, chunk: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 2**32, (len(words), size), dtype=np.uint32).view(np.float32)
    numbers[~np.isfinite(numbers)] = 1.0  # numbers may contain any byte, including spaces and line feeds
    content = binary([(word.encode(), row) for word, row in zip(words, numbers.tolist(), strict=True)], newline=newline)
    asked = list(dict.fromkeys(words[::2]))
    with patch.object(vector_files, "_CHUNK_BYTES", chunk):
        reader = vector_files._Word2VecFile(Path("x"), io.BytesIO(content))
        # A binary row can happen to be readable as text, and hypothesis finds such rows.
        with patch.object(reader, "is_text", lambda: False):
            vectors, found = reader.read(asked, size)
    assert found.all()
    np.testing.assert_array_equal(vectors, numbers[[words.index(word) for word in asked]])


@pytest.mark.parametrize("chunk", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize(
    "end", ["\n", " \n", "\r\n", "\n\n", ""], ids=["gensim", "word2vec.c", "CRLF", "blank", "none"]
)
def test_text_files_in_chunks(file, monkeypatch: pytest.MonkeyPatch, chunk: int, end: str) -> None:
    between = end if end.strip(" \r") == "\n" else "\n"
    path = file(("3 3\n" + between.join(["the 0.5 -1e-3 3", "king 1 2 3", "a 4 5 6"]) + end).encode())
    monkeypatch.setattr(vector_files, "_CHUNK_BYTES", chunk)
    vectors, found = read_vectors(path, ["a", "the", "b"])
    assert found.tolist() == [True, True, False]
    assert vectors.tolist() == [[4, 5, 6], [0.5, np.float32(-1e-3), 3], [0, 0, 0]]


def test_the_first_vector_of_a_repeated_word_is_used(file) -> None:
    vectors, found = read_vectors(file(binary([(b"a", [1, 2]), (b"b", [3, 4]), (b"a", [5, 6])])), ["a"])
    assert (vectors.tolist(), found.tolist()) == ([[1, 2]], [True])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_only_the_rows_asked_for_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(vector_files, "_CHUNK_BYTES", 1 << 18)
    path = tmp_path / f"large.bin{suffix}"
    rows, size = 20_000, 300
    with gzip.open(path, "wb", compresslevel=1) if suffix else path.open("wb") as out:
        out.write(f"{rows} {size}\n".encode())
        for i in range(rows):
            out.write(f"word{i} ".encode() + np.full(size, i, dtype="<f4").tobytes())
    tracemalloc.start()
    vectors, found = read_vectors(path, [f"word{i}" for i in range(0, rows, 100)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.all() and (vectors[:, 0] == np.arange(0, rows, 100)).all()
    assert peak < 2_000_000  # of 24 MB, of which 0.24 MB are requested


# ---- What cannot be read ---------------------------------------------------------------------------------------------

ROWS = [(b"the", [1.0, 2.0, 3.0]), (b"king", [4.0, 5.0, 6.0]), (b"a", [7.0, 8.0, 9.0])]
BINARY, TEXT = binary(ROWS), b"3 3\nthe 1 2 3\nking 4 5 6\na 7 8 9\n"


def refused(path: Path, message: str) -> None:
    with pytest.raises(EmbeddingsError, match=message) as caught:
        read_vectors(path, ["the", "a"])
    text = str(caught.value)
    assert repr(str(path)) in text and "\n" not in text


@pytest.mark.parametrize("kept", range(4, len(BINARY)))
def test_a_binary_file_cut_anywhere(file, kept: int) -> None:
    refused(file(BINARY[:kept]), rf"is cut short in row {1 + (kept >= 20) + (kept >= 37)} of 3, at byte")


def test_a_cut_file_says_where(file) -> None:
    refused(file(BINARY[:30]), "is cut short in row 2 of 3, at byte 20; fetch it again, or run with --embeddings train")


@pytest.mark.parametrize("kept", [4, 9, 10, 13, 14, 15, 26, 29])
def test_a_text_file_cut_between_its_numbers(file, kept: int) -> None:
    refused(file(TEXT[:kept]), "is cut short in row [123] of 3, at byte")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "vectors.bin' is empty: name another file, or run with --embeddings train"),
        (gzip.compress(b"", mtime=0), "vectors.bin' is empty: name another file"),
        (b"\n", "begins neither with word2vec's line COUNT SIZE nor"),
        (b"the king and queen\n", "COUNT SIZE nor, as GloVe's files do, with a word and its numbers"),
        (b"the 1 2 3\nking 4 5\na 7 8 9\n", "is damaged: 3 numbers expected in row 2, at byte 10"),
        (b"the 1 2 3\nking 4 5", "is cut short in row 2, at byte 10"),
        (b"the 1 2 3\nking 4 5 6 7\n", "is damaged: 3 numbers expected in row 2"),
        (b"PAR1" + bytes(100), "COUNT SIZE"),
        (b"3\nthe 1 2 3", "COUNT SIZE"),
        (b"-3 3\nthe 1 2 3", "COUNT SIZE"),
        (b"3 3 3\nthe 1 2 3", "is damaged: 2 numbers expected in row 2|cut short in row 2"),
        (b"0 3\n", "says that it holds 0 vectors of 3 numbers"),
        (b"3 0\n", "says that it holds 3 vectors of 0 numbers"),
        (b"3 99999999999\n", "says that it holds 3 vectors of 99,999,999,999 numbers; .* of 1 to 4,096"),
        (b"99999999999 3\n", "says that it holds 99,999,999,999 vectors"),
        (BINARY.replace(b"3 3", b"2 3"), "goes on after its last row: in row 2 of 2, at byte 37"),
        (TEXT.replace(b"3 3\n", b"1 3\n"), "goes on after its last row: in row 2 of 1, at byte 25"),
        (TEXT.replace(b"3 3\n", b"5 3\n"), "is cut short in row 4 of 5, at byte 33"),
        (TEXT.replace(b"4 5 6", b"4 5"), "is damaged: 3 numbers expected in row 2 of 3, at byte 14"),
        (TEXT.replace(b"4 5 6", b"4 5 6 7"), "is damaged: 3 numbers expected in row 2"),
        (TEXT.replace(b"7 8 9", b"7 x 9"), "is damaged: not a number in row 3 of 3"),
        (TEXT.replace(b"7 8 9", b"7 nan 9"), "the vector of 'a' holds a number that is not finite"),
        (TEXT.replace(b"7 8 9", b"7 8 1e99"), "the vector of 'a' holds a number that is not finite"),
        (binary([(b"a", [1.0, float("inf")])]), "the vector of 'a' holds a number that is not finite"),
        (b"3 3\nthe " + bytes(12) + b"x" * 9000, "is damaged: no word begins in row 2 of 3, at byte 20"),
    ],
)
def test_what_is_no_vectors_file(file, content: bytes, message: str) -> None:
    refused(file(content), message)


def test_a_bad_number_of_a_word_that_nobody_asks_for_does_not_matter(file) -> None:
    vectors, _ = read_vectors(file(TEXT.replace(b"4 5 6", b"4 nan 6")), ["the", "a"])
    assert vectors.tolist() == [[1, 2, 3], [7, 8, 9]]


# One or two bytes before the next word may happen to be text; then only the absurd numbers of the first part show it.
@pytest.mark.parametrize(
    ("word", "asked"),
    [
        *(("New York", "New"), ("New York City", "New"), ("Day Age", "Day"), ("Route 1966", "Route")),
        *(("New York", "king"), ("New York City", "king"), ("Day Age", "king"), ("Route 1966", "king")),
        *(("a ", "a"), ("Größe 1", "Größe")),
    ],
)
@pytest.mark.parametrize("newline", [b"", b"\n"], ids=["gensim", "word2vec.c"])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_a_word_with_a_space_in_a_binary_file(
    file, monkeypatch: pytest.MonkeyPatch, word: str, asked: str, newline: bytes, chunk: int
) -> None:
    """gensim writes such words, and reads the one after them as garbage."""
    vectors = np.random.default_rng(3).standard_normal((4, 50)).tolist()
    words = ["the", word, "king", "a"]
    content = binary([(w.encode(), row) for w, row in zip(words, vectors, strict=True)], newline=newline)
    monkeypatch.setattr(vector_files, "_CHUNK_BYTES", chunk)
    with pytest.raises(EmbeddingsError) as caught:
        read_vectors(file(content), [asked])
    assert f"in row 2 of 4: the word {word!r} contains a space" in str(caught.value)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_words_that_are_no_text_are_read_all_the_same(file, scale: float) -> None:
    """word2vec.c cuts long words within a character."""
    rng = np.random.default_rng(4)
    words = [b"the", *(f"w{i}".encode() + bytes(rng.integers(128, 256, 3)) for i in range(500)), b"a"]
    numbers = (rng.standard_normal((len(words), 20)) * scale).astype(np.float32)
    vectors, found = read_vectors(file(binary(list(zip(words, numbers.tolist(), strict=True)))), ["a", "the"])
    assert found.all()
    np.testing.assert_array_equal(vectors, numbers[[-1, 0]])


def test_a_gzip_file_that_is_cut_or_damaged(file) -> None:
    packed = gzip.compress(binary([(f"word{i}".encode(), [float(i)] * 50) for i in range(2000)]))
    refused(file(packed[: len(packed) // 2]), r"cannot be uncompressed \(.*\) in row \d+ of 2,000|in row 0 of 0")
    broken = bytearray(packed)
    broken[len(broken) // 2] ^= 0xFF
    refused(file(bytes(broken)), r"cannot be uncompressed \(|is cut short|is damaged|goes on after")
    refused(file(packed[:-6] + b"\0\0\0\0\0\0"), r"cannot be uncompressed \(CRC check failed")


# ---- As downloaded ---------------------------------------------------------------------------------------------------

GLOVE = b"the 1 2 3\n. . . 4 5 6\nat name@domain.com 0 1 2\nGr\xc3\xb6\xc3\x9fe -1e-3 .5 +2\n, 7 8 9\n"


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (GLOVE, "glove.txt"),
        (GLOVE.removesuffix(b"\n"), "glove.txt"),
        (GLOVE.replace(b"\n", b"\r\n"), "glove.txt"),
        (gzip.compress(GLOVE), "glove.txt.gz"),
        (zipped({"glove.txt": GLOVE}), "glove.zip"),
        (zipped({"a/": b"", "a/glove.txt": GLOVE, "__MACOSX/._glove.txt": b"\0"}), "glove.zip"),
        (b"5 3\n" + GLOVE, "fasttext.vec"),
        (zipped({"fasttext.vec": b"5 3\n" + GLOVE}), "fasttext.vec.zip"),
    ],
    ids=["plain", "no last line feed", "CRLF", "gzip", "zip", "zip of a Mac", "fastText", "fastText in a zip"],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_glove_and_fasttext_as_downloaded(
    file, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str, chunk: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a header, compressed, and with words that contain spaces, as GloVe's 840B has them."""
    monkeypatch.setattr(vector_files, "_CHUNK_BYTES", chunk)
    asked = ["Größe", ". . .", "the", "at name@domain.com", ",", "at", "."]
    vectors, found = read_vectors(file(content, name), asked)
    assert found.tolist() == [True] * 5 + [False] * 2
    want = [[-1e-3, 0.5, 2], [4, 5, 6], [1, 2, 3], [0, 1, 2], [7, 8, 9], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(vectors, np.array(want, dtype=np.float32))
    assert caplog.text == ""


@pytest.mark.parametrize("count", [4, 6])
def test_a_header_that_miscounts_by_a_row_is_a_warning(file, count: int, caplog: pytest.LogCaptureFixture) -> None:
    vectors, found = read_vectors(file(b"%d 3\n" % count + GLOVE), [",", "the"])
    assert found.all() and vectors.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert f"its first line promises {count} vectors, and it has 5" in caplog.text


def test_large_numbers_of_messages_have_commas(file, caplog: pytest.LogCaptureFixture) -> None:
    rows = b"".join(b"w%d 1 2 3\n" % i for i in range(2_000))
    read_vectors(file(b"2001 3\n" + rows), ["w1"])
    assert "its first line promises 2,001 vectors, and it has 2,000" in caplog.text
    with pytest.raises(EmbeddingsError, match="holds vectors of 2,000, not 3,000"):
        read_vectors(file(b"1 2000\n"), ["a"], size=3000)


def test_archives_of_several_files_name_them(file) -> None:
    refused(file(zipped({"a.50d.txt": GLOVE, "a.100d.txt": GLOVE})), r"holds 2 files \(a.50d.txt, a.100d.txt\): unpack")
    refused(file(zipped({})), "holds 0 files")
    refused(file(zipped({"a": GLOVE * 500})[:-40]), r"cannot be unpacked \(.*\); fetch it again")
    broken = bytearray(zipped({"a": GLOVE * 500}))
    broken[60] ^= 0xFF
    refused(file(bytes(broken)), "cannot be uncompressed|is cut short|is damaged|in another format")


@pytest.mark.parametrize("content", [GLOVE, b"5 3\n" + GLOVE, BINARY])
def test_another_size_is_refused_before_the_rows_are_read(file, content: bytes) -> None:
    path = file(content[:40])  # cut: reading on would be another error
    with pytest.raises(EmbeddingsError, match=r"holds vectors of 3, not 50: leave out --embedding-size"):
        read_vectors(path, ["the"], size=50)
    assert read_vectors(file(content), ["the"], size=3)[1].all()


def test_a_pickle_that_holds_no_vectors(file) -> None:
    refused(file(pickle.dumps({"the": [1, 2]})), "holds no KeyedVectors, but a dict")
    refused(file(b"\x80\x04garbage"), "is damaged: UnpicklingError")


def test_a_gensim_file_without_its_arrays(tmp_path: Path) -> None:
    keyed(WORDS).save(str(tmp_path / "v.kv"), sep_limit=0)
    (tmp_path / "v.kv.vectors.npy").unlink()
    refused(tmp_path / "v.kv", "needs 'v.kv.vectors.npy' beside it: No such file or directory")


def test_no_such_file_and_no_file_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "none.bin", "cannot read '.*none.bin': No such file or directory")
    refused(tmp_path, "cannot read '.*': Is a directory")


def test_a_keyed_vectors_file_with_fewer_rows_than_words(tmp_path: Path) -> None:
    from gensim.models import KeyedVectors

    keyed = KeyedVectors(3)
    keyed.add_vectors(["a", "b"], np.ones((2, 3), dtype=np.float32))
    keyed.vectors = keyed.vectors[:1]
    keyed.save(str(tmp_path / "short.kv"))
    with pytest.raises(EmbeddingsError, match=r"short\.kv' is damaged: it has 1 vectors, and a word in row 1"):
        read_vectors(tmp_path / "short.kv", ["a", "b"])
