"""From token ids to text, one token at a time, and where a stop phrase cuts it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, Self

from rnnlm.data.text import TokenStream, Vocabulary
from rnnlm.errors import shortened


class Wording:
    """The text of a growing sequence: the pieces that `add` returns make up `Vocabulary.decode` of its tokens.

    gap: what comes before its first word.
    """

    def __init__(self, vocabulary: Vocabulary, gap: str = "") -> None:
        self._vocabulary = vocabulary
        self._gap = gap

    def piece(self, token: int) -> str:
        """Return what `token` would add to the text."""
        return "\n" if token == self._vocabulary.eos else self._gap + self._vocabulary.words[token]

    def add(self, token: int) -> str:
        """Add `token`, and return what it adds to the text."""
        piece = self.piece(token)
        self._gap = "" if token == self._vocabulary.eos else " "
        return piece


def gap_after(text: str) -> str:
    """Return what separates `text` from a continuation of it."""
    return "" if not text or text[-1].isspace() else " "


class Phrase(NamedTuple):
    """A stop phrase of token ids, or of characters.

    borders[i]: the length of the longest proper prefix that items[: i + 1] end with.
    """

    items: tuple[Hashable, ...]
    borders: tuple[int, ...]

    @classmethod
    def of(cls, items: Iterable[Hashable]) -> Self:
        """items: at least one."""
        items = tuple(items)
        borders = [0]
        length = 0
        for item in items[1:]:
            while length and items[length] != item:
                length = borders[length - 1]
            length += items[length] == item
            borders.append(length)
        return cls(items, tuple(borders))


class StopPhrase(NamedTuple):
    """A stop phrase as a request gives it, and what the model's tokenizer makes of it.

    ids: its tokens; empty if they can never be generated in this order.   problem: why not; "" if they can.
    """

    text: str
    ids: tuple[int, ...]
    problem: str


def read_stop(text: str, vocabulary: Vocabulary) -> StopPhrase:
    """Read a stop phrase as the model reads prompts: whole words, and ends of sentences where the text has them.

    The phrase stands inside an open sentence, so a line feed ends one: "turn." is a word and the end of its sentence,
    and "\\n" is the end of a sentence.
    """
    stream = TokenStream(vocabulary.tokenizer)
    stream.feed("a")  # opens the sentence
    words = stream.feed(text)
    if not words:
        return StopPhrase(text, (), "it has no word and no end of a sentence")
    lacking = [word for word in words if vocabulary.ids.get(word, vocabulary.unk) == vocabulary.unk]
    if lacking:
        return StopPhrase(text, (), f"the model has no word {shortened(lacking[0])!r}")
    return StopPhrase(text, tuple(vocabulary.ids[word] for word in words), "")


class Matcher:
    """Watches a growing sequence for phrases, at a cost per item that does not grow with its length or theirs
    (Knuth, Morris and Pratt 1977)."""

    def __init__(self, phrases: Sequence[Phrase]) -> None:
        self._phrases = phrases
        self._lengths = [0] * len(phrases)  # of each phrase, how much the sequence ends with

    def add(self, item: Hashable) -> int:
        """Return the length of the longest phrase that `item` completes; 0 for none."""
        longest = 0
        for index, (items, borders) in enumerate(self._phrases):
            length = self._lengths[index]
            while length and items[length] != item:
                length = borders[length - 1]
            length += items[length] == item
            if length == len(items):
                longest = max(longest, length)
                length = borders[length - 1]
            self._lengths[index] = length
        return longest

    @property
    def held_back(self) -> int:
        """How many items at the end may turn out to be the start of a phrase, and so cannot be shown yet."""
        return max(self._lengths, default=0)


class Cut(NamedTuple):
    """Where a stop phrase begins.

    tokens: how many at the end it covers whole.   kept: how many characters before it the token before those has, if
    the phrase begins inside that token; else None.
    """

    tokens: int
    kept: int | None = None

    @property
    def touched(self) -> int:
        """How many tokens it covers, whole or in part."""
        return self.tokens + (self.kept is not None)


class Stop:
    """The stop phrases of one sequence: phrases of tokens, and phrases to find in its text as written.

    wording: of the sequence's text.
    """

    def __init__(self, phrases: Sequence[Phrase], texts: Sequence[Phrase], wording: Wording) -> None:
        self._tokens = Matcher(phrases)
        self._text = _TextStop(texts, wording) if texts else None

    def add(self, token: int) -> Cut | None:
        """Add a token. Returns where to cut the sequence if a phrase is complete."""
        length = self._tokens.add(token)
        cuts = [Cut(length)] if length else []
        if self._text and (cut := self._text.add(token)):
            cuts.append(cut)
        return max(cuts, key=lambda cut: (cut.touched, -(cut.kept or 0)), default=None)

    @property
    def held_back(self) -> int:
        """How many tokens at the end cannot be shown yet."""
        return max(self._tokens.held_back, self._text.held_back if self._text else 0)


class _TextStop:
    """Stop phrases in the text as written, which may begin or end inside a word."""

    def __init__(self, phrases: Sequence[Phrase], wording: Wording) -> None:
        self._matcher = Matcher(phrases)
        self._wording = wording
        self._sizes: list[int] = []  # of each token's piece of text

    def add(self, token: int) -> Cut | None:
        piece = self._wording.add(token)
        self._sizes.append(len(piece))
        for index, char in enumerate(piece):
            if length := self._matcher.add(char):
                return self._before(length + len(piece) - 1 - index)
        return None

    @property
    def held_back(self) -> int:
        return self._before(self._matcher.held_back).touched

    def _before(self, characters: int) -> Cut:
        """Cut so many characters off the end."""
        tokens = 0
        while characters > 0:
            tokens += 1
            characters -= self._sizes[-tokens]
        return Cut(tokens - 1, -characters) if characters else Cut(tokens)
