"""From token ids to text, a token at a time, and where a stop phrase cuts it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from text import EOS, Vocabulary


class Wording:
    """The text of a growing sequence: the pieces that `add` returns make up `Vocabulary.decode` of its tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._gap = ""

    def piece(self, token: int) -> str:
        """What `token` would add to the text."""
        return "\n" if token == self._vocabulary.eos else self._gap + self._vocabulary.words[token]

    def add(self, token: int) -> str:
        piece = self.piece(token)
        self._gap = "" if token == self._vocabulary.eos else " "
        return piece


Phrase = tuple[int, ...]


def parse_stop(stop: Sequence[str], vocabulary: Vocabulary) -> tuple[Phrase, ...]:
    """Stop phrases as token ids: whole words, and a line feed for the end of a sentence.

    A phrase with a word that the vocabulary lacks can never be written, and is left out.
    """
    phrases = []
    for text in stop:
        words = [EOS if word == "\n" else word for word in re.findall(r"\n|[^\s]+", text)]
        ids = tuple(vocabulary.ids.get(word, -1) for word in words)
        if ids and -1 not in ids:
            phrases.append(ids)
    return tuple(phrases)


def ends_with(tokens: Sequence[int], phrases: Sequence[Phrase]) -> int:
    """The length of the longest phrase that `tokens` end with; 0 for none."""
    return max((len(phrase) for phrase in phrases if tuple(tokens[-len(phrase) :]) == phrase), default=0)


def held_back(tokens: Sequence[int], phrases: Sequence[Phrase]) -> int:
    """How many tokens at the end may turn out to be the start of a phrase, and so cannot be shown yet."""
    return max(
        (
            length
            for phrase in phrases
            for length in range(1, len(phrase))
            if tuple(tokens[-length:]) == phrase[:length]
        ),
        default=0,
    )
