"""Tokens and the vocabulary: what training and serving must do alike. Nothing heavy is imported here.

A line ends at a line feed or a carriage return. A sentence ends after a token (what stands between white space)
whose last character is `.`, `!` or `?`, and at the end of its line. Of its tokens only those made of ASCII letters
alone are kept, case kept; then comes `<EOS>`, also when no word was kept. A line without any text gives nothing.

Two tokenizers differ in what they do before a token is judged:

    "wikitext"   the text is tokenised already, and its tokens are taken as they stand
    "plain"      the punctuation that clings to a word is stripped first: `end.` and `(the` keep their words. Two
                 habits follow WikiText, which writes these apart: a dash (`--`, en or em) parts two words, and an
                 apostrophe ends one (WikiText's `king 's` keeps `king`, so `king's` does). What is not
                 punctuation is never stripped: `<unk>` does not become the word `unk`.

Prompts are plain text, whatever the model learned from.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from rnnlm.errors import UserError

EOS = "<EOS>"
UNK = "<UNK>"
TOKENIZERS = ("wikitext", "plain")

_SENTENCE_ENDS = (".", "!", "?")
_DASHES = re.compile("--+|[\N{EN DASH}\N{EM DASH}\N{HORIZONTAL BAR}]")
_APOSTROPHES = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]")


class TextError(UserError):
    """A tokenizer, a vocabulary or a vocabulary size that cannot be used."""


def _clings(char: str) -> bool:
    # The grave accent opens quotations in typewritten text (``so''), though Unicode calls it a symbol.
    return char == "`" or unicodedata.category(char).startswith("P")


def _words_within(token: str) -> tuple[str, ...]:
    """The words of one token of plain text that is not a word as it stands."""
    words = []
    for part in _DASHES.split(token):
        first, last = 0, len(part)
        while first < last and _clings(part[first]):
            first += 1
        while first < last and _clings(part[last - 1]):
            last -= 1
        word = _APOSTROPHES.split(part[first:last], maxsplit=1)[0]
        if word.isascii() and word.isalpha():
            words.append(word)
    return tuple(words)


# A few thousand tokens ("said," "the) make up most of what comes here. What is longer is rare, and would fill memory.
_CACHED_CHARS = 64
_words_within_short = functools.lru_cache(maxsize=1 << 16)(_words_within)


class TokenStream:
    """Tokens of a text that comes in pieces, cut at white space wherever that stands."""

    def __init__(self, tokenizer: str) -> None:
        if tokenizer not in TOKENIZERS:
            raise TextError(f"unknown tokenizer {tokenizer!r}: it must be one of {', '.join(TOKENIZERS)}")
        self._strip = tokenizer == "plain"
        self._open = False  # has anything come since the last sentence or line ended?

    def feed(self, piece: str) -> list[str]:
        """The tokens of the next piece, with `<EOS>` after each sentence that ends in it."""
        tokens: list[str] = []
        append = tokens.append
        strip, is_open = self._strip, self._open
        lines = piece.replace("\r", "\n").split("\n")  # "\r\n" gives an empty line more, and that gives nothing
        for remaining, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
            for token in line.split():
                if token.isalpha() and token.isascii():
                    append(token)
                    is_open = True
                    continue
                if strip:
                    tokens += (_words_within_short if len(token) <= _CACHED_CHARS else _words_within)(token)
                is_open = not token.endswith(_SENTENCE_ENDS)
                if not is_open:
                    append(EOS)
            if is_open and remaining:
                append(EOS)
                is_open = False
        self._open = is_open
        return tokens

    def close(self) -> list[str]:
        """The end of the text ends its last line: `<EOS>` if a sentence was still open."""
        tokens = [EOS] if self._open else []
        self._open = False
        return tokens


def tokenize(text: str, tokenizer: str) -> Iterator[str]:
    """The words of `text`, with `<EOS>` after each sentence and at the end of each line; see the module's rules.

    Raises TextError for a tokenizer that is not in TOKENIZERS.
    """
    stream = TokenStream(tokenizer)
    yield from stream.feed(text)
    yield from stream.close()


class Vocabulary:
    """The words of a model, in id order; `eos` and `unk` are the ids of `<EOS>` and `<UNK>` (None: it has none)."""

    def __init__(self, words: Iterable[str]) -> None:
        """words: in id order, as a corpus gives them or as a weights file keeps them.

        Raises TextError if a word is empty, holds white space or stands twice, or if `<EOS>` is missing.
        """
        self.words: tuple[str, ...] = tuple(words)
        ids: dict[str, int] = {}
        for i, word in enumerate(self.words):
            if not word or word.split() != [word]:
                raise TextError(f"vocabulary word {i} is {word!r}: a word may not be empty or hold white space")
            if ids.setdefault(word, i) != i:
                raise TextError(f"vocabulary words {ids[word]} and {i} are both {word!r}: each must stand once")
        if EOS not in ids:
            raise TextError(f"the vocabulary of {len(ids)} words lacks {EOS}, which ends every sentence")
        self.ids: Mapping[str, int] = MappingProxyType(ids)
        self.eos: int = ids[EOS]
        self.unk: int | None = ids.get(UNK)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words{'' if self.unk is None else f', {UNK} among them'})"

    def encode_prompt(self, text: str) -> tuple[list[int], list[str]]:
        """Ids of a prompt, and the distinct words in it that the vocabulary lacks, in order.

        An unknown word becomes `<UNK>` where the vocabulary has it and is dropped where not. A sentence that the
        prompt finishes gives its `<EOS>`, also the last one ("He died."). An unfinished last sentence gives none,
        for the model is to go on with it; white space after it (a stray line feed) does not finish it.
        """
        ids: list[int] = []
        unknown: dict[str, None] = {}
        for token in TokenStream("plain").feed(text.rstrip()):
            i = self.ids.get(token, self.unk)
            if token not in self.ids:
                unknown[token] = None
            if i is not None:
                ids.append(i)
        return ids, list(unknown)

    def decode(self, ids: Iterable[int]) -> str:
        """The words joined by spaces, `<EOS>` as a line break. Raises IndexError for an id outside [0, V)."""
        pieces: list[str] = []
        gap = ""
        for i in ids:
            if not 0 <= i < len(self.words):
                raise IndexError(f"token id {i} is outside the vocabulary [0, {len(self.words)})")
            if i == self.eos:
                pieces.append("\n")
                gap = ""
            else:
                pieces.append(gap + self.words[i])
                gap = " "
        return "".join(pieces)


def rank_words(counts: Mapping[str, int], *, vocab_size: int | None = None, has_unseen: bool = False) -> dict[str, int]:
    """What a vocabulary holds: word to count, by decreasing count, ties in alphabetical (code point) order.

    counts: word to its count, at least 1, in the training text; `<EOS>` among them.
    vocab_size: how many words to keep in all, `<EOS>` and `<UNK>` included; None keeps every one.
    has_unseen: other splits hold words that `counts` lacks.
    `<UNK>` is there only if words are cut or has_unseen is true; its count is the sum over the words cut.
    Raises TextError for a vocab_size below 3 or above what there is.
    """
    available = len(counts) + has_unseen
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = {word: counts[word] for word in ranked}
    if vocab_size is not None:
        if vocab_size < 3:
            raise TextError(f"vocabulary size {vocab_size} is too small: {EOS}, {UNK} and one word make 3")
        if vocab_size > available:
            with_unk = f", {UNK} included" if has_unseen else ""
            raise TextError(
                f"vocabulary size {vocab_size} is more than the training text's {available} words{with_unk}: "
                f"ask for {available} at most, or for none, which keeps them all"
            )
    if vocab_size is not None and vocab_size < available:
        kept = {EOS: counts[EOS]}
        for word in ranked:
            if len(kept) == vocab_size - 1:
                break
            kept.setdefault(word, counts[word])
        kept[UNK] = sum(counts.values()) - sum(kept.values())
    elif has_unseen:
        kept[UNK] = 0
    return dict(sorted(kept.items(), key=lambda item: (-item[1], item[0])))
