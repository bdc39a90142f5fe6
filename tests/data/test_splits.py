"""Folders of text: which file is which split, what is left out, and what is ambiguous."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import words_of

from rnnlm.data import splits
from rnnlm.data.corpus import CorpusError, load_corpus

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder of files, whose text is their path: `Train a.txt.` in a.txt of the folder train."""

    def make(*names: str) -> Path:
        folder = tmp_path / "corpus"
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"the text of {' '.join(filter(str.isalpha, name.replace('/', '.').split('.')))}.\n" * 2)
        return folder

    return make


@pytest.mark.parametrize(
    "names",
    [
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train.txt", "valid.txt", "test.txt"),  # as word_language_model has it
        ("train", "dev", "test"),
        ("my_train.txt", "my-val.txt", "MY.TEST.TXT"),
        ("train/a.txt", "validation/a.txt", "test/a.txt"),
        ("raw/train-0.txt", "raw/validation-0.txt", "raw/test-0.txt"),
        ("train2.txt.gz", "dev2.txt", "test2.txt"),
    ],
)
def test_names_tell_the_splits(make: Make, names: tuple[str, ...]) -> None:
    found = splits.find(make(*names))
    assert [str(path.relative_to(make())) for of in found.files.values() for path in of] == list(names)
    assert list(found.files) == ["train", "validation", "test"] and found.left_out == []


def test_the_splits_are_read_as_such(make: Make) -> None:
    folder = make("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
    found = load_corpus(str(folder))
    assert words_of(found, "whole_train") == "the text of ptb train txt | the text of ptb train txt |"
    assert words_of(found, "validation").count("valid") == 0  # the word is not in the training text
    assert found.stats["validation"].unknown_words == ("valid",) and found.stats["test"].unknown_words == ("test",)
    assert "valid" not in found.vocabulary.words and "test" not in found.vocabulary.words
    note = found.report()[-1]
    assert "train: ptb.train.txt; validation: ptb.valid.txt; test: ptb.test.txt" in note and "sub-folders" in note


def test_one_split_may_have_many_files_anywhere(make: Make) -> None:
    folder = make("train/b.txt", "train/a/c.txt", "more.train.txt", "valid.txt", "train-00.txt", "train-01.txt")
    found = splits.find(folder)
    train = [str(path.relative_to(folder)) for path in found.files["train"]]
    assert train == ["more.train.txt", "train/a/c.txt", "train/b.txt", "train-00.txt", "train-01.txt"]


def test_without_a_validation_file_it_is_the_last_tenth(make: Make) -> None:
    found = load_corpus(str(make("train.txt", "test.txt")))
    assert words_of(found, "train") == words_of(found, "validation") == "the text of train txt |"
    assert found.test is not None


def test_texts_that_name_no_split_are_left_out_and_reported(make: Make) -> None:
    found = load_corpus(str(make("train.txt", "valid.txt", "README.txt", "notes.md", "train.py", "train.csv")))
    assert "not read, since they name no split: README.txt" in found.report()[-1]
    assert "csv" not in found.vocabulary.words and "py" not in found.vocabulary.words


def test_a_word_that_only_begins_like_a_split_is_none(make: Make) -> None:
    found = splits.find(make("trains.txt", "trainspotting.txt", "testament.txt", "devil.txt", "contest.txt"))
    assert not found.named and len(found.files["train"]) == 5


def test_sub_folders_are_read_and_hidden_ones_are_not(make: Make) -> None:
    folder = make("b.txt", "a/z.txt", "a/b/y.txt.gz", ".git/x.txt", "a/.hidden.txt", "c.md")
    (folder / "a/b/y.txt.gz").unlink()
    found = load_corpus(str(folder))
    assert words_of(found, "whole_train").startswith("the text of a z txt |")
    assert "all .txt files are one text" in found.report()[-1] and "train: a/z.txt, b.txt" in found.report()[-1]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_are_followed_and_circles_are_not(make: Make) -> None:
    folder = make("b.txt", "real/c.txt")
    (folder / "again").symlink_to(folder)
    (folder / "aside").symlink_to(folder / "real")
    assert len(splits.find(folder).files["train"]) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.test.txt", "a.txt"), r"'train\.test\.txt' names two splits, test and train"),
        (("train/dev.txt",), "names two splits, train and validation"),
        (("train.txt", "train.txt.gz"), r"train\.txt, train\.txt\.gz differ only in their ending"),
        (("wiki.train.raw", "wiki.train.tokens"), r"wiki\.train\.raw, wiki\.train\.tokens differ only in their ending"),
        (("train", "train.txt"), r"train, train\.txt differ only in their ending"),
        (("a.txt", "a.txt.bz2"), r"a\.txt, a\.txt\.bz2 differ only in their ending"),
        (("train.txt", "valid.txt", "dev.txt"), r"more than one validation split, (valid|dev)\.txt, (valid|dev)\.txt"),
        (("book.txt", "test.txt"), r"names splits \(test: test\.txt\), but none is train"),
        (("valid.txt", "test.txt"), r"\(validation: valid\.txt; test: test\.txt\), but none is train"),
        (("train.csv", "test.csv", "readme.md"), r"no \.txt files in the folder"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_names(make: Make, names: tuple[str, ...], message: str) -> None:
    folder = make(*names)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(folder))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_long_lists_are_cut(make: Make) -> None:
    report = load_corpus(str(make(*(f"{i:02}.txt" for i in range(30))))).report()[-1]
    assert "19.txt, ... (30 files)" in report and "20.txt" not in report


# ---- --validation and --test -----------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    for name, text in {"corpus": "a b. c d.", "dev": "b a!", "test": "e a?"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return {name: str(tmp_path / f"{name}.txt") for name in ("corpus", "dev", "test")}


def test_files_of_their_own(texts: dict[str, str]) -> None:
    found = load_corpus(texts["corpus"], validation=texts["dev"], test=texts["test"])
    assert words_of(found, "train") == "a b | c d |"
    assert (words_of(found, "validation"), words_of(found, "test")) == ("b a |", "<UNK> a |")
    assert found.report()[-2:] == [f"validation: {texts['dev']}", f"test: {texts['test']}"]
    assert words_of(load_corpus(texts["corpus"], validation=texts["test"]), "validation") == "<UNK> a |"  # not cached


def test_they_take_the_place_of_the_corpus_s_own(make: Make, texts: dict[str, str]) -> None:
    found = load_corpus(str(make("train.txt", "valid.txt", "test.txt")), validation=texts["dev"])
    assert found.stats["validation"].tokens == 3 and found.stats["test"].unknown_words == ("test",)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_is_no_file_for_a_split(texts: dict[str, str], tmp_path: Path, split: str) -> None:
    with pytest.raises(CorpusError, match=f"cannot read {split} text '.*nothing': No such file"):
        load_corpus(texts["corpus"], **{split: str(tmp_path / "nothing")})
    with pytest.raises(CorpusError, match=f"'{tmp_path}' is a folder: --validation and --test take one text file"):
        load_corpus(texts["corpus"], **{split: str(tmp_path)})


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("text", ["", " \n\n", "1945. 3 , !"])
def test_a_split_without_words_is_refused(make: Make, texts: dict[str, str], split: str, text: str) -> None:
    Path(texts["dev"]).write_text(text)
    with pytest.raises(CorpusError, match=rf"the {split} split of corpus '.*corpus\.txt' holds no words: use a text"):
        load_corpus(texts["corpus"], **{split: texts["dev"]})
    folder = make("train.txt", f"{split}.txt")
    (folder / f"{split}.txt").write_text(text)
    with pytest.raises(CorpusError, match=rf"the {split} split of corpus '{folder}' holds no words"):
        load_corpus(str(folder))


def test_standard_input_has_one_reader(texts: dict[str, str]) -> None:
    with pytest.raises(CorpusError, match="standard input can be only one of"):
        load_corpus("-", validation="-")
