"""The cache of vectors: a file is read once, and again if it, the words or the cache has changed."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_vectors
from tiny_vectors import keyed, load, make_corpus, save

from rnnlm.data import embeddings
from rnnlm.data.corpus import Corpus
from rnnlm.data.embeddings import EmbeddingsError

own_folders, corpus = tiny_vectors.own_folders, tiny_vectors.corpus  # fixtures


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that collects the vectors files that are read."""
    read, paths = embeddings.read_vectors, []
    monkeypatch.setattr(embeddings, "read_vectors", lambda path, *given: paths.append(path) or read(path, *given))
    return paths


def test_the_second_start_reads_the_rows_kept(
    corpus: Corpus, tmp_path: Path, reads: list[Path], own_folders: Path
) -> None:
    path = save(tmp_path, ["the", "king", "dog", "</s>"])
    first, second = load(path, corpus), load(path, corpus)
    assert len(reads) == 1
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(first.found, second.found)
    assert (first.type_coverage, first.token_coverage) == (second.type_coverage, second.token_coverage)
    assert [file.suffix for file in own_folders.glob("vectors-*")] == [".npz"]  # no temporary file is left
    np.testing.assert_array_equal(
        load(path, corpus, seed=4).found, first.found
    )  # the seed only matters for words without a vector
    assert len(reads) == 1


def test_another_file_or_vocabulary_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    corpus = make_corpus(tmp_path)
    path = save(tmp_path, ["the", "king"])
    load(path, corpus)
    load(path, make_corpus(tmp_path, vocab_size=6))
    assert len(reads) == 2
    before = os.stat(path)
    save(tmp_path, ["the", "king"], seed=1)  # the same name and size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = load(path, corpus).vectors[corpus.vocabulary.ids["the"]]
    np.testing.assert_array_equal(changed, keyed(["the", "king"], seed=1)["the"])
    (tmp_path / "elsewhere").mkdir()
    load(save(tmp_path / "elsewhere", ["the", "king"]), corpus)
    assert len(reads) == 4


def test_the_arrays_beside_a_gensim_file_count(corpus: Corpus, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "vectors.kv"
    keyed(["the", "king"]).save(str(path), sep_limit=0)
    load(str(path), corpus)
    other = keyed(["the", "king"], seed=1)
    np.save(f"{path}.vectors.npy", other.vectors)
    os.utime(f"{path}.vectors.npy", ns=(1, 1))
    np.testing.assert_array_equal(load(str(path), corpus).vectors[corpus.vocabulary.ids["the"]], other["the"])
    assert len(reads) == 2


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"rows.npy") + 200] ^= 0xFF
    file.write_bytes(content)


def replace_arrays(**changed: object) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        with np.load(file) as arrays:
            kept = dict(arrays)
        kept.update({name: value(kept[name]) for name, value in changed.items()})  # type: ignore[operator]
        np.savez(file, **{name: value for name, value in kept.items() if value is not None})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_byte,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a zip file"),
        lambda file: file.write_bytes(gzip.compress(b"x")),
        replace_arrays(key=lambda key: np.array("another key")),
        replace_arrays(key=lambda key: np.array(["a", "b"])),
        replace_arrays(rows=lambda rows: None),
        replace_arrays(rows=lambda rows: rows[:-1]),
        replace_arrays(rows=lambda rows: rows.astype(np.float64)),
        replace_arrays(rows=lambda rows: rows[:, 0]),
        replace_arrays(rows=lambda rows: rows * np.nan),
        replace_arrays(rows=lambda rows: np.array([{}, {}], dtype=object)),  # a pickle
        replace_arrays(found=lambda found: found[:-1]),
        replace_arrays(found=lambda found: found.astype(np.int64)),
    ],
)
def test_a_damaged_cache_file_is_ignored_and_made_again(
    corpus: Corpus, tmp_path: Path, reads: list[Path], own_folders: Path, caplog: pytest.LogCaptureFixture, damage
) -> None:
    path = save(tmp_path, ["the", "king"])
    first = load(path, corpus)
    (file,) = own_folders.glob("vectors-*")
    damage(file)
    second = load(path, corpus)
    assert len(reads) == 2
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert "ignoring the" in caplog.text and str(file) in caplog.text
    load(path, corpus)
    assert len(reads) == 2  # the cache has been repaired


def test_a_cache_that_cannot_be_written_only_warns(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "file"))
    assert load(save(tmp_path, ["the"]), corpus).found.sum() == 1
    assert "the vectors are not cached" in caplog.text and "RNN_CACHE_DIR" in caplog.text


def test_a_full_disk_leaves_no_half_file(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    load(save(tmp_path, ["the"]), corpus)
    assert "No space left on device" in caplog.text
    assert list(own_folders.glob("vectors-*")) == []


def test_what_is_refused_is_not_kept(corpus: Corpus, tmp_path: Path, own_folders: Path) -> None:
    with pytest.raises(EmbeddingsError):
        load(save(tmp_path, ["THE"]), corpus)
    assert list(own_folders.glob("vectors-*")) == []


def test_the_usual_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNN_CACHE_DIR")
    monkeypatch.setenv("HOME", "/home/someone")
    assert embeddings.cache_folder() == Path("/home/someone/.cache/rnn-words")
