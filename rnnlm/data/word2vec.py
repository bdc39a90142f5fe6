"""Word vectors trained on a corpus, by gensim's word2vec (Mikolov et al. 2013).

A vector has two halves, trained at the same time. The near half learns from the two words on either side, and knows
what a word does in a sentence. The topic half learns from five after most occurrences of the frequent words have been
dropped, and knows what a word is about. An RNN reads both better than one vector of the same size.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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
_BOTH = {"sg": 0, "min_count": 1, "workers": 1}  # with more workers the updates would not follow from the seed alone
_NEAR = {"window": 2, "negative": 3}
_TOPIC = {"window": 5, "negative": 10}
# A word is thinned out if its share of the topic half's text is larger, or if a short text has it more than ten times.
_FREQUENT, _FREQUENT_COUNT = 1e-5, 10
# A short text needs more passes: on demo, 5, 20, 40 and 100 passes give 1049, 579, 462 and 437 (window 5), and on
# WikiText-2 5 and 20 passes give 481 and 393 (window 2, an RNN trained on a quarter of the text). At the rate that
# word2vec.c has for CBOW, twice gensim's, half as many do: an epoch of 100 units over WikiText-2 gives 353.0 with 25
# passes at 0.05, 354.0 with 50 at 0.025, 354.7 with 25. A text that is read _MAX_PASSES times keeps gensim's rate.
_TRAINED_TOKENS, _MIN_PASSES, _MAX_PASSES = 42_000_000, 5, 100
_RATE, _RATE_OF_SHORT_TEXT = 0.05, 0.025
_SHOWN_TOKENS = 10_000  # are read between two drawings of the bar
_MAX_SENTENCE = 10_000  # gensim silently drops the rest of a longer sentence (MAX_WORDS_IN_BATCH)
_POLL_SECONDS = 0.2  # Windows delivers a Ctrl-C only between two waits


class Sentences:
    """The training split as gensim wants it: lists of words, each with `<EOS>` at its end, as often as it asks.

    It asks once for the vocabulary, then for each pass of the training. After `ended` is set there are no more.
    """

    def __init__(self, corpus: Corpus, shown: Progress, ended: threading.Event) -> None:
        self._asked, self._shown, self._ended = False, shown, ended
        self.words = np.array(corpus.vocabulary.words, dtype=object)
        self.ids = corpus.whole_train
        self.ends = np.append(np.flatnonzero(self.ids == corpus.vocabulary.eos) + 1, len(self.ids))

    def __iter__(self) -> Iterator[list[str]]:
        trained, self._asked = self._asked, True
        start = shown = 0
        for end in self.ends.tolist():
            while start < end:
                stop = min(end, start + _MAX_SENTENCE)
                yield self.words[self.ids[start:stop]].tolist()
                start = stop
            if trained and (start - shown >= _SHOWN_TOKENS or start == len(self.ids)):
                self._shown.advance(start - shown)
                shown = start
            if self._ended.is_set():
                return


def settings(corpus: Corpus, size: int, seed: int) -> list[dict[str, Any]]:
    """Return everything that decides the vectors, besides the text and gensim's version: what each half is made with.

    size: how many numbers the halves have together. With 1 there is no topic half.
    """
    tokens = len(corpus.whole_train)
    passes = min(max(-(-_TRAINED_TOKENS // tokens), _MIN_PASSES), _MAX_PASSES)
    both = {
        **_BOTH,
        "epochs": passes,
        "alpha": _RATE if passes < _MAX_PASSES else _RATE_OF_SHORT_TEXT,
        "seed": seed % (1 << 32),  # gensim takes no more
    }
    frequent = min(max(_FREQUENT, _FREQUENT_COUNT / tokens), 0.5)  # 1 and more would be a count for gensim
    halves = [
        {**both, **_NEAR, "vector_size": (size + 1) // 2},
        {**both, **_TOPIC, "vector_size": size // 2, "sample": frequent},
    ]
    return [half for half in halves if half["vector_size"]]


def train(corpus: Corpus, halves: list[dict[str, Any]], signals: Deferred) -> tuple[F32, Mask]:
    """Return the vectors (V, E) of a corpus's vocabulary, and which words have one, (V,).

    halves: of `settings`. The topic half is scaled to the standard deviation of the near one. `<UNK>` has no vector,
    but zeros, if it stands only for words of the other splits.
    signals: are put off once the vectors are trained, so that these minutes are not lost before the result is saved.
    Raises EmbeddingsError (word2vec diverged).
    """
    ended, passes = threading.Event(), halves[0]["epochs"]
    total = len(halves) * passes * len(corpus.whole_train)
    log.info(f"training word2vec on {len(corpus.whole_train):,} tokens, {passes} times over")
    with (
        quiet_gensim(),
        progress("training word2vec", total, "tokens") as shown,
        ThreadPoolExecutor(len(halves)) as threads,
    ):
        parts = [threads.submit(_half, corpus, half, Sentences(corpus, shown, ended)) for half in halves]
        try:
            running = set(parts)
            while running:
                done, running = wait(running, _POLL_SECONDS, FIRST_EXCEPTION)
                for part in done:
                    part.result()
            signals.defer()
        finally:
            ended.set()  # Ctrl-C, and the failure of one half, end the other
    found = parts[0].result()[1]
    vectors = [part.result()[0] for part in parts]
    if not all(np.isfinite(half).all() for half in vectors):
        raise EmbeddingsError("word2vec diverged on this corpus: its vectors are not finite")
    scale = vectors[0][found].std()
    for half in vectors[1:]:
        half *= scale / (half[found].std() or 1)
    return np.hstack(vectors), found


def _half(corpus: Corpus, half: dict[str, Any], sentences: Sentences) -> tuple[F32, Mask]:
    from gensim.models import Word2Vec

    words = corpus.vocabulary.words
    model = Word2Vec(sentences, **half)
    rows = np.array([model.wv.key_to_index.get(word, -1) for word in words])
    found = rows >= 0
    vectors = np.zeros((len(words), half["vector_size"]), dtype=np.float32)
    vectors[found] = model.wv.vectors[rows[found]]
    return vectors, found


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
