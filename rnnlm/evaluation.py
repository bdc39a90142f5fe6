"""How well a model predicts a text, which may be larger than memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rnnlm.arrays import F32, I32
from rnnlm.data.text import DROPPED_MARK, TokenStream, Vocabulary
from rnnlm.language_model import LanguageModel, perplexity

_SCORED_TOKENS = 1 << 14  # at a time, but for a longer line
_UNKNOWN, _DROPPED = -1, -2


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    tokens: those that it predicts, words and ends of sentences.   nats: their negative log-probability, in all.
    words: those of them that are words.
    unknown: words that the vocabulary lacks, which are read as <UNK>, or if there is none left out.
    dropped: words that the tokenizer makes no word of.
    """

    tokens: int = 0
    words: int = 0
    unknown: int = 0
    dropped: int = 0
    nats: float = 0.0

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation(
            self.tokens + other.tokens,
            self.words + other.words,
            self.unknown + other.unknown,
            self.dropped + other.dropped,
            self.nats + other.nats,
        )

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    @property
    def bits(self) -> float:
        """Bits per token, log2 of the perplexity."""
        return self.loss / math.log(2)


def evaluate(model: LanguageModel, text: Iterable[str], tokenizer: str) -> Evaluation:
    """Evaluate a text, which comes in pieces, each cut at white space, from a hidden state of zeros.

    The first token follows an <EOS>, as in a prompt. Takes the memory of a few thousand tokens.
    """
    return sum(_evaluations(model, text, tokenizer, per_line=False), Evaluation())


def evaluate_lines(model: LanguageModel, text: Iterable[str], tokenizer: str) -> Iterator[Evaluation]:
    """Evaluate each line of a text as a part of the whole: they add up to the evaluation of the text.

    A line ends at a line feed; the end of the text ends the last one.
    """
    return _evaluations(model, text, tokenizer, per_line=True)


def _evaluations(model: LanguageModel, text: Iterable[str], tokenizer: str, *, per_line: bool) -> Iterator[Evaluation]:
    """Yield the evaluation of each part: of each line, or of whatever is scored at a time."""
    codes_of = _Codes(model.vocabulary)
    stream = TokenStream(tokenizer, dropped=True, convert=codes_of)
    scorer = _Scorer(model)
    codes, ends = array("i"), [0]
    is_inside = False  # a line
    for piece in text:
        lines = piece.split("\n") if per_line else [piece]
        for line in lines[:-1]:
            codes.extend(stream.feed(line + "\n"))
            ends.append(len(codes))
            if len(codes) >= _SCORED_TOKENS:
                yield from scorer.evaluate(codes, ends)
                codes, ends = array("i"), [0]
        is_inside = bool(lines[-1]) or (is_inside and len(lines) == 1)
        codes.extend(stream.feed(lines[-1]))
        if not per_line and len(codes) >= _SCORED_TOKENS:
            yield from scorer.evaluate(codes, [0, len(codes)])
            codes = array("i")
    codes.extend(stream.close())
    if is_inside or not per_line:
        ends.append(len(codes))
    yield from scorer.evaluate(codes, ends)


class _Codes:
    """Converts a token of a TokenStream to its id, or to _UNKNOWN or _DROPPED."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.ids

    def __call__(self, token: str) -> int:
        return _DROPPED if token.startswith(DROPPED_MARK) else self._ids.get(token, _UNKNOWN)


class _Scorer:
    """Scores a text part by part. The hidden state is carried over."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._last = np.array([model.vocabulary.eos], dtype=np.int32)  # its successor comes next
        self._state: F32 = np.zeros(model.matrices().Whh.shape[0], dtype=np.float32)

    def evaluate(self, codes: array[int], ends: list[int]) -> Iterator[Evaluation]:
        """Yield an evaluation for each pair of neighbours in `ends`, between which its codes are."""
        if len(ends) < 2:
            return
        ids, unk = np.array(codes, dtype=np.int32), self._model.vocabulary.unk
        is_unknown, is_dropped = ids == _UNKNOWN, ids == _DROPPED
        is_read = ids >= 0 if unk is None else ~is_dropped
        ids[is_unknown] = -1 if unk is None else unk
        is_word = is_read & (ids != self._model.vocabulary.eos)
        counts = np.zeros((4, ids.size + 1), dtype=np.int64)
        np.cumsum([is_read, is_word, is_unknown, is_dropped], axis=1, out=counts[:, 1:])
        nats = np.zeros(ids.size + 1)
        nats[1:][is_read] = -self._log_probabilities(ids[is_read])
        np.cumsum(nats, out=nats)
        for first, last in pairwise(ends):
            tokens, *others = (counts[:, last] - counts[:, first]).tolist()
            yield Evaluation(tokens, *others, nats=float(nats[last] - nats[first]) if tokens else 0.0)

    def _log_probabilities(self, ids: I32) -> F32:
        if not ids.size:
            return np.empty(0, dtype=np.float32)
        text = np.concatenate([self._last, ids])
        self._last = text[-1:]
        return self._model.log_probabilities(text, self._state)
