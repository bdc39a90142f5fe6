"""Tokens and the vocabulary: the rules of rnnlm/data/text.py, one by one."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from corpora import tokenize
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.data import text
from rnnlm.data.text import EOS, TOKENIZERS, UNK, TextError, TokenStream, Vocabulary, rank_words, tokens_of
from rnnlm.errors import UserError

# The pieces of texts in which hypothesis often meets every rule.
FRAGMENTS = st.sampled_from(
    [
        "king",
        "The",
        "a",
        "café",
        "don't",
        "3",
        ".",
        "!",
        "?",
        ",",
        '"',
        "'",
        "—",
        "--",
        "<unk>",
        "@-@",
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=40).map("".join)


def tokens(text: str, tokenizer: str = "plain") -> str:
    """Return the tokens as one string, with | for <EOS>, as in the cases below."""
    return " ".join("|" if token == EOS else token for token in tokenize(text, tokenizer))


BOTH = [
    ("", ""),
    (" \n\t\n", ""),  # empty lines give nothing
    ("the king", "the king |"),  # the end of the text ends its last line
    ("the king\nthe queen\n", "the king | the queen |"),
    ("the king\r\nthe queen\rthe end", "the king | the queen | the end |"),
    ("the king .", "the king |"),  # a sentence that ends with its line gives one <EOS>, not two
    ("the king . \n", "the king |"),
    ("he died . she lived", "he died | she lived |"),
    ("did he ? yes ! no", "did he | yes | no |"),
    ("he . . she", "he | | she |"),  # a sentence without words still ends
    ("1945 .", "|"),
    ("@-@ ,", "|"),
    ("the <unk> of 2 cafés naïve", "the of |"),  # not [A-Za-z]+: dropped
    ("King KING king", "King KING king |"),  # case is kept
    ("York City F.C. season", "York City | season |"),  # the rule looks only at the last character
]

WIKITEXT = [
    ("the king, who died.", "the who |"),  # taken as is: "king," and "died." are no words
    ("king 's crown", "king crown |"),
    ("(the) 'quoted'", "|"),
]

PLAIN = [
    ("The king, who (it is said) died. He did!", "The king who it is said died | He did |"),
    ("'quoted' \"quoted\" “quoted” ‘quoted’ «quoted» ``quoted''", " ".join(["quoted"] * 6) + " |"),  # noqa: RUF001
    ("king's kings' don't O’Brien", "king kings don O |"),  # as WikiText's "king 's", "don 't", "O 'Brien"  # noqa: RUF001
    ("red--green red—green red–green —red red—", "red green red green red green red red |"),  # noqa: RUF001
    ("well-known", "|"),  # one token, not only letters
    ("wait... what", "wait | what |"),
    ("3rd, 1,000 a1 $5 <b> <unk>. x=y", "| |"),
    ("*bold* _under_ [note] {brace} end;", "bold under note brace end |"),
    ('he said "stop." then left', "he said stop then left |"),  # a quotation mark follows the full stop, not a space
    ("ﬁne Ａ", "|"),  # letters, but not ASCII  # noqa: RUF001
]


@pytest.mark.parametrize(("text", "want"), BOTH)
@pytest.mark.parametrize("tokenizer", ["wikitext", "plain"])
def test_sentences_and_words(text: str, want: str, tokenizer: str) -> None:
    assert tokens(text, tokenizer) == want


@pytest.mark.parametrize(("text", "want"), WIKITEXT)
def test_wikitext_tokens_are_taken_as_they_stand(text: str, want: str) -> None:
    assert tokens(text, "wikitext") == want


@pytest.mark.parametrize(("text", "want"), PLAIN)
def test_plain_text_loses_the_punctuation_that_clings(text: str, want: str) -> None:
    assert tokens(text, "plain") == want


def test_unknown_tokenizer_names_those_there_are() -> None:
    with pytest.raises(TextError, match=r"unknown tokenizer 'moses'.*wikitext, plain"):
        tokenize("the king", "moses")


@given(TEXTS)
def test_wikitext_rule_as_the_design_words_it(text: str) -> None:
    want = []
    for line in re.split(r"[\r\n]", text):
        for sentence in re.split(r"(?<=[.!?])\s+", line.strip()) if line.strip() else []:
            want += [token for token in sentence.split() if re.fullmatch("[A-Za-z]+", token)] + [EOS]
    assert tokenize(text, "wikitext") == want


@given(st.text() | TEXTS, st.sampled_from(["wikitext", "plain"]))
def test_only_words_and_sentence_ends_come_out(text: str, tokenizer: str) -> None:
    found = tokenize(text, tokenizer)
    assert all(token == EOS or re.fullmatch("[A-Za-z]+", token) for token in found)
    assert not found or found[-1] == EOS


@given(TEXTS, st.sampled_from(TOKENIZERS), st.randoms(use_true_random=False))
def test_pieces_cut_at_white_space_give_what_the_whole_gives(text: str, tokenizer: str, random) -> None:
    stream, found, start = TokenStream(tokenizer), [], 0
    for cut in [match.end() for match in re.finditer(r"\s", text) if random.random() < 0.5]:
        found += stream.feed(text[start:cut])
        start = cut
    found += stream.feed(text[start:]) + stream.close()
    assert found == tokenize(text, tokenizer)


def test_importing_text_is_cheap() -> None:
    code = (
        "import sys, rnnlm.data.text; print([m for m in ('numpy', 'gensim', 'datasets', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- The vocabulary --------------------------------------------------------------------------------------------------


def test_vocabulary_keeps_the_order_it_is_given() -> None:
    vocabulary = Vocabulary(("the", EOS, "king"))
    assert vocabulary.words == ("the", EOS, "king")
    assert dict(vocabulary.ids) == {"the": 0, EOS: 1, "king": 2}
    assert (len(vocabulary), vocabulary.eos, vocabulary.unk) == (3, 1, None)
    assert Vocabulary([EOS, "king", UNK]).unk == 2
    with pytest.raises(TypeError):
        vocabulary.ids["queen"] = 3  # type: ignore[index]  # shared by all who serve


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_reads_prompts_and_corpora_as_the_vocabulary_does(again, tokenizer: str) -> None:
    vocabulary = Vocabulary((EOS, "king"), tokenizer)
    copied = again(vocabulary)
    assert copied is not vocabulary and copied.words == vocabulary.words
    assert (copied.corpus_tokenizer, copied.tokenizer) == (tokenizer, vocabulary.tokenizer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((EOS, "king", "the", "king"), "words 1 and 3 are both 'king'"),
        (("the", "king"), "the vocabulary of 2 words lacks <EOS>"),
        ((), "the vocabulary of 0 words lacks <EOS>"),
        ((EOS, ""), "word 1 is ''"),
        ((EOS, "the king"), "word 1 is 'the king'"),
        ((EOS, "king\n"), r"word 1 is 'king\\n'"),
    ],
)
def test_what_is_no_vocabulary_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(TextError, match=message):
        Vocabulary(words)


@pytest.mark.parametrize(
    ("prompt", "ids", "unknown"),
    [
        ("The king", [1, 2], []),  # unfinished: the model continues it
        ("The king\n", [1, 2], []),  # a stray line feed does not finish it
        ("He died.", [3, 4, 0], []),  # finished at its very end
        ("He died. \n", [3, 4, 0], []),
        ("He died. The king", [3, 4, 0, 1, 2], []),
        ("He died\nThe king", [3, 4, 0, 1, 2], []),
        ("The dog, the king, the dog", [1, 2], ["dog", "the"]),  # case matters; each unknown word once, in order
        ("", [], []),
        ("1945", [], []),
    ],
)
def test_prompts_without_unk(prompt: str, ids: list[int], unknown: list[str]) -> None:
    assert tokens_of(Vocabulary((EOS, "The", "king", "He", "died")).encode(prompt)) == (ids, unknown)


def test_unknown_words_of_a_prompt_become_unk_where_there_is_one() -> None:
    vocabulary = Vocabulary((EOS, "The", UNK, "king"))
    assert tokens_of(vocabulary.encode("The dog king dog cat.")) == ([1, 2, 3, 2, 2, 0], ["dog", "cat"])
    # The marks themselves are not words, so no text can name them.
    assert tokens_of(vocabulary.encode("The <UNK> <EOS> king")) == ([1, 3], [])


def test_decode() -> None:
    vocabulary = Vocabulary((EOS, "The", "king", UNK))
    assert vocabulary.decode([1, 2, 0, 1, 3]) == "The king\nThe <UNK>"
    assert vocabulary.decode([0, 1, 0, 0]) == "\nThe\n\n"
    assert vocabulary.decode(iter(())) == ""
    for bad in (-1, 4):
        with pytest.raises(IndexError, match=rf"token id {bad} is outside the vocabulary \[0, 4\)"):
            vocabulary.decode([1, bad])


@given(st.lists(st.integers(0, 3), max_size=20))
def test_a_decoded_text_encodes_to_the_same_words(ids: list[int]) -> None:
    vocabulary = Vocabulary((EOS, "The", "king", "died"))
    words = [i for i in ids if i != vocabulary.eos]
    assert [i for i in tokens_of(vocabulary.encode(vocabulary.decode(ids)))[0] if i != vocabulary.eos] == words


# ---- Which words a vocabulary keeps ----------------------------------------------------------------------------------

COUNTS = {"b": 5, EOS: 4, "a": 5, "d": 1, "B": 5, "c": 2}  # 22 tokens


def test_words_rank_by_count_then_alphabet() -> None:
    assert rank_words(COUNTS) == {"B": 5, "a": 5, "b": 5, EOS: 4, "c": 2, "d": 1}
    assert list(rank_words(COUNTS)) == ["B", "a", "b", EOS, "c", "d"]


def test_unk_is_there_only_if_something_must_map_to_it() -> None:
    assert UNK not in rank_words(COUNTS)
    assert UNK not in rank_words(COUNTS, vocab_size=6)
    assert list(rank_words(COUNTS, has_unseen=True).items())[-1] == (UNK, 0)
    assert rank_words(COUNTS, vocab_size=7, has_unseen=True) == rank_words(COUNTS, has_unseen=True)
    assert rank_words(COUNTS, vocab_size=99) == rank_words(COUNTS)  # more than there are
    assert rank_words(COUNTS, vocab_size=99, has_unseen=True) == rank_words(COUNTS, has_unseen=True)


@given(st.integers(3, 7), st.booleans())
def test_vocab_size_is_the_size(size: int, has_unseen: bool) -> None:
    if size > len(COUNTS) + has_unseen:
        return
    ranked = rank_words(COUNTS, vocab_size=size, has_unseen=has_unseen)
    assert len(ranked) == size
    assert sum(ranked.values()) == 22  # no token is lost
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    assert ranked[EOS] == 4


def test_words_are_cut_from_the_rare_end_and_unk_takes_its_place_by_count() -> None:
    assert rank_words(COUNTS, vocab_size=4) == {UNK: 8, "B": 5, "a": 5, EOS: 4}
    assert list(rank_words(COUNTS, vocab_size=4)) == [UNK, "B", "a", EOS]  # "<" sorts before letters, but 8 decides
    assert rank_words(COUNTS, vocab_size=6, has_unseen=True) == {"B": 5, "a": 5, "b": 5, EOS: 4, "c": 2, UNK: 1}


def test_the_sentence_end_is_kept_though_it_be_rare() -> None:
    assert rank_words({"a": 9, "b": 8, "c": 7, EOS: 1}, vocab_size=3) == {UNK: 15, "a": 9, EOS: 1}


@pytest.mark.parametrize(
    ("size", "has_unseen", "message"),
    [
        (2, False, "vocabulary size 2 is too small"),
        (0, False, "vocabulary size 0 is too small"),
        (-1, True, "vocabulary size -1 is too small"),
    ],
)
def test_sizes_that_no_vocabulary_can_have(size: int, has_unseen: bool, message: str) -> None:
    with pytest.raises(TextError, match=message):
        rank_words(COUNTS, vocab_size=size, has_unseen=has_unseen)


def test_errors_are_the_users_to_mend() -> None:
    assert issubclass(TextError, UserError)
    assert TextError.exit_code == 2


def test_only_short_tokens_are_kept_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TokenStream("plain")
    stream.feed("(" + "k" * 63 + " (" + "l" * 64 + " (" + "m" * 9_999)
    assert len(stream._outcomes) == 1
    monkeypatch.setattr(text, "_CACHED_TOKENS", 10)
    assert stream.feed(" ".join("abcdefghijklmnopqrstuvwxyz")) == list("abcdefghijklmnopqrstuvwxyz")
    assert len(stream._outcomes) <= 10
