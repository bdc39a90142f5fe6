"""The cache of tokens: a text is read and encoded once, and a damaged cache is rebuilt."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import corpora
import numpy as np
import pytest
from corpora import words_of

from rnnlm.data import encoding, text_files
from rnnlm.data.corpus import Corpus, load_corpus
from rnnlm.data.text_files import TextFile

write = corpora.write  # a fixture


def same(first: Corpus, second: Corpus) -> bool:
    return (
        first.vocabulary.words == second.vocabulary.words
        and first.counts.tolist() == second.counts.tolist()
        and first.stats == second.stats
        and first.words == second.words
        and all(words_of(first, split) == words_of(second, split) for split in ("whole_train", "train", "validation"))
    )


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache folder for this test only."""
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function; once it is called, reading a text fails the test."""
    return lambda: monkeypatch.setattr(TextFile, "pieces", lambda _: pytest.fail("the text was read again"))


def test_the_second_start_maps_the_tokens(write, tokens: Path, no_reading) -> None:
    path = write("a b c. d e f. g h i. a.")
    first = load_corpus(path, vocab_size=5)
    no_reading()
    second = load_corpus(path, vocab_size=5, max_tokens=4)
    assert same(first, load_corpus(path, vocab_size=5)) and words_of(second, "train") == words_of(first, "train")[:7]
    assert isinstance(second.whole_train.base, np.memmap) and not second.train.flags.writeable
    assert [entry.name.startswith("tokens-") for entry in tokens.iterdir()] == [True]


def test_what_the_tokens_are_made_from_counts(write, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a b c. d e f.")
    load_corpus(path)
    assert len(load_corpus(path, vocab_size=4).vocabulary) == 4
    status = os.stat(path)
    write("a b x. d e f.")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same length and time
    assert "x" in load_corpus(path).vocabulary.words
    code = encoding._code_version()
    monkeypatch.setattr(encoding, "_code_version", lambda: code + "x")
    monkeypatch.setattr(TextFile, "pieces", lambda _: iter(["other words. here."]))
    assert "other" in load_corpus(path).vocabulary.words
    assert len(list(tokens.iterdir())) == 2  # one per size: an outdated one is replaced


@pytest.mark.parametrize("file", ["corpus.json", "train.npy", "validation.npy"])
@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "gone"])
def test_a_damaged_cache_is_made_again(
    write, tokens: Path, file: str, damage: str, no_reading, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("a b c. d e f. g h i. a.")
    first = load_corpus(path)
    (target,) = tokens.glob(f"*/{file}")
    content = target.read_bytes()
    target.unlink()  # mapped files stay intact
    if damage != "gone":
        target.write_bytes({"cut": content[:-1], "changed": content[:-4] + b"\x01ab\x02", "foreign": b"{}"}[damage])
    assert same(first, load_corpus(path))
    assert damage == "gone" or "damaged cache folder" in caplog.text
    no_reading()
    assert same(first, load_corpus(path))  # it was repaired


def test_of_two_first_starts_at_once_the_second_takes_what_the_first_has_stored(
    write, tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, rename, passes = write("a b c. d e f. g h i. a."), Path.rename, []

    def late(new: Path, target: Path) -> None:
        if new.name == "new":
            shutil.copytree(new, target)
        rename(new, target)

    read = TextFile.pieces
    monkeypatch.setattr(TextFile, "pieces", lambda file: passes.append(1) or read(file))
    monkeypatch.setattr(Path, "rename", late)
    assert isinstance(load_corpus(path).whole_train.base, np.memmap)
    assert len(passes) == 1 and "not cached" not in caplog.text
    assert [entry.name.startswith("tokens-") for entry in tokens.iterdir()] == [True]


def test_a_cache_that_cannot_be_written_is_done_without(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("a b c. d e f. g h i. a.")
    first = load_corpus(path)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert same(first, load_corpus(path)) and "not cached" in caplog.text and "RNN_CACHE_DIR" in caplog.text


def test_a_full_disk_under_the_cache_is_done_without(
    write, tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write("a b c. d e f. g h i. a.")
    monkeypatch.setattr(encoding, "_write_header", full)
    assert words_of(load_corpus(path), "validation") == "a |"
    assert "No space left" in caplog.text and list(tokens.iterdir()) == []


def test_a_text_larger_than_a_block_goes_through_the_disk(write, tokens: Path, monkeypatch) -> None:
    """With blocks and spools of a few bytes, the text crosses every border between them."""
    path = write(" ".join(f"{a}{b} {b}." for a in "abcdefgh" for b in "abcdefgh"))
    whole = load_corpus(path)
    monkeypatch.setenv("RNN_CACHE_DIR", str(tokens / "other"))
    monkeypatch.setattr(encoding, "_BLOCK", 7)
    monkeypatch.setattr(encoding, "_IN_MEMORY_BYTES", 16)
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 11)
    assert same(whole, load_corpus(path))


def test_what_only_looks_newer_is_not_read_again(write, tokens: Path, no_reading) -> None:
    path = write("a b c. d e f.")
    first = load_corpus(path)
    os.utime(path, (1, 1))
    no_reading()
    assert same(first, load_corpus(path))


CHANGED = "the text, or this program, has changed since the tokens were cached: reading the text again"


def test_other_splits_are_no_change_of_the_text(
    write, tokens: Path, no_reading, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path, other = write("a b c. d e f."), write("g h.", "other.txt")
    given = ({}, {"validation": other}, {"test": other}, {"validation": other, "test": path})
    loaded = [load_corpus(path, **splits) for splits in given]
    assert CHANGED not in caplog.text
    write("g i.", "other.txt")
    changed = load_corpus(path, validation=other)
    assert caplog.text.count(CHANGED) == 1 and changed.validation.size == 3
    write("g h.", "other.txt")
    load_corpus(path, validation=other)
    no_reading()
    assert all(same(load_corpus(path, **splits), found) for splits, found in zip(given, loaded, strict=True))


def test_another_text_on_standard_input_is_no_change_of_it(
    write, tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = write("a b c. d e f.")
    for text in (b"g h. i.", b"g h. j.", b"g h. j."):
        for options in ({"spec": "-"}, {"spec": path, "validation": "-"}):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
            found = load_corpus(**options)
            assert "validation" in found.stats and ("g" in found.vocabulary.words) == (options["spec"] == "-")
    assert CHANGED not in caplog.text and len(list(tokens.iterdir())) == 2


def test_each_tokenizer_has_tokens_of_its_own(write, tokens: Path, no_reading) -> None:
    path = write("Ärger the King. A b. C d.")
    loaded = {name: load_corpus(path, tokenizer=name) for name in ("plain", "unicode")}
    lower = load_corpus(path, lowercase=True)
    no_reading()
    assert all(same(load_corpus(path, tokenizer=name), loaded[name]) for name in loaded)
    assert same(load_corpus(path, lowercase=True), lower) and "king" in lower.vocabulary.words
    again = load_corpus(path, tokenizer="plain")
    assert again.words == loaded["plain"].words and again.words.most_dropped == (("Ärger", 1),)
    assert again.vocabulary.tokenizer == "plain" and lower.vocabulary.tokenizer == "unicode+lowercase"
