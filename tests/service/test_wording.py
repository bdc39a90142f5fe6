"""Text from tokens, and stop phrases."""

from hypothesis import given
from hypothesis import strategies as st

from rnnlm.data.text import EOS, Vocabulary
from service.wording import Phrase, StopMatcher, Wording, parse_stop

VOCABULARY = Vocabulary((EOS, "a", "b", "c"))
tokens_of = st.lists(st.integers(0, 3), max_size=12)


@given(tokens_of)
def test_pieces_make_up_the_decoded_text(tokens: list[int]) -> None:
    wording = Wording(VOCABULARY)
    assert "".join(wording.add(token) for token in tokens) == VOCABULARY.decode(tokens)


def test_a_piece_can_be_looked_at_without_adding_it() -> None:
    wording = Wording(VOCABULARY)
    wording.add(1)
    assert [wording.piece(2), wording.piece(0), wording.piece(2)] == [" b", "\n", " b"]


def test_stop_phrases_are_whole_words_and_sentence_ends() -> None:
    assert [phrase.ids for phrase in parse_stop(["a b", "c\n", "\n"], VOCABULARY)] == [(1, 2), (3, 0), (0,)]


def test_a_phrase_with_an_unknown_word_or_without_words_is_left_out() -> None:
    assert [phrase.ids for phrase in parse_stop(["a zebra", "  ", "c"], VOCABULARY)] == [(3,)]


phrases_of = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=3)


@given(st.lists(st.integers(0, 2), max_size=40), phrases_of)
def test_the_matcher_finds_what_a_comparison_finds(tokens: list[int], phrases: list[tuple[int, ...]]) -> None:
    matcher = StopMatcher([Phrase.of(phrase) for phrase in phrases])
    for end in range(1, len(tokens) + 1):
        seen = tuple(tokens[:end])
        assert matcher.add(tokens[end - 1]) == max((len(p) for p in phrases if seen[-len(p) :] == p), default=0)
        starts = (n for p in phrases for n in range(1, len(p)) if seen[-n:] == p[:n])
        assert matcher.held_back == max(starts, default=0)


def test_a_token_costs_the_same_however_long_the_phrase_is() -> None:
    class Counted(int):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    matcher = StopMatcher([Phrase.of((1,) * 99 + (2,))])
    for _ in range(1000):
        matcher.add(Counted(1))
    assert Counted.compared < 5 * 1000
