"""Corpora: what each kind of name reads, and what each kind of mistake says."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, WIKITEXT, needs_wikitext

from rnnlm.data import corpus, encoding
from rnnlm.data.corpus import HUB_NAMES, Corpus, CorpusError, CorpusUnavailable, SplitStats, load_corpus
from rnnlm.data.text import EOS, UNK, TextError

CLOSED_PORT = "http://127.0.0.1:9"  # "discard": nothing listens there
HANG_S = 30.0  # far beyond what anything here takes: it only tells a hang


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`datasets` keeps what it prepares in a folder of the test's own."""
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], str]:
    """A text file; returns what --corpus would be given."""

    def write(content: str | bytes, name: str = "text.txt") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def words_of(found: Corpus, split: str) -> str:
    ids = getattr(found, split)
    return " ".join(found.vocabulary.words[i] for i in ids).replace(EOS, "|")


# ---- Text files ------------------------------------------------------------------------------------------------------


def test_a_text_file(write) -> None:
    found = load_corpus(write('The king, "who" sat.\nThe king died. The end.'))
    assert words_of(found, "train") == "The king who sat | The king died |"
    assert words_of(found, "validation") == f"The {UNK} |"  # the last of the three sentences
    assert found.test is None
    assert found.vocabulary.words == (EOS, "The", "king", "died", "sat", "who", UNK)
    assert found.counts.tolist() == [2, 2, 2, 1, 1, 1, 0]
    assert found.tokenizer == "plain"
    assert found.stats == {"train": SplitStats(9, 6, 0.0), "validation": SplitStats(3, 3, 1 / 3, 1, ("end",))}
    for ids in (found.train, found.validation, found.whole_train):
        assert ids.dtype == np.int32
    assert found.counts.dtype == np.int64


def test_the_report_says_what_there_is(write) -> None:
    name = write("a b. a c. a d.")
    vocabulary, train, validation = load_corpus(name).report()
    assert name in vocabulary and "5 words" in vocabulary and "plain" in vocabulary
    assert train.split() == ["train", "6", "tokens", "4", "types", "100.000%", "covered"]
    assert validation.split()[:7] == ["validation", "3", "tokens", "3", "types", "66.667%", "covered;"]
    assert validation.endswith("; 1 unknown words: d")


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


def test_vocabulary_and_counts_come_from_the_training_split_alone(write) -> None:
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


@pytest.mark.parametrize("size", [1, 2, 99])
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
    monkeypatch.setattr(corpus, "_CHUNK_BYTES", chunk)
    pieces = load_corpus(path)
    assert pieces.train.tolist() == whole.train.tolist()
    assert words_of(whole, "train").startswith("Das king | crown | Das")


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"caf\xe9 a b c.", 3),  # Latin-1
        (b"\xef\xbb\xbfcaf\xe9 a b c.", 6),  # the mark counts
        ("a é ".encode() * 3 + b"\xff", 15),
        (b"a b. c \xe2\x82", 7),  # the last character is cut off
        ("a b.".encode("utf-16"), 0),
    ],
)
def test_what_is_not_utf8_names_the_file_and_the_byte(
    write, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int, chunk: int
) -> None:
    monkeypatch.setattr(corpus, "_CHUNK_BYTES", chunk)
    with pytest.raises(CorpusError, match=rf"text\.txt' is not UTF-8 text: byte 0x\w\w at offset {offset};"):
        load_corpus(write(content))


def test_one_huge_line_is_never_held_whole(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("word " * 1_000_000 + ". " + "word . " * 2)  # 5 MB, one sentence of a million words
    monkeypatch.setattr(corpus, "_CHUNK_BYTES", 1 << 16)
    tracemalloc.start()
    pieces = sum(len(piece) for piece in corpus._read_text(Path(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pieces == os.path.getsize(path)
    assert peak < 1_000_000
    found = load_corpus(path)
    assert Counter(found.train.tolist()) == {found.vocabulary.ids["word"]: 1_000_001, found.vocabulary.eos: 2}


def test_a_stretch_without_white_space_is_no_text(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(corpus, "_MAX_TOKEN_CHARS", 1000)
    with pytest.raises(CorpusError, match="1,098 characters without white space before byte 1,100"):
        load_corpus(write("a " + "x" * 5000))
    assert len(load_corpus(write("a " + "x" * 900 + " a. a.")).train) == 4


def test_a_folder_of_text_files_is_read_in_order(tmp_path: Path) -> None:
    for name, content in {"b.txt": "c d", "a.txt": "a b", "c.txt": "e f", "readme.md": "no", "d.log": "no"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "sub.txt").mkdir()
    found = load_corpus(str(tmp_path))
    assert words_of(found, "train") == "a b | c d |"  # a file's end ends its last line
    assert found.name == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no words in its training split"),
        (" \n\n", "holds no words in its training split"),
        ("1945. 3 , ! 日本", "holds no words in its training split"),
        ("only one sentence", "holds one sentence: .* two at least"),
    ],
)
def test_a_text_that_holds_too_little(write, content: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(write(content))


def test_a_folder_without_text_says_how_the_hub_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"no \.txt files in the folder '{tmp_path}'.*{tmp_path}:CONFIG"):
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
    for accepted in (*HUB_NAMES, "OWNER/NAME:CONFIG", "FOLDER:CONFIG", "text file", "folder of .txt files", "demo"):
        assert accepted in message


def test_a_file_that_cannot_be_opened(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a b.")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus, "open", refuse, raising=False)  # the tests may run as root, whom nothing stops
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


# ---- The dataset hub's layout ----------------------------------------------------------------------------------------

README = """---
configs:
{configs}---
# A tiny data set
"""
ROWS = {
    "train": ["", " = The king = \n", " The king , who <unk> sat . He died . \n", None, "He 's dead"],
    "validation": [" The queen sat . \n"],
    "test": [" He sat . \n", ""],
}


@pytest.fixture
def hub_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder in the hub's layout: parquet files, and a README that says which config and split they are."""

    def make(rows: dict[str, list], config: str = "wikitext-2-v1", column: str = "text", name: str = "tiny") -> Path:
        folder = tmp_path / name
        (folder / config).mkdir(parents=True)
        entry = f"- config_name: {config}\n  data_files:\n"
        for split, values in rows.items():
            pq.write_table(pa.table({column: values}), folder / config / f"{split}-00000-of-00001.parquet")
            entry += f"  - split: {split}\n    path: {config}/{split}-*\n"
        readme = folder / "README.md"
        before = readme.read_text().split("configs:\n")[1].split("---")[0] if readme.exists() else ""
        readme.write_text(README.format(configs=before + entry))
        return folder

    return make


def test_a_local_folder_in_the_hub_layout(hub_folder) -> None:
    found = load_corpus(f"{hub_folder(ROWS)}:wikitext-2-v1")
    assert found.tokenizer == "wikitext"
    assert words_of(found, "train") == "The king | The king who sat | He died | He dead |"
    assert words_of(found, "validation") == f"The {UNK} sat |"
    assert words_of(found, "test") == "He sat |"
    assert found.stats["test"] == SplitStats(3, 3, 0.0)


def test_other_configs_are_plain_text(hub_folder) -> None:
    folder = hub_folder(ROWS)
    hub_folder({"train": ["The king, who sat.\nThe (old) king's crown.", "The end"]}, config="news", name=folder.name)
    found = load_corpus(f"{folder}:news")
    assert found.tokenizer == "plain"
    assert words_of(found, "train") == "The king who sat | The old king crown |"
    assert words_of(found, "validation") == f"The {UNK} |"  # there is no such split: the last tenth of the sentences
    assert found.test is None


def test_an_empty_validation_split_counts_as_none(hub_folder) -> None:
    found = load_corpus(f"{hub_folder({**ROWS, 'validation': ['']})}:wikitext-2-v1")
    assert words_of(found, "validation") == f"He {UNK} |"  # the last of the training sentences


def test_a_config_that_is_missing_lists_those_there_are(hub_folder) -> None:
    folder = hub_folder(ROWS)
    hub_folder(ROWS, config="news", name=folder.name)
    with pytest.raises(CorpusError, match=rf"no config 'wikitext-3' in '{folder}'; it has wikitext-2-v1, news$"):
        load_corpus(f"{folder}:wikitext-3")


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        ({"test": ["a b ."]}, "text", "has no train split; it has test"),
        ({"train": ["a b ."]}, "body", "has no text column; it has body"),
        ({"train": ["", "1945 ."]}, "text", "holds no words in its training split"),
        ({"train": ["1945 ."], "validation": ["a b ."]}, "text", "holds no words in its training split"),
    ],
)
def test_a_data_set_of_another_shape(hub_folder, rows: dict, column: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(f"{hub_folder(rows, column=column)}:wikitext-2-v1")


def test_a_damaged_data_file(hub_folder) -> None:
    folder = hub_folder(ROWS)
    (folder / "wikitext-2-v1" / "train-00000-of-00001.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(CorpusError, match=r"cannot read corpus .*:wikitext-2-v1'") as caught:
        load_corpus(f"{folder}:wikitext-2-v1")
    assert "\n" not in str(caught.value)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot read corpus|no config"):
        load_corpus(f"{tmp_path}:wikitext-2-v1")


def test_datasets_stays_quiet_and_is_left_as_it_was(hub_folder, capfd: pytest.CaptureFixture[str]) -> None:
    verbosity, disabled = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    load_corpus(f"{hub_folder(ROWS)}:wikitext-2-v1")
    assert capfd.readouterr() == ("", "")
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == (verbosity, disabled)


@needs_wikitext
def test_wikitext_2_has_the_documented_counts() -> None:
    found = load_corpus(f"{WIKITEXT}:wikitext-2-v1")
    assert len(found.vocabulary) == 31_266
    assert len(found.train) == found.counts.sum() == 1_696_744
    assert len(found.validation) == 171_909
    assert found.test is not None and len(found.test) == 191_546
    assert found.vocabulary.unk is None  # the other splits hold no word that the training split lacks
    assert found.vocabulary.words[:3] == ("the", EOS, "of")
    assert (np.bincount(found.train) == found.counts).all()
    assert (np.diff(found.counts) <= 0).all()


# ---- The cache of tokens ---------------------------------------------------------------------------------------------


def same(first: Corpus, second: Corpus) -> bool:
    return (
        first.vocabulary.words == second.vocabulary.words
        and first.counts.tolist() == second.counts.tolist()
        and first.stats == second.stats
        and all(words_of(first, split) == words_of(second, split) for split in ("whole_train", "train", "validation"))
    )


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, reading a text fails the test."""
    return lambda: monkeypatch.setattr(corpus, "_read_text", lambda _: pytest.fail("the text was read again"))


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
    write("a b x. d e f.")  # as long as before, but later
    assert "x" in load_corpus(path).vocabulary.words
    code = encoding._code_version()
    monkeypatch.setattr(encoding, "_code_version", lambda: code + "x")
    monkeypatch.setattr(corpus, "_read_text", lambda _: iter(["other words. here."]))
    assert "other" in load_corpus(path).vocabulary.words
    assert len(list(tokens.iterdir())) == 2  # one for each size: what is out of date is replaced


@pytest.mark.parametrize("file", ["corpus.json", "train.npy", "validation.npy"])
@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "gone"])
def test_a_damaged_cache_is_made_again(
    write, tokens: Path, file: str, damage: str, no_reading, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("a b c. d e f. g h i. a.")
    first = load_corpus(path)
    (target,) = tokens.glob(f"*/{file}")
    content = target.read_bytes()
    target.unlink()  # what is mapped stays as it is
    if damage != "gone":
        target.write_bytes({"cut": content[:-1], "changed": content[:-4] + b"\x01ab\x02", "foreign": b"{}"}[damage])
    assert same(first, load_corpus(path))
    assert damage == "gone" or "damaged cache folder" in caplog.text
    no_reading()
    assert same(first, load_corpus(path))  # it was mended


def test_of_two_first_starts_at_once_the_second_takes_what_the_first_has_stored(
    write, tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, rename, passes = write("a b c. d e f. g h i. a."), Path.rename, []

    def late(new: Path, target: Path) -> None:
        if new.name == "new":
            shutil.copytree(new, target)
        rename(new, target)

    read = corpus._read_text
    monkeypatch.setattr(corpus, "_read_text", lambda *given: passes.append(1) or read(*given))
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
    """Blocks and spools of a few bytes: every border between them is crossed."""
    path = write(" ".join(f"{a}{b} {b}." for a in "abcdefgh" for b in "abcdefgh"))
    whole = load_corpus(path)
    monkeypatch.setenv("RNN_CACHE_DIR", str(tokens / "other"))
    monkeypatch.setattr(encoding, "_BLOCK", 7)
    monkeypatch.setattr(encoding, "_IN_MEMORY_BYTES", 16)
    monkeypatch.setattr(corpus, "_CHUNK_BYTES", 11)
    assert same(whole, load_corpus(path))


# ---- The hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*HUB_NAMES, "owner/name:config"])
def test_out_of_reach_is_one_line_at_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", CLOSED_PORT)
    begun = time.monotonic()
    with pytest.raises(CorpusUnavailable) as caught:
        load_corpus(spec)
    assert time.monotonic() - begun < HANG_S
    message = str(caught.value)
    assert "\n" not in message
    for part in (repr(spec), CLOSED_PORT, "Connection refused", "--corpus demo", f"FOLDER:{spec.split(':')[-1]}"):
        assert part in message
    assert caught.value.exit_code == 2
    assert not datasets.config.HF_HUB_OFFLINE  # left as it was


def test_out_of_reach_a_cached_copy_is_used(
    hub_folder, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_folder(ROWS, name="wikitext")
    online = load_corpus(f"{folder}:wikitext-2-v1")
    # What `datasets` prepared from the hub lies beside what it prepared from folders, under OWNER___NAME.
    (own_cache / "wikitext").rename(own_cache / "Salesforce___wikitext")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", CLOSED_PORT)
    monkeypatch.chdir(folder.parent)
    offline = load_corpus("wikitext-2-v1")
    assert offline.train.tolist() == online.train.tolist()
    assert "using the cached copy of wikitext-2-v1" in caplog.text
    with pytest.raises(CorpusUnavailable, match="'wikitext-103-v1' is not cached here"):
        load_corpus("wikitext-103-v1")


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(corpus, "why_unreachable", lambda _: pytest.fail("it asked the network"))
    with pytest.raises(CorpusUnavailable, match="offline mode is set"):
        load_corpus("wikitext-2-v1")


def test_within_reach_the_hub_is_asked_for_the_right_thing(hub_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no hub here, so this ends at the border to `datasets`."""
    loaded = datasets.load_dataset(str(hub_folder(ROWS)), "wikitext-2-v1")
    asked = []
    monkeypatch.setattr(corpus, "why_unreachable", lambda _: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or loaded)
    assert load_corpus("wikitext-103-v1").tokenizer == "wikitext"
    assert load_corpus("owner/some.name-1:config").tokenizer == "plain"
    assert asked == [("Salesforce/wikitext", "wikitext-103-v1"), ("owner/some.name-1", "config")]


def test_whatever_the_hub_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist\non the Hub")

    monkeypatch.setattr(corpus, "why_unreachable", lambda _: None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(CorpusError, match="DatasetNotFoundError: Dataset 'owner/name' doesn't exist on the Hub"):
        load_corpus("owner/name:config")


def test_a_folder_of_that_name_comes_before_the_hub(hub_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folder(ROWS, name="owner/name")
    monkeypatch.chdir(folder.parent.parent)
    assert len(load_corpus("owner/name:wikitext-2-v1").train) > 0
