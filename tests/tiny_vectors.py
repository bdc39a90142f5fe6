"""What the tests of embeddings share: a tiny corpus, and vectors files for some of its words."""

from __future__ import annotations

import functools
from pathlib import Path

import gensim.downloader
import numpy as np
import pytest
from gensim.models import KeyedVectors

from rnnlm.data.corpus import Corpus, load_corpus
from rnnlm.data.embeddings import load_embeddings

TEXT = "the king sat. the queen sat. the king died. the old dog barked. " * 6 + "the cat. "


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache and a download folder for this test only. Returns the cache."""
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GENSIM_DATA_DIR", str(tmp_path / "gensim-data"))
    monkeypatch.setattr(gensim.downloader, "BASE_DIR", str(tmp_path / "gensim-data"))  # read when gensim was imported
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path)


def make_corpus(folder: Path, text: str = TEXT, **options: int) -> Corpus:
    path = folder / "text.txt"
    path.write_text(text)
    return load_corpus(str(path), **options)


def keyed(words: list[str], size: int = 7, seed: int = 0) -> KeyedVectors:
    vectors = KeyedVectors(size)
    vectors.add_vectors(words, np.random.default_rng(seed).normal(0, 0.25, (len(words), size)).astype(np.float32))
    return vectors


def save(folder: Path, words: list[str], name: str = "vectors.bin", **options: int) -> str:
    keyed(words, **options).save_word2vec_format(str(folder / name), binary=True)
    return str(folder / name)


load = functools.partial(load_embeddings, size=7, seed=3)
