"""Three ways to cut a token (a stretch of text between white space) into words, sentence ends and what is dropped.

"wikitext"   Text that is tokenized already. A token of ASCII letters is a word; everything else is dropped. A token
             whose last character is `.`, `!` or `?` ends a sentence.
"plain"      A word is made of ASCII letters. Punctuation around it is stripped first: `end.` and `(the` keep their
             words. As in WikiText, a dash (`--`, en or em) separates two words, and an apostrophe ends one: `king's`
             keeps `king`. Other characters are never stripped: `<unk>` does not become the word `unk`. Sentences end
             as in "wikitext".
"unicode"    A word is made of letters of any script, with the marks that belong to them. It may have apostrophes,
             hyphens and middle dots inside: `don't`, `well-known`, `col·lecció`. Other punctuation separates words
             (`and/or`), and a word with a digit or symbol in it is dropped (`3rd`, `<unk>`). A sentence ends after
             `.`, `!`, `?` or their like in other scripts, and closing quotes and brackets may follow. The period of an
             abbreviation belongs to its word and ends no sentence: `U.S.`, `e.g.`, an initial (`J.`) or a title
             (`Mr.`; see _TITLES). Words are in Unicode's form NFC, with `'` and `-` for their typographic variants.

Add "+lowercase" to a name to turn its words into lower case.
"""

# ruff: noqa: RUF001  (text in many scripts)
import functools
import re
import unicodedata
from collections.abc import Callable, Iterator

EOS = "<EOS>"
DROPPED = ""

# (start, end, word): the characters [start, end) of a token and the word that they are, or EOS, or DROPPED.
# The pieces of a token cover it without gaps.
Piece = tuple[int, int, str]

LOWERCASE = "+lowercase"
_NAMES = ("wikitext", "plain", "unicode")
TOKENIZERS = (*_NAMES, *(name + LOWERCASE for name in _NAMES))

_ASCII_ENDS = ".!?"
_DASHES = re.compile("--+|[\N{EN DASH}\N{EM DASH}\N{HORIZONTAL BAR}]")
_APOSTROPHES = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]")

_INNER = {  # punctuation that may be inside a word, and how the word spells it
    "'": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "-": "-",
    "\N{HYPHEN}": "-",
    "\N{NON-BREAKING HYPHEN}": "-",
    "\N{MIDDLE DOT}": "\N{MIDDLE DOT}",
}
_ENDS = frozenset(".!?…‼⁇⁈⁉؟۔।॥։።፧。！？｡")
_SPACELESS_ENDS = frozenset("。！？｡")  # of scripts that put no space after a sentence
_TITLES = frozenset(  # English, then German and Romance languages; a longer list would catch ordinary words
    "mr mrs ms dr prof sr jr st mt vs etc cf inc ltd corp dept gov lt sgt capt messrs "  # noqa: SIM905
    "bzw ca nr usw hr fr mme mlle sra srta dra ud uds dott sig".split()
)


def pieces(token: str, name: str) -> tuple[Piece, ...]:
    """Cut a token (not empty, without white space). name: one of TOKENIZERS."""
    base = name.removesuffix(LOWERCASE)
    found = _CUTTERS[base](token)
    if base == name:
        return found
    return tuple((start, end, word if word == EOS else word.lower()) for start, end, word in found)


def of_prompts(name: str) -> str:
    """Return the tokenizer of the prompts for a model whose corpus had tokenizer `name`: nobody types WikiText."""
    return name.replace("wikitext", "plain")


def bare(dropped: str) -> str:
    """Return a dropped piece without the punctuation around it, for a report; "" if it has no letter or digit."""
    if not any(map(str.isalnum, dropped)):
        return ""
    first, last = 0, len(dropped)
    while clings(dropped[first]) and dropped[first] not in _INNER:  # keeps 's whole
        first += 1
    while clings(dropped[last - 1]):
        last -= 1
    return dropped[first:last]


def clings(char: str) -> bool:
    """Return whether a character is punctuation, which may cling to a word."""
    # The grave accent opens quotations in typewritten text (``so''), though Unicode calls it a symbol.
    return char == "`" or unicodedata.category(char).startswith("P")


def _cut_wikitext(token: str) -> tuple[Piece, ...]:
    if token.isascii() and token.isalpha():
        return ((0, len(token), token),)
    return _with_end(token, [])


def _cut_plain(token: str) -> tuple[Piece, ...]:
    if token.isascii() and token.isalpha():
        return ((0, len(token), token),)
    words = []
    start = 0
    for dash in [*_DASHES.finditer(token), None]:
        stop = dash.start() if dash else len(token)
        first, last = start, stop
        while first < last and clings(token[first]):
            first += 1
        while first < last and clings(token[last - 1]):
            last -= 1
        word = _APOSTROPHES.split(token[first:last], maxsplit=1)[0]
        if word.isascii() and word.isalpha():
            words.append((first, first + len(word), word))
        start = dash.end() if dash else stop
    return _with_end(token, words)


def _with_end(token: str, words: list[Piece]) -> tuple[Piece, ...]:
    """Add the end of a sentence, if the last character is one, and the gaps."""
    end = len(token.rstrip(_ASCII_ENDS))
    if end < len(token):
        words.append((end, len(token), EOS))
    return _with_gaps(token, words)


def _with_gaps(token: str, found: list[Piece]) -> tuple[Piece, ...]:
    """Add DROPPED pieces where `found`, in order, leaves characters out."""
    whole: list[Piece] = []
    position = 0
    for piece in found:
        if piece[0] > position:
            whole.append((position, piece[0], DROPPED))
        whole.append(piece)
        position = piece[1]
    if position < len(token):
        whole.append((position, len(token), DROPPED))
    return tuple(whole)


# ---- unicode ---------------------------------------------------------------------------------------------------------

# A token is read as a string of one class per character: a letter, m mark, f format character (it belongs to a word but
# is not spelt), x digit, symbol or anything else that makes a word none, j inner punctuation, . period, p punctuation.
_ABBREVIATION = re.compile(r"(?:a[mf]*){1,2}(?:\.(?:a[mf]*){1,2})+\.?(?![amfx])")  # U.S., e.g., Ph.D.
_RUN = re.compile(r"[amfx]+(?:j[amfx]+)*")
_PUNCTUATION = re.compile(r"[^amfx]+")


@functools.lru_cache(maxsize=1 << 14)
def _class(char: str) -> str:
    category = unicodedata.category(char)
    if category[0] in "LM":
        return "a" if category[0] == "L" else "m"
    if char in _INNER:
        return "j"
    if char == ".":
        return "."
    if clings(char) or char == "\N{ZERO WIDTH SPACE}":  # which separates words in scripts without spaces
        return "p"
    return "f" if category == "Cf" else "x"


def _cut_unicode(token: str) -> tuple[Piece, ...]:
    if token.isalpha():
        return ((0, len(token), unicodedata.normalize("NFC", token)),)
    if not unicodedata.is_normalized("NFC", token):
        token = "".join(map(_in_nfc, token))
    classes = "".join(map(_class, token))
    found: list[Piece] = []
    position = 0
    while position < len(token):
        if match := _ABBREVIATION.match(classes, position):
            found.append((position, match.end(), _spell(token[position : match.end()])))
        elif match := _RUN.match(classes, position):
            stop = match.end()
            run = classes[position:stop]
            if "a" in run and "x" not in run:
                word = _spell(token[position:stop])
                if classes[stop : stop + 2] in (".", ".p", ".j") and _is_abbreviated(word):
                    stop, word = stop + 1, word + "."
                found.append((position, stop, word))
            position = stop
            continue
        else:
            match = _PUNCTUATION.match(classes, position)
            assert match
            found += _sentence_ends(token, position, match.end())
        position = match.end()
    return _with_gaps(token, found)


def _in_nfc(char: str) -> str:
    """Return the form that the character has in a training text, if that is one character: places must not change."""
    form = unicodedata.normalize("NFC", char)
    return form if len(form) == 1 else char


def _spell(text: str) -> str:
    """Return a word in NFC, without format characters (joiners, soft hyphens), with ASCII apostrophes and hyphens."""
    spelt = "".join(_INNER.get(char, char) for char in text if _class(char) != "f")
    return unicodedata.normalize("NFC", spelt)


def _is_abbreviated(word: str) -> bool:
    """Return whether a period after `word` belongs to it: an initial other than the English "I", or a title."""
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return is_initial or word.lower() in _TITLES


def _sentence_ends(token: str, start: int, stop: int) -> Iterator[Piece]:
    """Yield each EOS among the punctuation [start, stop) of a token, with the quotes and brackets that close it."""
    position = start
    while position < stop:
        if token[position] not in _ENDS:
            position += 1
            continue
        opened = position
        while position < stop and token[position] in _ENDS:
            position += 1
        needs_no_space = token[position - 1] in _SPACELESS_ENDS
        while position < stop and _closes(token[position]):
            position += 1
        if needs_no_space or position == len(token):
            yield opened, position, EOS


def _closes(char: str) -> bool:
    """Return whether a character may stand between the end of a sentence and white space."""
    return char in "\"'`*_" or unicodedata.category(char) in ("Pe", "Pf", "Pi")


_CUTTERS: dict[str, Callable[[str], tuple[Piece, ...]]] = {
    "wikitext": _cut_wikitext,
    "plain": _cut_plain,
    "unicode": _cut_unicode,
}
