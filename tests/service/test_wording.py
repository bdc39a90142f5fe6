"""Text from tokens, and stop phrases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm.data.text import EOS, UNK, Vocabulary
from service.wording import Cut, Matcher, Phrase, Stop, Wording, gap_after, read_stop

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


@pytest.mark.parametrize(("text", "gap"), [("a", " "), ("a.", " "), ("a ", ""), ("a\n", ""), ("", "")])
def test_a_continuation_is_separated_from_its_prompt(text: str, gap: str) -> None:
    assert gap_after(text) == gap


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a b", (1, 2)),
        ("c\n", (3, 0)),
        ("\n", (0,)),
        ("\na", (0, 1)),
        ("c.", (3, 0)),  # the word, and the end of its sentence
        (".", (0,)),
        ("a. b", (1, 0, 2)),
        ("(a,", (1,)),
        (" b ", (2,)),
    ],
)
def test_stop_phrases_are_read_as_prompts_are(text: str, ids: tuple[int, ...]) -> None:
    assert read_stop(text, VOCABULARY).ids == ids


@pytest.mark.parametrize(
    ("text", "says"), [("a zebra", "zebra"), ("  ", "no word"), ("1999", "no word"), (",", "no word")]
)
def test_phrases_that_can_never_be_written(text: str, says: str) -> None:
    phrase = read_stop(text, VOCABULARY)
    assert phrase.ids == () and says in phrase.problem


def test_what_is_never_drawn_can_never_be_written() -> None:
    vocabulary = Vocabulary((EOS, UNK, "a"))
    assert read_stop("zebra", vocabulary).problem and read_stop("a", vocabulary).ids == (2,)


def stop_of(*texts: str) -> Stop:
    return Stop([], [Phrase.of(text) for text in texts], Wording(VOCABULARY, " "))


def test_a_text_is_cut_where_its_phrase_begins() -> None:
    stop = stop_of("b c")  # the text is " a b c"
    assert [stop.add(1), stop.held_back] == [None, 0]
    assert [stop.add(2), stop.held_back] == [None, 1]  # " b": the word may be the start
    assert stop.add(3) == Cut(1, 1)  # " c" goes whole, and of " b" the space stays
    assert stop_of(" a").add(1) == Cut(1) and stop_of("a").add(1) == Cut(0, 1)


def test_the_phrase_that_begins_first_cuts() -> None:
    stop = Stop([Phrase.of((2,))], [Phrase.of("a b")], Wording(VOCABULARY, " "))
    stop.add(1)
    assert stop.add(2) == Cut(1, 1)  # inside the first word, not before the second


@given(tokens_of, st.lists(st.text(st.sampled_from("abc \n"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_phrases_of_text_are_found_wherever_they_are(tokens: list[int], phrases: list[str]) -> None:
    stop, wording, text = stop_of(*phrases), Wording(VOCABULARY, " "), ""
    pieces = []
    for token in tokens:
        pieces.append(wording.add(token))
        text = "".join(pieces)
        cut = stop.add(token)
        found = [place for phrase in phrases if (place := text.find(phrase)) >= 0]
        if cut is None:
            assert not found
            held = "".join(pieces[len(pieces) - stop.held_back :])
            starts = [n for phrase in phrases for n in range(1, len(phrase)) if text.endswith(phrase[:n])]
            assert len(held) >= max(starts, default=0)
            continue
        kept = "".join(pieces[: len(pieces) - cut.touched])
        if cut.kept is not None:
            kept += pieces[len(pieces) - cut.touched][: cut.kept]
        ends = {phrase: text.find(phrase) + len(phrase) for phrase in phrases if phrase in text}
        first = min(ends.values())
        assert len(kept) == min(text.find(phrase) for phrase, end in ends.items() if end == first)
        return


phrases_of = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=3)


@given(st.lists(st.integers(0, 2), max_size=40), phrases_of)
def test_the_matcher_finds_what_a_comparison_finds(tokens: list[int], phrases: list[tuple[int, ...]]) -> None:
    matcher = Matcher([Phrase.of(phrase) for phrase in phrases])
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

    matcher = Matcher([Phrase.of((1,) * 99 + (2,))])
    for _ in range(1000):
        matcher.add(Counted(1))
    assert Counted.compared < 5 * 1000
