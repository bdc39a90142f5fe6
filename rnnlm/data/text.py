"""Tokens and the vocabulary: what training and serving must do alike. Nothing heavy is imported here.

A line ends at a line feed or a carriage return. White space cuts it into tokens, and a tokenizer (see tokenizers.py)
finds in each the words, the ends of sentences, and what is dropped. Each end of a sentence gives `<EOS>`, and so does
the end of a line whose last token did not end a sentence, even if no word was kept. An empty line gives nothing.

Prompts are read by the tokenizer of the model's corpus, except that those of a "wikitext" model are plain text.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from rnnlm.arguments import check_type
from rnnlm.data import tokenizers
from rnnlm.data.tokenizers import DROPPED, EOS, TOKENIZERS, Piece, of_prompts
from rnnlm.errors import UserError, counted, shortened

__all__ = [
    "DROPPED_MARK",
    "EOS",
    "TOKENIZERS",
    "UNK",
    "Span",
    "TextError",
    "TokenStream",
    "Vocabulary",
    "rank_words",
    "tokens_of",
]

T = TypeVar("T")

UNK = "<UNK>"
DROPPED_MARK = " "  # before a dropped word among the tokens of a TokenStream, where no other token has white space

_CACHED_TOKENS = 1 << 17  # some 20 MB
_CACHED_CHARS = 64  # longer tokens are rare, and would fill memory


class TextError(UserError):
    """A tokenizer, a vocabulary or a vocabulary size cannot be used."""


class Span(NamedTuple):
    """A piece of a text: the characters [start, end), and what they are to a model.

    kind: "known" (a word of the vocabulary), "unknown" (a word that it lacks), "sentence_end", or "dropped" (anything
    else: punctuation, numbers, whatever the tokenizer makes no word of).
    word: the word as the vocabulary spells it, <EOS> for a sentence end, "" for what is dropped.
    id: the token that the model reads; None if it reads none: what is dropped, and unknown words if there is no <UNK>.
    """

    start: int
    end: int
    kind: str
    word: str
    id: int | None


class TokenStream(Generic[T]):
    """The tokens of a text that comes in pieces, each cut at any white space."""

    def __init__(self, tokenizer: str, *, dropped: bool = False, convert: Callable[[str], T] = str) -> None:
        """Start a text. Raises TextError for a tokenizer that is not in TOKENIZERS.

        dropped: also give the words that are dropped (what has a letter or digit), each with DROPPED_MARK before it.
        convert: makes of a token what `feed` returns for it. It is called once for most tokens, not each time.
        """
        _check_tokenizer(tokenizer)
        self._tokenizer = tokenizer
        self._outcomes = _Outcomes(tokenizer, dropped, convert)
        self._eos = convert(EOS)
        self._is_open = False  # whether anything has come since the last sentence or line ended
        self._normalizes = tokenizer.startswith("unicode")

    def feed(self, piece: str) -> list[T]:
        """Return the tokens of the next piece: words, and `<EOS>` after each sentence that ends in it."""
        check_type("a piece of text", piece, str)
        if self._normalizes and not unicodedata.is_normalized("NFC", piece):
            piece = unicodedata.normalize("NFC", piece)
        tokens: list[T] = []
        outcome = self._outcomes.__getitem__
        lines = piece.replace("\r", "\n").split("\n")  # "\r\n" makes an empty line more, which gives nothing
        for remaining, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
            found = line.split()
            if found:
                tokens.extend(chain.from_iterable(map(outcome, found)))
                self._is_open = _pieces(found[-1], self._tokenizer)[-1][2] != EOS
            if self._is_open and remaining:
                tokens.append(self._eos)
                self._is_open = False
        return tokens

    def close(self) -> list[T]:
        """End the text, and with it its last line. Returns `<EOS>` if a sentence was still open."""
        tokens = [self._eos] if self._is_open else []
        self._is_open = False
        return tokens


class _Outcomes(dict[str, tuple[T, ...]]):
    """What each token of a text becomes. Texts repeat their tokens, so most are looked up, not cut."""

    def __init__(self, tokenizer: str, dropped: bool, convert: Callable[[str], T]) -> None:
        super().__init__()
        self._tokenizer, self._dropped, self._convert = tokenizer, dropped, convert
        self._lower = tokenizer.endswith(tokenizers.LOWERCASE)

    def __missing__(self, token: str) -> tuple[T, ...]:
        is_word = token.isascii() and token.isalpha() and not self._lower  # for all tokenizers, and most often
        words = (token,) if is_word else self._become(token)
        found = tuple(map(self._convert, words))
        if len(token) <= _CACHED_CHARS:
            if len(self) >= _CACHED_TOKENS:
                self.clear()
            self[token] = found
        return found

    def _become(self, token: str) -> Iterator[str]:
        for start, end, word in tokenizers.pieces(token, self._tokenizer):
            if word != DROPPED:
                yield word
            elif self._dropped and (name := tokenizers.bare(token[start:end])):
                yield DROPPED_MARK + name


def _check_tokenizer(tokenizer: str) -> None:
    check_type("the tokenizer", tokenizer, str)
    if tokenizer not in TOKENIZERS:
        raise TextError(f"unknown tokenizer {tokenizer!r}: it must be one of {', '.join(TOKENIZERS)}")


_cached_pieces = functools.lru_cache(maxsize=1 << 14)(tokenizers.pieces)


def _pieces(token: str, tokenizer: str) -> tuple[Piece, ...]:
    return (_cached_pieces if len(token) <= _CACHED_CHARS else tokenizers.pieces)(token, tokenizer)


_LINE_END_OR_TOKEN = re.compile(r"[\r\n]|\S+")


def _cut(text: str, tokenizer: str) -> Iterator[Piece]:
    """Cut a whole text as a TokenStream does. The pieces leave out nothing but white space.

    The end of the text ends no sentence; a line end that does is the piece.
    """
    is_open = False
    for match in _LINE_END_OR_TOKEN.finditer(text):
        token, place = match[0], match.start()
        if token in ("\r", "\n"):
            if is_open:
                yield place, place + 1, EOS
            is_open = False
            continue
        found = _pieces(token, tokenizer)
        for start, end, word in found:
            yield place + start, place + end, word
        is_open = found[-1][2] != EOS


class Vocabulary:
    """The words of a model, in id order, and how its prompts are read.

    eos, unk: the ids of `<EOS>` and `<UNK>`; unk is None if there is none.
    tokenizer: that of prompts.   corpus_tokenizer: that of the corpus.
    """

    def __init__(self, words: Iterable[str], tokenizer: str = "plain") -> None:
        """words: in id order, as a corpus gives them or a weights file keeps them.   tokenizer: the corpus's.

        Raises TextError if a word is empty, contains white space or occurs twice, if `<EOS>` is missing, or if the
        tokenizer is unknown.
        """
        _check_tokenizer(tokenizer)
        if isinstance(words, str):
            raise TypeError("words must be a sequence of strings, got one string")
        self.tokenizer, self.corpus_tokenizer = of_prompts(tokenizer), tokenizer
        self.words: tuple[str, ...] = tuple(words)
        ids: dict[str, int] = {}
        for i, word in enumerate(self.words):
            check_type(f"vocabulary word {i}", word, str)
            if not word or word.split() != [word]:
                raise TextError(
                    f"vocabulary word {i} is {shortened(word)!r}: a word must not be empty or contain white space"
                )
            if ids.setdefault(word, i) != i:
                raise TextError(
                    f"vocabulary words {ids[word]} and {i} are both {shortened(word)!r}: each word must occur once"
                )
        if EOS not in ids:
            raise TextError(f"the vocabulary of {counted(len(ids), 'word')} lacks {EOS}, which ends every sentence")
        self.ids: Mapping[str, int] = MappingProxyType(ids)
        self.eos: int = ids[EOS]
        self.unk: int | None = ids.get(UNK)

    def __len__(self) -> int:
        return len(self.words)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.words, self.corpus_tokenizer)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} words{'' if self.unk is None else f', {UNK} among them'})"

    def encode(self, text: str) -> list[Span]:
        """Return everything in a prompt, in order: the model reads those spans that have an id.

        The spans leave out nothing but white space. An unknown word becomes `<UNK>` if the vocabulary has it, and
        has no id otherwise. Every sentence that the prompt finishes ends in a span of kind "sentence_end", also the
        last one ("He died."): its punctuation, or the line feed that ends it. An unfinished last sentence has none,
        since the model is to continue it, and white space after it (a stray line feed) does not finish it.
        """
        check_type("the text", text, str)
        return [self._span(*piece) for piece in _cut(text.rstrip(), self.tokenizer)]

    def _span(self, start: int, end: int, word: str) -> Span:
        if word == DROPPED:
            return Span(start, end, "dropped", word, None)
        if word == EOS:
            return Span(start, end, "sentence_end", word, self.eos)
        if word in self.ids:
            return Span(start, end, "known", word, self.ids[word])
        return Span(start, end, "unknown", word, self.unk)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words joined by spaces, `<EOS>` as a line feed. Raises IndexError for an id outside [0, V)."""
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield for each id, as it comes, what it adds to the text of `decode`."""
        gap = ""
        for i in ids:
            check_type("a token id", i, int)
            if not 0 <= i < len(self.words):
                raise IndexError(f"token id {i} is outside the vocabulary [0, {len(self.words):,})")
            if i == self.eos:
                yield "\n"
                gap = ""
            else:
                yield gap + self.words[i]
                gap = " "


def tokens_of(spans: Iterable[Span]) -> tuple[list[int], list[str]]:
    """Return the ids that a model reads of a text, and the distinct words that its vocabulary lacks, in order."""
    ids: list[int] = []
    unknown: dict[str, None] = {}
    for span in spans:
        if span.id is not None:
            ids.append(span.id)
        if span.kind == "unknown":
            unknown[span.word] = None
    return ids, list(unknown)


def rank_words(
    counts: Mapping[str, int], *, vocab_size: int | None = None, has_unseen: bool = False, more: Iterable[str] = ()
) -> dict[str, int]:
    """Choose the words of a vocabulary: word to count, by decreasing count, ties in code point order.

    counts: the count of each word of the training text, at least 1; `<EOS>` is one of them.
    vocab_size: how many words to keep in all, with `<EOS>` and `<UNK>`; None, or more than there are, keeps all.
    has_unseen: whether other splits have words that are not in `counts`.
    more: words to keep beside these, whatever their count.
    `<UNK>` is included only if words are cut, has_unseen is true, or it is one of `more`. Its count is the sum over the
    words that are cut.
    Raises TextError for a vocab_size below 3.
    """
    available = len(counts) + has_unseen
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = {word: counts[word] for word in ranked}
    if vocab_size is not None and vocab_size < 3:
        raise TextError(f"vocabulary size {vocab_size} is too small: {EOS}, {UNK} and one word make 3")
    if vocab_size is not None and vocab_size < available:
        kept = {EOS: counts[EOS]}
        for word in ranked:
            if len(kept) == vocab_size - 1:
                break
            kept.setdefault(word, counts[word])
        kept[UNK] = 0
    elif has_unseen:
        kept[UNK] = 0
    kept |= {word: counts.get(word, 0) for word in more}
    if UNK in kept:
        kept[UNK] = sum(counts.values()) - sum(count for word, count in kept.items() if word != UNK)
    return dict(sorted(kept.items(), key=lambda item: (-item[1], item[0])))
