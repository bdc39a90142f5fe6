"""Corpora by name: text files and folders, the demo, and the message for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import corpora
import numpy as np
import pytest
from conftest import ROOT
from corpora import words_of

from rnnlm.data import corpus, hub, text_files
from rnnlm.data.corpus import CorpusError, SplitStats, load_corpus
from rnnlm.data.text import EOS, UNK, TextError

write = corpora.write  # a fixture


# ---- Text files ------------------------------------------------------------------------------------------------------


def test_a_text_file(write) -> None:
    found = load_corpus(write('The king, "who" sat.\nThe king died. The end.'))
    assert words_of(found, "train") == "The king who sat | The king died |"
    assert words_of(found, "validation") == f"The {UNK} |"  # the last of the three sentences
    assert found.test is None
    assert found.vocabulary.words == (EOS, "The", "king", "died", "sat", "who", UNK)
    assert found.counts.tolist() == [2, 2, 2, 1, 1, 1, 0]
    assert found.tokenizer == "unicode"
    assert found.stats == {"train": SplitStats(9, 6, 0.0), "validation": SplitStats(3, 3, 1 / 3, 1, ("end",))}
    for ids in (found.train, found.validation, found.whole_train):
        assert ids.dtype == np.int32
    assert found.counts.dtype == np.int64


def test_the_report_says_what_there_is(write) -> None:
    name = write("a b. a c. a d.")
    vocabulary, train, validation, words = load_corpus(name).report()
    assert name in vocabulary and "5 words" in vocabulary and "unicode" in vocabulary
    assert words == "6 words read, 6 kept, 0 dropped"
    assert train.split() == ["train", "6", "tokens", "4", "types", "100.000%", "covered"]
    assert validation.split()[:7] == ["validation", "3", "tokens", "3", "types", "66.667%", "covered;"]
    assert validation.endswith("; 1 unknown word: d")


def test_the_report_names_the_most_frequent_unknown_words(write) -> None:
    cut = load_corpus(write("a a a a b c c d d d e f g h. a b."), vocab_size=3).report()[1]
    assert cut.endswith("; 7 unknown words: d, c, b, e, f, ...")


@pytest.mark.parametrize(("sentences", "kept"), [(2, 1), (10, 1), (19, 1), (20, 2), (57, 5)])
def test_validation_is_the_last_tenth_of_the_sentences(write, sentences: int, kept: int) -> None:
    found = load_corpus(write("a b. " * sentences))
    eos = found.vocabulary.eos
    assert np.count_nonzero(found.validation == eos) == kept
    assert np.count_nonzero(found.train == eos) == sentences - kept
    assert found.train[-1] == eos


def test_vocabulary_and_counts_come_from_the_training_split_only(write) -> None:
    found = load_corpus(write("a b. a b. " * 5 + "c c c c."), vocab_size=4)
    assert found.vocabulary.words == (EOS, "a", "b", UNK)
    assert words_of(found, "validation") == " ".join([UNK] * 4) + " |"
    assert found.stats["validation"].unknown_rate == 0.8
    assert found.stats["validation"].types == 2  # before they became <UNK>


def test_vocab_size_cuts_the_rare_words(write) -> None:
    found = load_corpus(write("a a a b b c d.\n" * 2), vocab_size=4)
    assert found.vocabulary.words == ("a", UNK, "b", EOS)  # 3, 2 (c, d), 2, 1
    assert words_of(found, "train") == f"a a a b b {UNK} {UNK} |"
    assert found.counts.tolist() == [3, 2, 2, 1]
    assert found.stats["train"].unknown_rate == found.stats["validation"].unknown_rate == 0.25
    assert found.stats["train"].types == 5


def test_a_vocab_size_above_what_there_is_keeps_all_and_says_so(write) -> None:
    path = write("a b c. a b c.")
    found = load_corpus(path, vocab_size=1000)
    assert found.vocabulary.words == load_corpus(path).vocabulary.words
    assert "the vocabulary has all 4 words, fewer than --vocab-size 1000" in found.report()
    assert len(load_corpus(path, vocab_size=4).report()) == len(found.report()) - 1


@pytest.mark.parametrize("size", [1, 2])
def test_vocab_size_out_of_range(write, size: int) -> None:
    with pytest.raises(TextError, match=f"vocabulary size {size} "):
        load_corpus(write("a b c. a b c."), vocab_size=size)


def test_max_tokens_cuts_the_text_and_not_the_vocabulary(write) -> None:
    path = write("a b c. d e f. g h i.")
    whole, cut = load_corpus(path), load_corpus(path, max_tokens=3)
    assert words_of(cut, "train") == "a b c"
    assert words_of(cut, "whole_train") == words_of(whole, "train") == "a b c | d e f |"
    assert cut.vocabulary.words == whole.vocabulary.words
    assert cut.counts.tolist() == whole.counts.tolist()
    assert cut.stats == whole.stats
    assert load_corpus(path, max_tokens=1000).train.tolist() == whole.train.tolist()


def test_the_counts_of_the_tokens_that_are_trained_on(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampled softmax corrects for how often a word is a target, which is how often it is in these tokens."""
    path = write("a b. a b. c d. c a. a b.")
    whole, cut = load_corpus(path), load_corpus(path, max_tokens=7)
    assert whole.train_counts().tolist() == whole.counts.tolist()
    monkeypatch.setattr(corpus, "_COUNTED", 3)
    assert cut.train_counts().tolist() == np.bincount(cut.train, minlength=len(cut.vocabulary)).tolist()
    assert cut.train_counts().sum() == 7 < cut.counts.sum() and cut.train_counts().min() == 0


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfa b.\nc d.\n", b"a b.\r\nc d.\r\n", b"a b\rc d", b"a b.\n\n\n  \nc d", b"a\tb.\x0cc d."],
    ids=["byte order mark", "CRLF", "CR", "blank lines", "other white space"],
)
def test_what_text_files_come_with(write, content: bytes) -> None:
    found = load_corpus(write(content))
    assert (words_of(found, "train"), words_of(found, "validation")) == ("a b |", f"{UNK} {UNK} |")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_chunks_may_end_anywhere(write, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    path = write("\N{BOM}" + "Das — “Größe” naïve 日本語 king’s\r\ncrown. " * 9)  # noqa: RUF001
    whole = load_corpus(path)
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", chunk)
    pieces = load_corpus(path)
    assert pieces.train.tolist() == whole.train.tolist()
    assert words_of(whole, "train").startswith("Das Größe naïve 日本語 king's | crown | Das")


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"caf\xe9 a b c.", 3),  # Latin-1
        (b"\xef\xbb\xbfcaf\xe9 a b c.", 6),  # offsets count the byte order mark
        ("a é ".encode() * 3 + b"\xff", 15),
        (b"a b. c \xe2\x82", 7),  # the last character is cut off
    ],
)
def test_what_is_not_utf8_names_the_file_and_the_byte(
    write, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int, chunk: int
) -> None:
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", chunk)
    with pytest.raises(CorpusError, match=rf"text\.txt' is not UTF-8 text: byte 0x\w\w at offset {offset};"):
        load_corpus(write(content))


def test_one_huge_line_is_never_held_whole(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("word " * 1_000_000 + ". " + "word . " * 2)  # 5 MB, one sentence of a million words
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 1 << 16)
    tracemalloc.start()
    pieces = sum(len(piece) for piece in text_files.open_path(Path(path)).pieces())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pieces == os.path.getsize(path)
    assert peak < 1_000_000
    found = load_corpus(path)
    assert Counter(found.train.tolist()) == {found.vocabulary.ids["word"]: 1_000_001, found.vocabulary.eos: 2}


def test_a_stretch_without_white_space_is_no_text(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(text_files, "_MAX_TOKEN_CHARS", 1000)
    with pytest.raises(CorpusError, match="1,098 characters without white space before byte 1,100"):
        load_corpus(write("a " + "x" * 5000))
    assert len(load_corpus(write("a " + "x" * 900 + " a. a.")).train) == 4


def test_a_folder_of_text_files_is_read_in_order(tmp_path: Path) -> None:
    for name, content in {"b.txt": "c d", "a.txt": "a b", "c.txt": "e f", "readme.md": "no", "d.log": "no"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "sub.txt").mkdir()
    found = load_corpus(str(tmp_path))
    assert words_of(found, "train") == "a b | c d |"  # the end of a file ends its last line
    assert found.name == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no words in its training split"),
        (" \n\n", "holds no words in its training split"),
        ("1945. 3 , ! $5", "holds no words in its training split"),
        ("only one sentence", "holds one sentence: .* at least one each"),
    ],
)
def test_a_text_that_holds_too_little(write, content: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(write(content))


def test_a_folder_without_text_says_how_the_hub_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"no \.txt files in the folder '{tmp_path}'.*{tmp_path}:CONFIG$"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize(
    "spec",
    ["", "nothing", "wikitext-2", "no/such/folder/text.txt", "../nothing:config", "owner/name", ":", "x:", "demo:x"],
)
def test_an_unknown_name_lists_what_there_is(spec: str) -> None:
    with pytest.raises(CorpusError) as caught:
        load_corpus(spec)
    message = str(caught.value)
    assert repr(spec) in message and "\n" not in message
    for accepted in (*hub.NAMES, "OWNER/NAME:CONFIG", "FOLDER:CONFIG", "text file", "folder of .txt files", "demo"):
        assert accepted in message


def test_a_file_that_cannot_be_opened(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a b.")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        text_files, "open", refuse, raising=False
    )  # the tests may run as root, which may read everything
    with pytest.raises(CorpusError, match=r"cannot read '.*text\.txt': Permission denied"):
        load_corpus(path)


def test_a_name_too_long_for_a_file() -> None:
    with pytest.raises(CorpusError, match=r"cannot read corpus 'x{300}.*': File name too long"):
        load_corpus("x" * 5000)


# ---- The demo --------------------------------------------------------------------------------------------------------


def test_demo_is_the_news_corpus_of_the_gensim_wheel() -> None:
    found = load_corpus("demo")
    assert len(found.vocabulary) == 7089
    assert (found.stats["train"].tokens, found.stats["validation"].tokens) == (55_249, 5_976)
    assert found.tokenizer == "plain"
    assert words_of(found, "train").startswith(
        "Hundreds of people have been forced to vacate their homes in the Southern"
    )


def test_demo_imports_neither_gensim_nor_datasets() -> None:
    code = (
        "import sys; from rnnlm.data import corpus; corpus.load_corpus('demo'); "
        "print([m for m in ('gensim', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_demo_without_gensim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CorpusError, match="pip install gensim"):
        load_corpus("demo")
