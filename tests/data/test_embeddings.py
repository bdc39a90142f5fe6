"""Vectors for a vocabulary: where they come from, what fills the gaps, what is kept between runs, and every refusal."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gensim.downloader
import numpy as np
import pytest
from conftest import WIKITEXT, needs_wikitext
from gensim.models import KeyedVectors

from rnnlm.data import embeddings
from rnnlm.data.corpus import Corpus, load_corpus
from rnnlm.data.embeddings import Embeddings, EmbeddingsError, EmbeddingsUnavailable, load_embeddings
from rnnlm.data.text import EOS, UNK

TEXT = "the king sat. the queen sat. the king died. the old dog barked. " * 6 + "the cat. "
HANG_S = 30.0  # far beyond what anything here takes: it only tells a hang


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a download folder of the test's own. Returns the cache."""
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("GENSIM_DATA_DIR", str(tmp_path / "gensim-data"))
    monkeypatch.setattr(gensim.downloader, "BASE_DIR", str(tmp_path / "gensim-data"))  # which it read when imported
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
    assert len({row.tobytes() for row in found.vectors}) == len(words)  # no two alike
    assert found.source == path


def test_coverage_by_type_and_by_token(corpus: Corpus, tmp_path: Path) -> None:
    # 23 sentences to train on: the 23, king 12, dog 5 of 87 tokens; 9 words and <UNK> (for "cat") make 10 types.
    found = load(save(tmp_path, ["dog", "the", "king"]), corpus)
    counts = dict(zip(corpus.vocabulary.words, corpus.counts.tolist(), strict=True))
    assert found.type_coverage == 3 / len(counts)
    assert found.token_coverage == (counts["the"] + counts["king"] + counts["dog"]) / len(corpus.train)
    assert f"{found.type_coverage:.2%} of the {len(counts)} words" in found.report()
    assert f"{found.token_coverage:.2%} of the training tokens" in found.report()


def test_random_vectors_have_the_scale_of_those_found(tmp_path: Path) -> None:
    names = [f"{a}{b}{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"]
    corpus = make_corpus(tmp_path, " ".join(names) + ". end.")
    vectors = keyed(names[:256], size=50)
    vectors.vectors += 1  # a standard deviation is about the mean, and not about zero
    vectors.save_word2vec_format(str(tmp_path / "vectors.bin"), binary=True)
    found = load(str(tmp_path / "vectors.bin"), corpus)
    known, random = found.vectors[found.found], found.vectors[~found.found]
    assert len(random) > 250
    assert random.std() == pytest.approx(known.std(), rel=0.03)  # of 12,850 draws
    assert abs(random.mean()) < 0.01


def test_a_random_vector_depends_on_its_word_the_seed_and_the_scale_alone(tmp_path: Path) -> None:
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


# ---- Between runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The vectors files that were really read."""
    read, paths = embeddings.read_vectors, []
    monkeypatch.setattr(embeddings, "read_vectors", lambda path, words: paths.append(path) or read(path, words))
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
    assert [file.suffix for file in own_folders.glob("vectors-*")] == [".npz"]  # and no temporary file
    np.testing.assert_array_equal(load(path, corpus, seed=4).found, first.found)  # the seed is for the others
    assert len(reads) == 1


def test_another_file_or_vocabulary_is_read_anew(tmp_path: Path, reads: list[Path]) -> None:
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
    assert len(reads) == 2  # it is whole again


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


# ---- Trained on the corpus -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Forget what is cached."""
    folders = (str(tmp_path / f"cache-{i}") for i in range(100))
    return lambda: monkeypatch.setenv("RNN_CACHE_DIR", next(folders))


def test_trained_vectors_cover_the_training_split(corpus: Corpus) -> None:
    found = load("train", corpus, size=11)
    assert found.vectors.shape == (len(corpus.vocabulary), 11)
    missing = [corpus.vocabulary.words[i] for i in np.flatnonzero(~found.found)]
    assert missing == [UNK]  # which only stands for the words of the validation split
    assert found.token_coverage == 1.0
    assert np.isfinite(found.vectors).all()


def test_training_is_decided_by_the_seed(
    tmp_path: Path, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_MAX_EPOCHS", 5)
    # Long enough that gensim deals it out in several jobs, which more than one worker would finish in any order.
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


def test_no_word_of_a_very_long_sentence_is_dropped(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c for a in letters for b in letters for c in letters][:12_000]
    corpus = make_corpus(tmp_path, " ".join(words) + ". the end.")
    assert list(map(len, embeddings._Sentences(corpus))) == [10_000, 2_001]
    assert load("train", corpus, size=2).token_coverage == 1.0


def test_sentences_are_what_the_corpus_holds(corpus: Corpus) -> None:
    sentences = list(embeddings._Sentences(corpus))
    assert sentences[:2] == [["the", "king", "sat", EOS], ["the", "queen", "sat", EOS]]
    assert sum(map(len, sentences)) == len(corpus.whole_train)
    assert sentences == list(embeddings._Sentences(corpus))


def test_training_learns_who_keeps_what_company(tmp_path: Path, fresh: Callable[[], None]) -> None:
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


# ---- gensim's downloader ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "why_unreachable", lambda _: pytest.fail("it asked the network"))


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_on_disk_needs_no_network(corpus: Corpus, tmp_path: Path, no_network: None, binary: bool) -> None:
    folder = tmp_path / "gensim-data" / "tiny-vectors-7"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('this is never run')")
    keyed(["the", "king"]).save_word2vec_format(str(folder / "tiny-vectors-7.gz"), binary=binary)
    found = load("tiny-vectors-7", corpus)
    assert found.found.sum() == 2
    assert found.source == "tiny-vectors-7"


def test_a_name_in_the_folder_with_another_file(corpus: Corpus, tmp_path: Path, no_network: None) -> None:
    folder = tmp_path / "gensim-data" / "tiny"
    folder.mkdir(parents=True)
    with pytest.raises(EmbeddingsError, match=r"holds no tiny\.gz: remove the folder"):
        load("tiny", corpus)
    save(folder, ["the"], name="model.bin")
    assert load("tiny", corpus).found.sum() == 1


@pytest.mark.parametrize("name", ["word2vec-google-news-300", "no-such-vectors"])
def test_out_of_reach_is_one_line_at_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(gensim.downloader, "DATA_LIST_URL", "http://127.0.0.1:9/list.json")
    begun = time.monotonic()
    with pytest.raises(EmbeddingsUnavailable) as caught:
        load(name, corpus)
    assert time.monotonic() - begun < HANG_S
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        repr(name),
        "gensim-data",
        "http://127.0.0.1:9/list.json: Connection refused",
        "--embeddings train",
        "PATH",
    ):
        assert part in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("source", ["vectors.bin", "no/such/file", "../up", "/tmp", ".", "", "v.txt.gz", "Ünïcode"])
def test_a_path_that_leads_nowhere(corpus: Corpus, no_network: None, source: str) -> None:
    with pytest.raises(EmbeddingsError, match=r"no vectors file '.*': --embeddings takes a file, a name of"):
        load(source, corpus)


def test_a_name_too_long_for_a_file(corpus: Corpus) -> None:
    with pytest.raises(EmbeddingsError, match=r"cannot read vectors 'x{300}.*': File name too long"):
        load("x" * 5000, corpus)


def test_a_damaged_file_is_named(corpus: Corpus, tmp_path: Path) -> None:
    path = Path(save(tmp_path, ["the", "king"]))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EmbeddingsError, match=rf"'{path}' is cut short in row 2 of 2, at byte 36"):
        load(str(path), corpus)


@contextmanager
def downloads(folder: Path, vectors: bytes, checksum: str) -> Iterator[str]:
    """The two addresses that gensim's downloader uses, with one model, served on this machine."""
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "__init__.py").write_text("raise SystemExit('this is never run')")
    (folder / "tiny" / "tiny.gz").write_bytes(vectors)
    model = {"file_name": "tiny.gz", "parts": 1, "checksum": checksum}
    (folder / "list.json").write_text(json.dumps({"corpora": {"text8": {}}, "models": {"tiny": model}}))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    return gzip.compress(Path(save(tmp_path, ["the", "king"])).read_bytes())


def fetch_from(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gensim.downloader, "DATA_LIST_URL", f"{address}/list.json")
    monkeypatch.setattr(gensim.downloader._load_info, "__defaults__", (f"{address}/list.json", "utf-8"))
    monkeypatch.setattr(gensim.downloader, "DOWNLOAD_BASE_URL", address)


@pytest.fixture
def served(tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with downloads(tmp_path / "served", packed, hashlib.md5(packed).hexdigest()) as address:
        fetch_from(address, monkeypatch)
        yield


def test_a_download(
    corpus: Corpus, tmp_path: Path, served: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load("tiny", corpus)
    assert found.found.sum() == 2
    assert capsys.readouterr().out == ""  # progress goes to stderr
    monkeypatch.setattr(embeddings, "why_unreachable", lambda _: pytest.fail("it asked the network"))
    np.testing.assert_array_equal(load("tiny", corpus).vectors, found.vectors)
    assert (tmp_path / "gensim-data" / "tiny" / "tiny.gz").is_file()


@pytest.mark.parametrize("name", ["tinier", "text8"])
def test_a_name_that_the_downloader_does_not_know_lists_those_it_does(corpus: Corpus, served: None, name: str) -> None:
    with pytest.raises(EmbeddingsError, match=f"does not know '{name}'; it knows tiny$"):
        load(name, corpus)


def test_a_download_that_arrives_damaged(
    corpus: Corpus, tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with downloads(tmp_path / "served", packed, "0" * 32) as address:
        fetch_from(address, monkeypatch)
        with pytest.raises(EmbeddingsUnavailable, match=r"downloading 'tiny' failed: .*Checksum comparison failed"):
            load("tiny", corpus)
    assert not (tmp_path / "gensim-data" / "tiny").exists()


def test_ctrl_c_leaves_no_half_file(own_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    own_folders.mkdir()
    with pytest.raises(KeyboardInterrupt):
        embeddings._save_cached(own_folders / "vectors-x.npz", "key", np.zeros((2, 3), np.float32), np.ones(2, bool))
    assert list(own_folders.iterdir()) == []
