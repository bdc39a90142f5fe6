"""The unicode tokenizer, lower case, and what happens to each character of a text."""

# ruff: noqa: RUF001  (text in many scripts)
from __future__ import annotations

import itertools
import re
import sys
import unicodedata

import pytest
from corpora import tokenize
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.data.text import DROPPED_MARK, EOS, TOKENIZERS, UNK, Span, TokenStream, Vocabulary, tokens_of
from rnnlm.data.tokenizers import pieces

# Text in which hypothesis often meets every rule, and arbitrary text.
FRAGMENTS = (
    "king The café cafe\u0301 don't 3 . ! ? , \" ' — -- - U.S. Mr. J. i.e. 他说。 3。 नमस्ते। <unk> · … » ) ` ß 「 "
)
FRAGMENTS += "\u200b \u200c \xad"
TEXTS = st.text() | st.lists(st.sampled_from([*FRAGMENTS.split(), " ", "\n", "\r\n", "\t", "\x1c"]), max_size=30).map(
    "".join
)


def tokens(text: str, tokenizer: str = "unicode") -> str:
    """Return the tokens as one string, with | for <EOS>, as in the cases below."""
    return " ".join("|" if token == EOS else token for token in tokenize(text, tokenizer))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Größe, naïve Ærø — ça va?", "Größe naïve Ærø ça va |"),
        ("Привет, мир! Как дела?", "Привет мир | Как дела |"),
        ("नमस्ते दुनिया। भारत", "नमस्ते दुनिया | भारत |"),  # vowel signs are marks, not letters
        ("مرحبا بالعالم؟ نعم", "مرحبا بالعالم | نعم |"),
        ("می\u200cخواهم", "میخواهم |"),  # a joiner shapes letters but is not one
        ("他说。她说！「好。」然后", "他说 | 她说 | 好 | 然后 |"),  # no space follows the end of a sentence
        ("안녕하세요. 반갑습니다.", "안녕하세요 | 반갑습니다 |"),
        ("don't rock'n'roll 'tis dogs' O’Brien", "don't rock'n'roll tis dogs O'Brien |"),
        ("well-known co\u2010op re\u2011do a--b -x y-", "well-known co-op re-do a b x y |"),
        ("col·lecció", "col·lecció |"),
        ("Dampf\xadschiff", "Dampfschiff |"),  # a soft hyphen
        ("cafe\u0301 café", "café café |"),  # one word in either form
        ("and/or (a) word,word end.Start", "and or a word word end Start |"),
        ("3rd COVID-19 $5 x=y <unk> C++ 1,000", "|"),
        ("He met Mr. Smith of the U.S. army. They left.", "He met Mr. Smith of the U.S. army | They left |"),
        ("Prof. Dr. J. S. Bach, Jr., e.g. z.B. Ph.D. etc.", "Prof. Dr. J. S. Bach Jr. e.g. z.B. Ph.D. etc. |"),
        ("mr. smith (Mrs. Jones) St. Paul vs. him.", "mr. smith Mrs. Jones St. Paul vs. him |"),
        ("It is I. Plan b. Done", "It is I | Plan b | Done |"),  # no initials
        ("In the U.S.? Mr... no. Was it 1945.", "In the U.S. | Mr | no | Was it |"),
        ("U.S.-led U.S, end", "U.S. led U.S end |"),
        ('He said "stop." Then (why?) he left… “Yes!” He', "He said stop | Then why | he left | Yes | He |"),
        ("A pause, she said.) And", "A pause she said | And |"),
        ("one . two ! three ?", "one | two | three |"),
        (" \n\t\n", ""),
        ("one\ntwo\r\n\r\nthree", "one | two | three |"),
    ],
)
def test_words_of_any_script(text: str, want: str) -> None:
    assert tokens(text) == want


def test_lower_case_is_for_words_only() -> None:
    assert tokens("The KING met Mr. Größe. İ", "unicode+lowercase") == "the king met mr. größe | i̇ |"
    assert tokens("The KING's. He", "plain+lowercase") == "the king | he |"
    assert tokens("The KING . He", "wikitext+lowercase") == "the king | he |"
    assert EOS in tokenize("A.", "plain+lowercase")


def test_the_text_decides_before_it_is_lowered() -> None:
    """An initial is a capital: after lower case "j." would end a sentence."""
    assert tokens("J. Smith", "unicode+lowercase") == "j. smith |"


@given(TEXTS)
def test_unicode_words_are_letters_in_one_form(text: str) -> None:
    for word in tokenize(text, "unicode"):
        if word != EOS:
            assert word.isprintable() and unicodedata.is_normalized("NFC", word) and word.split() == [word]
            assert any(map(str.isalpha, word)) and not any(map(str.isdigit, word))


@given(TEXTS, st.sampled_from(TOKENIZERS), st.booleans(), st.randoms(use_true_random=False))
def test_pieces_cut_at_white_space_give_what_the_whole_gives(text: str, tokenizer: str, dropped: bool, random) -> None:
    whole = TokenStream(tokenizer, dropped=dropped)
    want = whole.feed(text) + whole.close()
    stream, found, start = TokenStream(tokenizer, dropped=dropped), [], 0
    for cut in [match.end() for match in re.finditer(r"\s", text) if random.random() < 0.5]:
        found += stream.feed(text[start:cut])
        start = cut
    assert found + stream.feed(text[start:]) + stream.close() == want
    assert [token for token in want if not token.startswith(DROPPED_MARK)] == tokenize(text, tokenizer)


@given(st.text(min_size=1).map(lambda text: "".join(text.split()) or "x"), st.sampled_from(TOKENIZERS))
def test_pieces_cover_a_token(token: str, tokenizer: str) -> None:
    found = pieces(token, tokenizer)
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
    assert found[-1][1] == len(token) and all(start < end for start, end, _ in found)


# ---- What is dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "text", "want"),
    [
        ("wikitext", "the <unk> 's 1945 , @-@ . naïve", ["<unk>", "'s", "1945", "naïve"]),
        ("plain", "(1945), the king's 3rd -- naïve, $5!", ["1945", "'s", "3rd", "naïve", "$5"]),
        ("unicode", "(1945), the king's 3rd -- naïve, $5! a=b", ["1945", "3rd", "$5", "a=b"]),
    ],
)
def test_dropped_words_are_reported_without_their_punctuation(tokenizer: str, text: str, want: list[str]) -> None:
    found = TokenStream(tokenizer, dropped=True).feed(text)
    assert [token[1:] for token in found if token.startswith(DROPPED_MARK)] == want


# ---- Spans -----------------------------------------------------------------------------------------------------------

VOCABULARY = (EOS, "The", "king", "died", "Größe")


def spans(
    text: str, tokenizer: str = "plain", words: tuple[str, ...] = VOCABULARY
) -> list[tuple[str, str, str, object]]:
    return [
        (text[span.start : span.end], span.kind, span.word, span.id)
        for span in Vocabulary(words, tokenizer).encode(text)
    ]


def test_spans_of_plain_text() -> None:
    assert spans('The king\'s "dog", Größe\ndied. ') == [
        ("The", "known", "The", 1),
        ("king", "known", "king", 2),
        ("'s", "dropped", "", None),
        ('"', "dropped", "", None),
        ("dog", "unknown", "dog", None),
        ('",', "dropped", "", None),
        ("Größe", "dropped", "", None),
        ("\n", "sentence_end", EOS, 0),
        ("died", "known", "died", 3),
        (".", "sentence_end", EOS, 0),
    ]


def test_spans_of_unicode_text() -> None:
    assert spans("GRÖSSE größe. 42", "unicode+lowercase", (EOS, "größe", UNK)) == [
        ("GRÖSSE", "unknown", "grösse", 2),
        ("größe", "known", "größe", 1),
        (".", "sentence_end", EOS, 0),
        ("42", "dropped", "", None),
    ]


def test_a_prompt_need_not_be_in_nfc() -> None:
    """Training text is brought to that form before it is cut. The spans are places in the prompt as it was given."""
    assert spans("ό\u0387τι \u1fefναι", "unicode", (EOS, "ό·τι", "ναι")) == [
        ("ό\u0387τι", "known", "ό·τι", 1),
        ("\u1fef", "dropped", "", None),
        ("ναι", "known", "ναι", 2),
    ]
    others = [chr(i) for i in range(sys.maxunicode + 1) if not unicodedata.is_normalized("NFC", chr(i))]
    assert len(others) > 1000
    vocabulary = Vocabulary((EOS,), "unicode")
    for text in (form for char in others for form in (f"a{char}b", f"{char}ab.", f"ab.{char}")):
        given, composed = (vocabulary.encode(form) for form in (text, unicodedata.normalize("NFC", text)))
        assert [span.word for span in given] == [span.word for span in composed], ascii(text)


def test_prompts_of_a_wikitext_model_are_plain_text() -> None:
    assert spans("The king, died.", "wikitext") == spans("The king, died.", "plain")
    assert spans("the KING", "wikitext+lowercase", (EOS, "king"))[1] == ("KING", "known", "king", 1)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("The king", []),  # unfinished: the model continues it
        ("The king\n \n", []),  # a stray line feed does not finish it
        ("died. \n", [(4, 5)]),
        ("died\r\nThe", [(4, 5)]),  # the first of the two ends the line
        ("died.\nThe", [(4, 5)]),  # one sentence end, not two
        ("\n\ndied  \n\nThe", [(8, 9)]),
    ],
)
def test_where_a_sentence_ends(text: str, ends: list[tuple[int, int]]) -> None:
    found = Vocabulary(VOCABULARY).encode(text)
    assert [(span.start, span.end) for span in found if span.kind == "sentence_end"] == ends


@given(TEXTS, st.sampled_from(TOKENIZERS), st.booleans())
def test_nothing_that_was_sent_is_missing(text: str, tokenizer: str, unk: bool) -> None:
    vocabulary = Vocabulary([EOS, "king", "The", *([UNK] if unk else [])], tokenizer)
    found = vocabulary.encode(text)
    assert all(isinstance(span, Span) and span.start < span.end for span in found)
    assert all(first.end <= second.start for first, second in itertools.pairwise(found))
    for start, end in zip([0, *(s.end for s in found)], [*(s.start for s in found), len(text)], strict=True):
        assert not text[start:end].strip()
    assert {span.kind for span in found} <= {"known", "unknown", "dropped", "sentence_end"}
    assert [span.word for span in found if span.kind != "dropped"] == TokenStream(vocabulary.tokenizer).feed(
        text.rstrip()
    )
    assert tokens_of(vocabulary.encode(text))[0] == [span.id for span in found if span.id is not None]
