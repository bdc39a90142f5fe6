"""Text from tokens, and stop phrases."""

from hypothesis import given
from hypothesis import strategies as st

from service.wording import Wording, ends_with, held_back, parse_stop
from text import EOS, Vocabulary

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
    assert parse_stop(["a b", "c\n", "\n"], VOCABULARY) == ((1, 2), (3, 0), (0,))


def test_a_phrase_with_an_unknown_word_or_without_words_is_left_out() -> None:
    assert parse_stop(["a zebra", "  ", "c"], VOCABULARY) == ((3,),)


@given(tokens_of, st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=3))
def test_what_is_shown_never_has_to_be_taken_back(tokens: list[int], phrases: list[tuple[int, ...]]) -> None:
    """Simulates a stream: what was shown before a stop is a prefix of what is kept after it."""
    shown = 0
    for length in range(1, len(tokens) + 1):
        stopped = ends_with(tokens[:length], phrases)
        if stopped:
            assert shown <= length - stopped
            return
        assert shown <= length - held_back(tokens[:length], phrases)
        shown = length - held_back(tokens[:length], phrases)


def test_the_longest_phrase_counts() -> None:
    assert ends_with([1, 2, 3], [(3,), (2, 3), (1, 3)]) == 2
    assert ends_with([1, 2], [(3,)]) == 0
    assert held_back([3, 1, 2], [(1, 2, 3), (2, 1)]) == 2
