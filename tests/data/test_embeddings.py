"""Vectors for a vocabulary: from a file, random for the words not in it, or trained on the corpus."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_vectors
from conftest import WIKITEXT, needs_wikitext
from tiny_vectors import TEXT, keyed, load, make_corpus, save

from rnnlm.data import embeddings, word2vec
from rnnlm.data.corpus import Corpus, load_corpus
from rnnlm.data.embeddings import Embeddings, EmbeddingsError, load_embeddings, root_lengths
from rnnlm.data.text import EOS, UNK
from rnnlm.progress import Progress

own_folders, corpus = tiny_vectors.own_folders, tiny_vectors.corpus  # fixtures


# ---- Found, not found ------------------------------------------------------------------------------------------------


def test_found_rows_are_the_files_and_the_rest_are_random(corpus: Corpus, tmp_path: Path) -> None:
    path = save(tmp_path, ["dog", "unneeded", "the", "king", "THE"])
    found = load(path, corpus)
    words = corpus.vocabulary.words
    assert isinstance(found, Embeddings)
    assert found.vectors.shape == (len(words), 7)
    assert found.vectors.dtype == np.float32 and found.vectors.flags.c_contiguous
    assert np.isfinite(found.vectors).all()
    assert {word for word, has in zip(words, found.found, strict=True) if has} == {"the", "king", "dog"}
    for word in ("the", "king", "dog"):
        np.testing.assert_array_equal(
            found.vectors[words.index(word)], keyed(["dog", "unneeded", "the", "king", "THE"])[word]
        )
    assert len({row.tobytes() for row in found.vectors}) == len(words)  # no two are equal
    assert found.source == path


def test_coverage_by_type_and_by_token(corpus: Corpus, tmp_path: Path) -> None:
    # 23 sentences to train on: the 23, king 12, dog 5 of 87 tokens; 9 words and <UNK> (for "cat") make 10 types.
    found = load(save(tmp_path, ["dog", "the", "king"]), corpus)
    counts = dict(zip(corpus.vocabulary.words, corpus.counts.tolist(), strict=True))
    assert found.type_coverage == 3 / len(counts)
    assert found.token_coverage == (counts["the"] + counts["king"] + counts["dog"]) / len(corpus.train)
    assert f"{found.type_coverage:.2%} of the {len(counts)} words" in found.report()
    assert f"{found.token_coverage:.2%} of the training tokens" in found.report()


def test_the_log_says_how_many_vectors_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"]
    corpus = make_corpus(tmp_path, " ".join(words) + ". end.")
    path = save(tmp_path, ["aaa"])
    load(path, corpus)
    assert f"reading the vectors of {len(corpus.vocabulary):,} words from {path}" in caplog.text
    assert len(corpus.vocabulary) > 1000


def test_random_vectors_have_the_scale_of_those_found(tmp_path: Path) -> None:
    names = [f"{a}{b}{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"]
    corpus = make_corpus(tmp_path, " ".join(names) + ". end.")
    vectors = keyed(names[:256], size=50)
    vectors.vectors += 1  # a standard deviation is relative to the mean, not to zero
    vectors.save_word2vec_format(str(tmp_path / "vectors.bin"), binary=True)
    found = load(str(tmp_path / "vectors.bin"), corpus, size=50)
    known, random = found.vectors[found.found], found.vectors[~found.found]
    assert len(random) > 250
    assert random.std() == pytest.approx(known.std(), rel=0.03)  # of 12,850 draws
    assert abs(random.mean()) < 0.01


def test_a_random_vector_depends_only_on_its_word_the_seed_and_the_scale(tmp_path: Path) -> None:
    path = save(tmp_path, ["the"])
    small = make_corpus(tmp_path, "the cat sat. the end.")
    large = make_corpus(tmp_path, "the old dog barked at the cat and sat. the end.")

    def vector(corpus: Corpus, word: str, seed: int = 3) -> np.ndarray:
        return load(path, corpus, seed=seed).vectors[corpus.vocabulary.ids[word]]

    for word in ("cat", "sat", EOS):
        np.testing.assert_array_equal(vector(small, word), vector(large, word))
    assert not np.array_equal(vector(small, "cat"), vector(small, "sat"))
    assert not np.array_equal(vector(small, "cat"), vector(small, "cat", seed=4))
    np.testing.assert_array_equal(vector(small, "the", seed=3), vector(small, "the", seed=4))


@pytest.mark.parametrize(
    ("words", "taken"),
    [(["the", "</s>"], "</s>"), (["</s>", "the", EOS], EOS), ([EOS, "</s>", "the"], EOS), (["the"], None)],
)
def test_the_sentence_end_takes_the_vector_of_word2vecs_own(
    corpus: Corpus, tmp_path: Path, words: list[str], taken: str | None
) -> None:
    found = load(save(tmp_path, words), corpus)
    eos = corpus.vocabulary.eos
    assert found.found[eos] == (taken is not None)
    if taken is not None:
        np.testing.assert_array_equal(found.vectors[eos], keyed(words)[taken])


@pytest.mark.parametrize(
    "words", [["THE", "König"], ["</s>", "König"]], ids=["nothing", "nothing but the sentence end"]
)
def test_vectors_for_none_of_the_words_are_refused(corpus: Corpus, tmp_path: Path, words: list[str]) -> None:
    path = save(tmp_path, words)
    with pytest.raises(EmbeddingsError, match=rf"'{path}' has a vector for none of the {len(corpus.vocabulary)} words"):
        load(path, corpus)


# ---- Trained on the corpus -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Switch to an empty cache folder at each call."""
    folders = (str(tmp_path / f"cache-{i}") for i in range(100))
    return lambda: monkeypatch.setenv("RNN_CACHE_DIR", next(folders))


def test_trained_vectors_cover_the_training_split(corpus: Corpus) -> None:
    found = load("train", corpus, size=11)
    assert found.vectors.shape == (len(corpus.vocabulary), 11)
    missing = [corpus.vocabulary.words[i] for i in np.flatnonzero(~found.found)]
    assert missing == [UNK]  # stands only for words of the validation split
    assert found.token_coverage == 1.0
    assert np.isfinite(found.vectors).all()


def test_training_is_decided_by_the_seed(
    tmp_path: Path, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word2vec, "_MAX_PASSES", 5)
    # Long enough for gensim to split it into several jobs, which several workers would finish in any order.
    random = np.random.default_rng(0)
    names = [f"{a}{b}" for a in "abcdefghijklmno" for b in "abcdefghijklmno"]
    corpus = make_corpus(tmp_path, ". ".join(" ".join(random.choice(names, 9)) for _ in range(3000)))
    first = load("train", corpus)
    fresh()
    again = load("train", corpus)
    fresh()
    other = load("train", corpus, seed=4)
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert not np.array_equal(first.vectors[first.found], other.vectors[other.found])


@pytest.mark.parametrize("size", [2, 7])
def test_both_halves_of_the_vectors_have_one_scale(
    corpus: Corpus, size: int, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    monkeypatch.setattr(word2vec, "_TRAINED_TOKENS", 20 * len(corpus.whole_train))
    found = load("train", corpus, size=size)
    near, topic = np.split(found.vectors[found.found], [(size + 1) // 2], axis=1)
    assert topic.shape[1] == size // 2
    assert topic.std() == pytest.approx(near.std(), rel=1e-4)
    fresh()
    np.testing.assert_array_equal(load("train", corpus, size=size).vectors, found.vectors)
    assert np.isfinite(load("train", corpus, size=1).vectors).all()


def test_a_short_text_has_no_topic_half(corpus: Corpus) -> None:
    def windows(tokens: int, size: int) -> list[int]:
        text = dataclasses.replace(corpus, whole_train=np.zeros(tokens, dtype=np.int32))
        return [half["window"] for half in word2vec.settings(text, size, 1)]

    assert windows(10, 300) == windows(400_000, 300) == windows(10_000_000, 1) == [2]
    assert windows(500_000, 2) == windows(100_000_000, 300) == [2, 5]


def test_vectors_that_are_not_finite_are_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(half: word2vec._Half) -> None:
        half.found[:] = True
        half.vectors[:] = np.inf

    monkeypatch.setattr(word2vec._Half, "run", diverge)
    with pytest.raises(EmbeddingsError, match="word2vec diverged on this corpus"):
        load("train", corpus)


@pytest.mark.parametrize("seed", [-1, 2**32 + 3, 10**30])
def test_seeds_of_any_size(corpus: Corpus, seed: int) -> None:  # gensim takes 32 bits
    assert np.isfinite(load("train", corpus, seed=seed).vectors).all()


def test_training_is_cached_by_text_size_and_seed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, runs = embeddings._train, []
    monkeypatch.setattr(embeddings, "_train", lambda *given: runs.append(given) or train(*given))
    for _ in range(2):
        load("train", corpus)
    assert len(runs) == 1
    load("train", corpus, size=8)
    load("train", corpus, seed=4)
    swapped = make_corpus(tmp_path, TEXT.replace("king sat", "sat king"))
    assert swapped.vocabulary.words == corpus.vocabulary.words
    load("train", swapped)
    assert len(runs) == 4


def test_training_sees_the_whole_split_whatever_max_tokens_is(tmp_path: Path, fresh: Callable[[], None]) -> None:
    whole = load("train", make_corpus(tmp_path))
    fresh()
    cut = load("train", make_corpus(tmp_path, max_tokens=5))
    np.testing.assert_array_equal(whole.vectors, cut.vectors)


def test_words_cut_from_the_vocabulary_are_learned_as_unk(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, vocab_size=5)
    found = load("train", corpus)
    assert found.found.all() and found.found[corpus.vocabulary.unk]


def make_sentences(corpus: Corpus, ended: threading.Event | None = None) -> word2vec.Sentences:
    return word2vec.Sentences(corpus, Progress("word2vec", 0, "tokens", 0, None), ended or threading.Event())


def sentences_of(corpus: Corpus) -> list[list[str]]:
    return list(make_sentences(corpus))


def test_no_word_of_a_very_long_sentence_is_dropped(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c for a in letters for b in letters for c in letters][:12_000]
    corpus = make_corpus(tmp_path, " ".join(words) + ". the end.")
    assert [len(sentence) for sentence in sentences_of(corpus)] == [10_000, 2_001]
    assert load("train", corpus, size=2).token_coverage == 1.0


def test_a_text_of_one_sentence_ends_when_it_is_told_to(corpus: Corpus) -> None:
    ended = threading.Event()
    long = dataclasses.replace(corpus, whole_train=np.full(35_000, corpus.vocabulary.ids["the"], dtype=np.int32))
    parts = iter(make_sentences(long, ended))
    assert len(next(parts)) == 10_000
    ended.set()
    assert list(parts) == []


def test_what_fails_in_a_thread_of_gensim_is_raised(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Progress, "advance", fail)
    with pytest.raises(OSError, match="No space left"):
        load("train", corpus)


def test_sentences_are_what_the_corpus_holds(corpus: Corpus) -> None:
    sentences = sentences_of(corpus)
    assert sentences[:2] == [["the", "king", "sat", EOS], ["the", "queen", "sat", EOS]]
    assert sum(map(len, sentences)) == len(corpus.whole_train)
    assert sentences == sentences_of(corpus)


def test_training_learns_which_words_go_together(tmp_path: Path, fresh: Callable[[], None]) -> None:
    random = np.random.default_rng(0)
    royal, canine = ["king", "queen", "crown", "throne"], ["dog", "bark", "bone", "tail"]
    text = ". ".join(" ".join(random.choice(royal if i % 2 else canine, 8)) for i in range(600))
    corpus = make_corpus(tmp_path, text)
    vectors = load("train", corpus, size=20).vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def likeness(a: str, b: str) -> float:
        return float(unit[corpus.vocabulary.ids[a]] @ unit[corpus.vocabulary.ids[b]])

    assert likeness("king", "queen") > likeness("king", "bone") + 0.3
    assert likeness("dog", "bone") > likeness("dog", "crown") + 0.3


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one(corpus: Corpus, size: int) -> None:
    with pytest.raises(EmbeddingsError, match=f"embedding size must be at least 1, got {size}"):
        load("train", corpus, size=size)


@pytest.mark.slow
@needs_wikitext
def test_wikitext_2_vectors_know_their_words() -> None:
    corpus = load_corpus(f"{WIKITEXT}:wikitext-2-v1")
    found = load("train", corpus, size=100)
    assert found.found.all()
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    ids = corpus.vocabulary.ids
    nearest = np.argsort(-(unit @ unit[ids["three"]]))[1:6]
    assert {corpus.vocabulary.words[i] for i in nearest} & {"two", "four", "five", "six"}


# ---- Lower case, random, sizes ---------------------------------------------------------------------------------------


def test_words_that_a_file_has_in_lower_case_only(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, "The King sat. THE king Sat. The end.")
    path = save(tmp_path, ["the", "The", "king", "sat"])
    for _ in range(2):  # the second time from the cache
        found = load(path, corpus)
        rows = dict(zip(corpus.vocabulary.words, found.vectors, strict=True))
        written = keyed(["the", "The", "king", "sat"])
        for word, own in (("The", "The"), ("THE", "the"), ("King", "king"), ("king", "king"), ("Sat", "sat")):
            np.testing.assert_array_equal(rows[word], written[own])
        assert found.lowered == 3 and ", 3 words in lower case" in found.report()  # THE, King, Sat


def test_random_vectors_need_no_file(corpus: Corpus, own_folders: Path) -> None:
    one, again, other = (load_embeddings("random", corpus, seed=seed, size=50) for seed in (1, 1, 2))
    assert one.vectors.shape == (len(corpus.vocabulary), 50) and not one.found.any()
    np.testing.assert_array_equal(one.vectors, again.vectors)
    assert not np.array_equal(one.vectors, other.vectors)
    assert one.vectors.std() == pytest.approx(0.4, rel=0.1) and len({row.tobytes() for row in one.vectors}) == len(
        one.vectors
    )
    assert load_embeddings("random", corpus, seed=1).vectors.shape[1] == 300
    assert one.report() == f"random: vectors of 50 for the {len(one.vectors)} words"
    assert not own_folders.exists() or not list(own_folders.glob("vectors-*"))


def test_a_size_that_the_file_contradicts(corpus: Corpus, tmp_path: Path) -> None:
    path = save(tmp_path, ["the", "king"])
    for _ in range(2):  # with and without the cache
        with pytest.raises(EmbeddingsError, match=rf"'{path}' holds vectors of 7, not 8: leave out --embedding-size"):
            load(path, corpus, size=8)
        assert load(path, corpus, size=None).vectors.shape[1] == load(path, corpus, size=7).vectors.shape[1] == 7


def test_root_lengths_keeps_directions_and_takes_the_root_of_lengths() -> None:
    directions = np.random.default_rng(0).standard_normal((50, 8))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = np.geomspace(0.01, 100.0, 50)
    given = (directions * lengths[:, None]).astype(np.float32)
    before = given.copy()
    got = root_lengths(given)
    assert got.dtype == np.float32 and got.flags.c_contiguous and np.array_equal(given, before)
    assert got.std() == pytest.approx(0.5, rel=1e-5)
    rooted = np.linalg.norm(got, axis=1)
    assert np.allclose(got / rooted[:, None], directions, atol=1e-5)
    assert np.allclose(rooted / rooted[0], np.sqrt(lengths / lengths[0]), rtol=1e-4)


def test_root_lengths_of_a_vector_without_a_length() -> None:
    got = root_lengths(np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32))
    assert not got[0].any() and got[1, 1] / got[1, 0] == pytest.approx(4 / 3)
    assert not root_lengths(np.zeros((2, 3), dtype=np.float32)).any()
