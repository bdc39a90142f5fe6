"""The n-gram yardstick against the formula, word by word."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from conftest import WIKITEXT, needs_wikitext

from bench.ngram import KneserNey
from rnnlm.data.corpus import load_corpus
from rnnlm.training.run import unigram_perplexity


def plainly(train: list[int], vocab: int, order: int, history: list[int], word: int) -> float:
    """P(word | history) by the formula of bench/ngram.py, with dictionaries."""
    p = 1.0 / vocab
    for n in range(1, order + 1):
        context = tuple(history[len(history) - n + 1 :])
        if len(context) < n - 1:
            return p
        if n == order:
            grams = Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1))
        else:  # in how many contexts
            longer = {tuple(train[i : i + n + 1]) for i in range(len(train) - n)}
            grams = Counter(gram[1:] for gram in longer)
        ones, twos = (sum(count == k for count in grams.values()) for k in (1, 2))
        discount = ones / (ones + 2 * twos) if ones else 0.0
        here = {gram: count for gram, count in grams.items() if gram[:-1] == context}
        if total := sum(here.values()):
            gram = (*context, word)
            p = max(here.get(gram, 0) - discount, 0) / total + discount * len(here) / total * p
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_is_the_formula(order: int) -> None:
    train = (np.random.default_rng(0).zipf(1.6, 150) % 9).tolist()
    model = KneserNey(np.array(train), 11, order)
    text = [0, 1, 1, 2, 10, 1, 3, 9, 1, 1, 1, 2, 0]  # 9 and 10 were never seen
    want = [plainly(train, 11, order, text[:i], word) for i, word in enumerate(text)]
    assert model.probabilities(np.array(text)) == pytest.approx(np.array(want), rel=1e-12)


@pytest.mark.parametrize("exponent", [1.3, 1.6, 3.0])
def test_the_yardstick_that_a_run_keeps_is_the_unigram_model(exponent: float) -> None:
    train, text = (np.random.default_rng(seed).zipf(exponent, 400) % 300 for seed in (0, 1))
    counts = np.bincount(train, minlength=310)
    assert unigram_perplexity(counts, text) == pytest.approx(KneserNey(train, 310, 1).perplexity(text), rel=1e-9)


@pytest.mark.parametrize("counts", [[4, 2, 0], [3, 3, 3], [1, 1, 1], [5, 0, 0]])
def test_no_word_is_impossible_to_the_yardstick(counts: list[int]) -> None:
    """Where no word occurs once, the discount cannot be estimated."""
    assert 1 < unigram_perplexity(np.array(counts), np.array([0, 2, 1, 0, 2])) < 1000


@pytest.mark.parametrize("history", [[], [1], [1, 1, 1], [2, 1, 3, 4, 5], [11, 1], [11]])
def test_probabilities_sum_to_one(history: list[int]) -> None:
    model = KneserNey(np.random.default_rng(1).zipf(1.5, 400) % 11, 12, 4)
    total = sum(model.probabilities(np.array([*history, word]))[-1] for word in range(12))
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
@needs_wikitext
def test_wikitext_2() -> None:
    corpus = load_corpus(f"{WIKITEXT}:wikitext-2-v1", vocab_size=None)
    model = KneserNey(corpus.train, len(corpus.vocabulary), 5)
    assert model.perplexity(corpus.validation) == pytest.approx(387.0, abs=0.5)
