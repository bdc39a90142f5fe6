"""Hard-wrapped prose: text whose lines were broken to fit a width, as in Project Gutenberg's books and e-mail."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

_MIN_BREAKS = 5  # line ends inside paragraphs: fewer tell nothing
_WIDTHS = range(40, 121)
# Measured: licences and books have 0.89 to 1.0 long lines and 0.0 to 0.15 sentence ends, lists of short lines 0.75 and
# less long ones. One sentence per line with punctuation has 1.0 sentence ends, without it lengths of any kind.
_LONG, _MIN_LONG, _MAX_SENTENCE_ENDS = 0.7, 0.75, 0.5

_SENTENCE_END = re.compile(r"[.!?…]\W*$")
_BREAK = re.compile(r"\s*\n\s*")


@dataclass(frozen=True)
class Wrapping:
    """width: characters per line.   long: the share of line ends inside paragraphs that end a nearly full line."""

    width: int
    long: float


def wrapping(text: str) -> Wrapping | None:
    """Tell from the beginning of a text whether its lines are wrapped; None if not.

    They are if, inside the paragraphs that blank lines separate, most lines are nearly as long as the longest, 40 to
    120 characters, and most do not end a sentence.
    """
    lines = [line.strip() for line in text.splitlines()[:-1]]  # the last one may be cut
    broken = [line for line, following in pairwise(lines) if line and following]
    if len(broken) < _MIN_BREAKS:
        return None
    lengths = sorted(map(len, broken))
    width = lengths[int(0.98 * (len(lengths) - 1))]  # addresses and the like may be longer
    long = sum(length >= _LONG * width for length in lengths) / len(lengths)
    ends = sum(bool(_SENTENCE_END.search(line)) for line in broken) / len(broken)
    return Wrapping(width, long) if width in _WIDTHS and long >= _MIN_LONG and ends <= _MAX_SENTENCE_ENDS else None


def unwrap(pieces: Iterable[str]) -> Iterator[str]:
    """Yield a text with the line ends inside paragraphs turned into spaces. The pieces are cut at white space."""
    carry = ""  # the white space at the end of the piece before, where a blank line may be cut in two
    for piece in pieces:
        text = carry + piece
        body = text.rstrip()
        carry = text[len(body) :]
        if body:
            body = body.replace("\r\n", "\n").replace("\r", "\n")
            yield _BREAK.sub(lambda found: "\n" if found[0].count("\n") > 1 else " ", body)
