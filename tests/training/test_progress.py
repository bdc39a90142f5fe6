"""What long work shows of itself: bars on a terminal, plain lines elsewhere; and results that survive Ctrl-C."""

from __future__ import annotations

import io
import itertools
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gensim
import pytest
from running import BACKENDS, options, train
from trainers import CTrainer, small_run

from rnnlm import progress
from rnnlm.data import embeddings, vector_files, word2vec
from rnnlm.data.corpus import load_corpus
from rnnlm.signals import Deferred
from rnnlm.training import loop


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_terminal_each_long_part_has_plain_lines(
    backend: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    chosen = options(text, tmp_path / "model", embeddings="train", epochs=1)
    result = train(backend, *chosen, RNN_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 0 and "\r" not in result.stderr
    size = text.stat().st_size
    for start in (
        f"reading train: 100% of {size:,} bytes, ",
        "training word2vec: ",
        "evaluating on validation: ",
        "training: ",
    ):
        assert any(line.startswith(start) for line in result.stderr.splitlines()), start
    last = [line for line in result.stderr.splitlines() if line.startswith("training: ")][-1]
    assert "training: 100% of" in last and "epoch 1.00/1, loss" in last and "0.0 s left" in last
    vectors = [line for line in result.stderr.splitlines() if line.startswith("training word2vec: ")]
    assert vectors[-1].startswith("training word2vec: 100% of") and "0.0 s left" in vectors[-1]


def test_a_line_comes_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    seconds = itertools.count(0.0, 1.0)
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with progress.progress("counting", 1000, "sheep") as shown:
        for _ in range(100):
            shown.advance(5, "calm")
    assert caplog.messages == [
        "counting: 15% of 1,000 sheep, 5/s, calm, 3 min left",
        "counting: 30% of 1,000 sheep, 5/s, calm, 2 min left",
        "counting: 45% of 1,000 sheep, 5/s, calm, 2 min left",
    ]
    caplog.clear()
    with progress.progress("counting", 0, "sheep") as shown:
        for _ in range(31):
            shown.advance(5)
    assert caplog.messages == ["counting: 150 sheep, 5/s"]


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
    with progress.progress("counting", 10, "sheep", done=4, keep=True) as shown:
        shown.advance(3, "calm")
        shown.advance(3)
    drawn = sys.stderr.getvalue().split("\r")
    assert "40%" in drawn[1] and "100%" in drawn[-1] and "10.0/10.0" in drawn[-1] and "calm" in drawn[-1]
    assert not caplog.messages


def test_nothing_is_shown_where_nothing_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, and in processes other than the first."""
    logging.getLogger().setLevel(logging.WARNING)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for stderr in (Terminal(), None):
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress.progress("counting", 10, "sheep") as shown:
            shown.advance(10)
        assert stderr is None or stderr.getvalue() == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_evaluation_reports_every_token_once(backend: str, tmp_path: Path) -> None:
    from trainers import TRAINERS

    for precision in ("float32", "bfloat16"):
        one = small_run(TRAINERS[backend], tmp_path, precision=precision)
        counts: list[int] = []
        one.trainer.evaluate(one.validation, counts.append)
        assert sum(counts) == one.validation.size - 1


def test_the_first_evaluation_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    original = loop.progress
    monkeypatch.setattr(loop, "progress", lambda what, *rest: (shown.append(what), original(what, *rest))[1])
    loop.train(small_run(CTrainer, tmp_path, epochs=1))
    assert shown == ["evaluating on validation"] * 2


# ---- Results that survive Ctrl-C


def test_vectors_that_are_trained_are_kept_whenever_ctrl_c_comes(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    corpus = load_corpus(str(text), vocab_size=14)
    save = embeddings._save_cached

    def interrupted(*arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "_save_cached", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embeddings.load_embeddings("train", corpus, size=8, seed=1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(embeddings, "_train", lambda *_: pytest.fail("trained again"))
    assert embeddings.load_embeddings("train", corpus, size=8, seed=1).found.all()


def test_ctrl_c_while_vectors_are_trained_ends_the_training(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    corpus = load_corpus(str(text), vocab_size=14)
    monkeypatch.setattr(word2vec, "_TRAINED_TOKENS", 90 * len(corpus.whole_train))
    advance, calls = progress.Progress.advance, itertools.count(1)

    def stop(self: progress.Progress, count: int, note: str = "") -> None:
        advance(self, count, note)
        call = next(calls)
        if call == 5:
            signal.raise_signal(signal.SIGINT)
        elif call > 5:
            time.sleep(0.05)  # leave time to stop

    monkeypatch.setattr(progress.Progress, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        embeddings.load_embeddings("train", corpus, size=8, seed=1)
    assert not list((tmp_path / "cache").glob("vectors-*"))
    assert next(calls) < 140  # of 180: both halves have stopped


@pytest.mark.parametrize("window", [2, 5])
def test_a_half_of_the_vectors_that_fails_ends_the_other(
    window: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNN_CACHE_DIR", str(tmp_path / "cache"))
    corpus = load_corpus(str(text), vocab_size=14)
    monkeypatch.setattr(word2vec, "_TRAINED_TOKENS", 90 * len(corpus.whole_train))
    advance, calls = progress.Progress.advance, itertools.count(1)
    train = gensim.models.Word2Vec

    def fail(sentences: word2vec.Sentences, **settings: Any) -> Any:
        if settings["window"] == window:
            raise MemoryError("no room")
        return train(sentences, **settings)

    def count(self: progress.Progress, count: int, note: str = "") -> None:
        next(calls)
        advance(self, count, note)
        time.sleep(0.05)  # leave time to stop

    monkeypatch.setattr(progress.Progress, "advance", count)
    monkeypatch.setattr("gensim.models.Word2Vec", fail)
    with pytest.raises(MemoryError, match="no room"):
        embeddings.load_embeddings("train", corpus, size=8, seed=1)
    assert next(calls) < 50  # of 90


def test_signals_wait_only_from_defer_on_and_only_in_the_main_thread() -> None:
    with pytest.raises(KeyboardInterrupt), Deferred():
        signal.raise_signal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), Deferred() as signals:
        signals.defer()
        signals.defer()
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def elsewhere() -> None:
        with Deferred() as signals:
            signals.defer()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_reading_vectors_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(vector_files, "_SHOWN_ROWS", 2)
    for header, total in (("", ""), ("5 2\n", " of 5")):
        caplog.clear()
        (tmp_path / "vectors.txt").write_text(header + "".join(f"w{i} 0.5 {i}.25\n" for i in range(5)))
        vector_files.read_vectors(tmp_path / "vectors.txt", ["w1"], None)
        assert len(caplog.messages) == 2 and all(f"{total} rows, " in line for line in caplog.messages)
        assert caplog.messages[1].startswith("reading vectors: 80% of" if total else "reading vectors: 4 rows")
