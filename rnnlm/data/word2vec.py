"""Word vectors trained on a corpus, by gensim's word2vec (Mikolov et al. 2013).

A vector has two halves, trained at the same time. The near half uses a window of two words and captures grammar. The
topic half uses a window of five, drops most occurrences of frequent words, and captures the subject. An RNN reaches a
lower perplexity with both than with one vector of the same size. Short texts have the near half only.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnlm.arrays import F32, Mask
from rnnlm.data.corpus import Corpus
from rnnlm.data.vector_files import EmbeddingsError
from rnnlm.progress import Progress, progress
from rnnlm.signals import Deferred

log = logging.getLogger(__name__)

# Chosen by the validation perplexity of an RNN that uses the vectors: docs/results.md has the trials. CBOW, because
# skip-gram, with equal passes, is only a little better and takes three times as long.
_BOTH = {"sg": 0, "min_count": 1, "workers": 1}  # several workers would update in no fixed order
_NEAR = {"window": 2, "sample": 1e-3}  # sample: above 2.6 times this share of the text, gensim drops occurrences
_TOPIC = {"window": 5, "sample": 1e-5}
_NEGATIVE, _NEGATIVE_OF_TOPIC, _NEGATIVE_ALONE = 3, 10, 5  # with 3 and 10 both halves take about the same time
# A short text needs more passes: on demo, 5, 20, 40 and 100 passes give 1049, 579, 462 and 437 (window 5), and on
# WikiText-2 5 and 20 passes give 481 and 393 (window 2, an RNN trained on a quarter of the text). At the rate that
# word2vec.c has for CBOW, twice gensim's, half as many do: an epoch of 100 units over WikiText-2 gives 353.0 with 25
# passes at 0.05, 354.0 with 50 at 0.025, 354.7 with 25. A text that is read _MAX_PASSES times keeps gensim's rate, and
# has no topic half, which brings nothing there: demo reaches 131.5 with one and 132.0 without, on average over three
# seeds, which differ by more.
_TRAINED_TOKENS, _MIN_PASSES, _MAX_PASSES = 42_000_000, 5, 100
_RATE, _RATE_OF_SHORT_TEXT = 0.05, 0.025
_SHOWN_TOKENS = 10_000  # are read between two drawings of the bar
_MAX_SENTENCE = 10_000  # gensim silently drops the rest of a longer sentence (MAX_WORDS_IN_BATCH)
_POLL_SECONDS = 0.2  # Python may handle Ctrl-C only between two waits, on Windows always
_END_SECONDS = 2.0  # to wait for threads that were asked to stop


class Sentences:
    """The training split as gensim wants it: lists of words, each with `<EOS>` at its end, as often as it asks.

    gensim iterates once to count the words, then once for each pass. Iteration stops once `ended` is set. An exception
    would end gensim's reading thread and leave the others waiting forever, so it is stored in `error` instead.
    """

    def __init__(self, corpus: Corpus, shown: Progress, ended: threading.Event) -> None:
        self._asked, self._shown, self._ended = False, shown, ended
        self.error: Exception | None = None
        self.words = np.array(corpus.vocabulary.words, dtype=object)
        self.ids = corpus.whole_train
        self.ends = np.append(np.flatnonzero(self.ids == corpus.vocabulary.eos) + 1, len(self.ids))

    def __iter__(self) -> Iterator[list[str]]:
        try:
            yield from self._read()
        except Exception as error:
            self.error = error

    def _read(self) -> Iterator[list[str]]:
        trained, self._asked = self._asked, True
        start = shown = 0
        for end in self.ends.tolist():
            while start < end:
                stop = min(end, start + _MAX_SENTENCE)
                yield self.words[self.ids[start:stop]].tolist()
                if self._ended.is_set():
                    return
                start = stop
                if trained and (start - shown >= _SHOWN_TOKENS or start == len(self.ids)):
                    self._shown.advance(start - shown)
                    shown = start


def settings(corpus: Corpus, size: int, seed: int) -> list[dict[str, Any]]:
    """Return everything that decides the vectors, besides the text and gensim's version: how each half is made.

    size: how many numbers a vector has. A size of 1 and a short text have the near half only.
    """
    passes = min(max(-(-_TRAINED_TOKENS // len(corpus.whole_train)), _MIN_PASSES), _MAX_PASSES)
    both = {**_BOTH, "epochs": passes, "seed": seed % (1 << 32)}  # gensim takes no larger seed
    if passes == _MAX_PASSES or size == 1:
        rate = _RATE_OF_SHORT_TEXT if passes == _MAX_PASSES else _RATE
        return [{**both, **_NEAR, "negative": _NEGATIVE_ALONE, "alpha": rate, "vector_size": size}]
    both["alpha"] = _RATE
    return [
        {**both, **_NEAR, "negative": _NEGATIVE, "vector_size": (size + 1) // 2},
        {**both, **_TOPIC, "negative": _NEGATIVE_OF_TOPIC, "vector_size": size // 2},
    ]


def train(corpus: Corpus, halves: list[dict[str, Any]], signals: Deferred) -> tuple[F32, Mask]:
    """Return the vectors (V, E) of a corpus's vocabulary, and which words have one, (V,).

    halves: what `settings` returned. The topic half is scaled to the standard deviation of the near one. Words that
    the training split lacks have no vector, but zeros.
    signals: deferred once the vectors are trained, so that Ctrl-C cannot lose them before they are saved.
    Raises EmbeddingsError (word2vec diverged).
    """
    passes, ended = halves[0]["epochs"], threading.Event()
    total = len(halves) * passes * len(corpus.whole_train)
    each = " for each half" if len(halves) > 1 else ""
    log.info(f"training word2vec on {len(corpus.whole_train):,} tokens, {passes} times over{each}")
    with quiet_gensim(), progress("training word2vec", total, "tokens") as shown:
        running = [_Half(corpus, half, Sentences(corpus, shown, ended)) for half in halves]
        try:
            for half in running:
                half.start()
            alive = running
            while alive:
                alive[0].join(_POLL_SECONDS)
                alive = [half for half in running if half.is_alive()]
                for half in running:
                    half.check()
            signals.defer()
        finally:
            ended.set()  # after Ctrl-C or a failure, stop the other half
            for half in running:
                if half.is_alive():
                    half.join(_END_SECONDS)
    if not all(np.isfinite(half.vectors).all() for half in running):
        raise EmbeddingsError("word2vec diverged on this corpus: its vectors are not finite")
    near, found = running[0].vectors, running[0].found
    for half in running[1:]:
        half.vectors *= (near[found].std() or 1) / (half.vectors[found].std() or 1)
    return np.hstack([half.vectors for half in running]), found


class _Half(threading.Thread):
    """Trains one half, with one thread of gensim's.

    vectors: (V, half of E), zeros for words that were not found.   found: (V,).
    """

    def __init__(self, corpus: Corpus, settings: dict[str, Any], sentences: Sentences) -> None:
        super().__init__(daemon=True)  # like gensim's own threads, so that the program can exit
        self._settings, self._sentences = settings, sentences
        self._error: BaseException | None = None
        self.words = corpus.vocabulary.words
        self.vectors = np.zeros((len(self.words), settings["vector_size"]), dtype=np.float32)
        self.found = np.zeros(len(self.words), dtype=np.bool_)

    def run(self) -> None:
        try:
            from gensim.models import Word2Vec

            model = Word2Vec(self._sentences, **self._settings)
            rows = np.array([model.wv.key_to_index.get(word, -1) for word in self.words])
            self.found = rows >= 0
            self.vectors[self.found] = model.wv.vectors[rows[self.found]]
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise the exception that ended the thread, if there was one."""
        if error := self._sentences.error or self._error:
            raise error


@contextlib.contextmanager
def quiet_gensim() -> Iterator[None]:
    """Keep only gensim's fatal messages: it logs each step that it takes, and the network's failures as tracebacks."""
    logger = logging.getLogger("gensim")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
