"""Vectors by name: gensim's downloader, what it stored on disk, and a network out of reach."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gensim.downloader
import numpy as np
import pytest
import tiny_vectors
from tiny_vectors import keyed, load, save

from rnnlm.data import embeddings
from rnnlm.data.corpus import Corpus
from rnnlm.data.embeddings import EmbeddingsError, EmbeddingsUnavailable

HANG_S = 30.0  # far longer than anything here takes: it detects a hang
own_folders, corpus = tiny_vectors.own_folders, tiny_vectors.corpus  # fixtures


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
    """Serve the two addresses that gensim's downloader uses, with one model, on this machine."""
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
        rows = embeddings._Rows(np.zeros((2, 3), np.float32), np.ones(2, bool), 0)
        embeddings._save_cached(own_folders / "vectors-x.npz", "key", rows)
    assert list(own_folders.iterdir()) == []
