"""From token ids to text, a token at a time, and where a stop phrase cuts it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from rnnlm.data.text import EOS, Vocabulary


class Wording:
    """The text of a growing sequence: the pieces that `add` returns make up `Vocabulary.decode` of its tokens.

    gap: what stands before its first word.
    """

    def __init__(self, vocabulary: Vocabulary, gap: str = "") -> None:
        self._vocabulary = vocabulary
        self._gap = gap

    def piece(self, token: int) -> str:
        """What `token` would add to the text."""
        return "\n" if token == self._vocabulary.eos else self._gap + self._vocabulary.words[token]

    def add(self, token: int) -> str:
        piece = self.piece(token)
        self._gap = "" if token == self._vocabulary.eos else " "
        return piece


class Phrase(NamedTuple):
    """A stop phrase. borders[i]: the length of the longest proper prefix that ids[: i + 1] end with."""

    ids: tuple[int, ...]
    borders: tuple[int, ...]

    @classmethod
    def of(cls, ids: Iterable[int]) -> Self:
        """ids: at least one."""
        ids = tuple(ids)
        borders = [0]
        length = 0
        for token in ids[1:]:
            while length and ids[length] != token:
                length = borders[length - 1]
            length += ids[length] == token
            borders.append(length)
        return cls(ids, tuple(borders))


def parse_stop(stop: Sequence[str], vocabulary: Vocabulary) -> tuple[Phrase, ...]:
    """Stop phrases as token ids: whole words, and a line feed for the end of a sentence.

    A phrase with a word that the vocabulary lacks can never be written, and is left out.
    """
    phrases = []
    for text in stop:
        words = [EOS if word == "\n" else word for word in re.findall(r"\n|[^\s]+", text)]
        ids = tuple(vocabulary.ids.get(word, -1) for word in words)
        if ids and -1 not in ids:
            phrases.append(Phrase.of(ids))
    return tuple(phrases)


class StopMatcher:
    """Watches a growing sequence for stop phrases, at a cost per token that does not grow with its length or theirs
    (Knuth, Morris and Pratt 1977)."""

    def __init__(self, phrases: Sequence[Phrase]) -> None:
        self._phrases = phrases
        self._lengths = [0] * len(phrases)  # of each phrase, how much the sequence ends with

    def add(self, token: int) -> int:
        """The length of the longest phrase that `token` completes; 0 for none."""
        longest = 0
        for index, (ids, borders) in enumerate(self._phrases):
            length = self._lengths[index]
            while length and ids[length] != token:
                length = borders[length - 1]
            length += ids[length] == token
            if length == len(ids):
                longest = max(longest, length)
                length = borders[length - 1]
            self._lengths[index] = length
        return longest

    @property
    def held_back(self) -> int:
        """How many tokens at the end may turn out to be the start of a phrase, and so cannot be shown yet."""
        return max(self._lengths, default=0)
