"""The page's score view in a real browser."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from browsing import OpenPage, playwright, running, texts
from colours import THEMES, VISIONS, contrast, linear, oklab, rgb
from conftest import make_checkpoint
from serving import Server, save_tiny

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect
TEXT = "The minister said that <script>alert(1)</script> the Zanzibari government had won. It was late."


def score(page: Any) -> None:
    page.get_by_role("button", name="Score", exact=True).click()


def test_a_text_is_scored_word_by_word(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_role("link", name="Score").click()
    page.get_by_label("Text to score").fill(TEXT)
    for backend, name in (("c", "C"), ("torch", "PyTorch")):
        page.locator("#score-form").get_by_role("radio", name=name, exact=True).check()
        score(page)
        result = page.locator("#score-result")
        told = server.post("/score", json={"text": TEXT, "backend": backend, "top_logprobs": 5}).json()
        expect(result.get_by_role("article")).to_have_attribute("data-backend", backend)
        tokens = [token for token in told["tokens"] if token["id"] is not None]
        unread = [own(token) for token in told["tokens"] if token["id"] is None]
        assert unread and texts(result.locator(".own .unread")) == unread
        assert texts(result.locator(".own .word")) == [own(token) for token in tokens]
        expect(result.locator(".figures div").first).to_contain_text(re.compile(r"perplexity\s*[\d,.]+"))
        perplexity = float(result.locator(".figures dd").first.inner_text().replace(",", ""))
        assert abs(perplexity - told["perplexity"]) <= 0.005 * told["perplexity"]
        expect(result.locator(".yardsticks")).to_contain_text("a model that knows nothing has 1,000")
        expect(result.locator(".yardsticks")).to_contain_text("only how common each word is")
        worst = min(tokens, key=lambda token: token["logprob"])
        expect(result.locator(".surprises li").first).to_contain_text(own(worst))
        deepest = result.locator(".own .word").evaluate_all(
            "words => Math.max(...words.map(word => word.dataset.step))"
        )
        assert deepest == min(6, int(-worst["logprob"] / 0.6931471805599453 // 2))
        result.locator(".own .word").nth(1).hover()
        expect(page.get_by_role("tooltip").get_by_role("listitem").first).to_contain_text(tokens[1]["top"][0]["word"])


def own(token: dict[str, Any], text: str = TEXT) -> str:
    return text[token["start"] : token["end"]]


def test_the_text_is_shown_as_it_was_written(server: Server, open_page: OpenPage) -> None:
    """In its lines, with its spaces, and each piece marked as what it is to the model."""
    text = "\U0001f600 The  (government) 1999\n\n   said Zanzibari, and was late!\nThe end"
    page = open_page(server.url + "/#view=score")
    page.get_by_label("Text to score").fill(text)
    score(page)
    result = page.locator("#score-result")
    assert texts(result.locator(".own .line")) == text.split("\n")
    told = server.post("/score", json={"text": text}).json()["tokens"]
    for kind, found in (
        ("known", result.locator(".own .word.known")),
        ("unknown", result.locator(".own .word.unknown")),
        ("dropped", result.locator(".own .unread.dropped")),
        ("sentence_end", result.locator(".own .word.sentence_end")),
    ):
        of_kind = [own(token, text).strip("\n") for token in told if token["kind"] == kind]
        assert of_kind and texts(found) == of_kind
        expect(result.locator(".kinds")).to_contain_text(f"{len(of_kind)} ")
    counts = texts(result.locator(".kinds b"))
    assert counts == [str(sum(token["kind"] == kind for token in told)) for kind in KINDS]
    struck = result.locator(".own .unread").first
    assert struck.evaluate("piece => getComputedStyle(piece).textDecorationLine") == "line-through"
    expect(struck).to_have_attribute("title", "not read by the model")
    expect(result.get_by_role("button", name="end of a sentence")).to_have_count(2)


KINDS = ("known", "sentence_end", "unknown", "dropped")  # in the order of their list


@pytest.mark.parametrize(
    ("tokenizer", "text", "rule"),
    [
        ("plain", "waa w\N{LATIN SMALL LETTER O WITH DIAERESIS}rld", "with any character but the letters A to Z"),
        ("unicode", "waa 3rd", "with a digit or symbol inside"),
    ],
)
def test_the_list_of_kinds_says_which_words_the_model_drops(
    tmp_path: Path, open_page: OpenPage, tokenizer: str, text: str, rule: str
) -> None:
    checkpoint.save(tmp_path / "demo.safetensors", dataclasses.replace(make_checkpoint(vocab=40), tokenizer=tokenizer))
    with running(tmp_path) as server:
        page = open_page(server.url + "/#view=score")
        page.get_by_label("Text to score").fill(text)
        score(page)
        expect(page.locator(".kinds")).to_contain_text(f"1 1999 dropped: numbers, marks, and words {rule}")


def test_a_vocabulary_without_unk_reads_no_unknown_words(tmp_path: Path, open_page: OpenPage) -> None:
    save_tiny(tmp_path, "tiny")
    with running(tmp_path) as server:
        page = open_page(server.url + "/#view=score&text=waa+Zanzibari+wab")
        score(page)
        expect(page.locator(".own .unread.unknown")).to_have_text("Zanzibari")
        expect(page.locator(".kinds")).to_contain_text("1 word not in the vocabulary, and not read")


def test_the_length_is_counted_and_limited(weights: Path, open_page: OpenPage) -> None:
    with running(weights, RNN_MAX_SCORE_CHARS="40") as server:
        page = open_page(server.url + "/#view=score", refusals=True)
        counter = page.locator("#text-count")
        page.get_by_label("Text to score").fill("The \U0001f600 minister")
        expect(counter).to_have_text("14 of 40 characters")
        page.get_by_label("Text to score").fill("The minister " * 4)
        expect(counter).to_have_text("52 of 40 characters")
        score(page)
        complaint = "Text to score must have at most 40 characters, got 52."
        expect(page.get_by_role("alert")).to_have_text(complaint)
        page.route("**/openapi.json", lambda route: route.abort())  # then the service itself says so
        page.reload()
        expect(counter).to_have_text("52 characters")
        score(page)
        expect(page.get_by_role("alert")).to_contain_text("Text to score must have at most 40 characters")


def test_a_long_text(server: Server, open_page: OpenPage) -> None:
    text = ("The minister said that the government had won.\n" * 1200)[:50_000]
    page = open_page(server.url + "/#view=score")
    # At once, as one pastes: fill() types line by line, with an event for each.
    page.get_by_label("Text to score").evaluate(
        "(field, text) => { field.value = text; field.dispatchEvent(new Event('input', { bubbles: true })); }", text
    )
    expect(page.locator("#text-count")).to_have_text("50,000 of 50,000 characters")
    score(page)
    expect(page.locator(".own .line")).to_have_count(text.count("\n") + 1)
    page.locator(".own .word").last.scroll_into_view_if_needed()
    page.locator(".own .word").last.hover()
    expect(page.get_by_role("tooltip")).to_be_visible()


# ---- Two files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the demo weights, and of others that are less sure of everything and lack the word "minister"."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copy(demo, folder)
    loaded = checkpoint.load(demo, copy=True)
    loaded.weights.Why[:] *= 0.2
    names = ("weights", "tokenizer", "backend", "config", "history")
    words = tuple("notminister" if word == "minister" else word for word in loaded.vocabulary)
    parts = {name: getattr(loaded, name) for name in names} | {"vocabulary": words}
    checkpoint.save(folder / "unsure.safetensors", Checkpoint(**parts))
    with running(folder) as server:
        yield server


def test_two_files_are_compared_word_by_word(pair: Server, open_page: OpenPage) -> None:
    page = open_page(pair.url + "/#view=score")
    page.get_by_label("Text to score").fill(TEXT)
    page.get_by_label("Compare with").select_option("unsure")
    score(page)
    verdict = page.locator(".verdict")
    expect(verdict).to_be_visible()
    ours, theirs = (
        {
            (token["start"], token["end"]): -token["logprob"] / math.log(2)
            for token in pair.post("/score", json={"text": TEXT, "weights": name}).json()["tokens"]
            if token["kind"] in ("known", "sentence_end")
        }
        for name in ("demo", "unsure")
    )
    places = [place for place in ours if place in theirs]
    leads = [theirs[place] - ours[place] for place in places]
    assert len(places) == len(ours) - 1  # "minister"
    sums = [sum(bits[place] for place in places) for bits in (ours, theirs)]
    winner = "demo" if sums[0] < sums[1] else "unsure"
    expect(verdict).to_contain_text(f"{winner} predicts this text better")
    rows = verdict.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert rows[0][1:] == [str(sum(sign * lead >= 0.5 for lead in leads)) for sign in (1, -1)]
    for row, numbers in zip(rows[1:], (sums, [s / len(places) for s in sums]), strict=False):
        assert [float(cell) for cell in row[1:]] == pytest.approx(numbers, rel=0.006)
    assert [float(cell.replace(",", "")) for cell in rows[3][1:]] == pytest.approx(
        [2 ** (total / len(places)) for total in sums], rel=0.006
    )
    shown = page.locator(".own .word[data-lead]").evaluate_all("words => words.map(word => Number(word.dataset.lead))")
    assert shown == [round(math.copysign(sum(abs(lead) >= step for step in (0.5, 2, 4)), lead)) for lead in leads]
    expect(page.locator(".own .uncompared")).to_have_text(["minister", "Zanzibari"])
    page.locator(".own .word").first.hover()
    expect(page.get_by_role("tooltip")).to_contain_text(f"unsure: {2 ** -theirs[0, 3]:.1%}"[:9])
    expect(page.locator("#score-legend")).to_contain_text("On the left demo; on the right, underlined, unsure.")
    page.get_by_label("Compare with").select_option("")
    score(page)
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()
    expect(page.locator("#score-legend")).to_contain_text("How much each word surprised the model")


def test_a_file_is_not_compared_with_itself(pair: Server, open_page: OpenPage) -> None:
    page = open_page(pair.url + "/#view=score&other=demo")
    score(page)
    expect(page.get_by_role("alert")).to_have_text("Compare with must be another file.")


def test_one_of_two_files_cannot_be_used(pair: Server, open_page: OpenPage) -> None:
    page = open_page(pair.url + "/#view=score", refusals=True)
    score(page)
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()

    def fail_second(route: Any) -> None:
        if "unsure" in route.request.post_data:
            route.abort()
        else:
            route.fallback()

    page.route("**/score", fail_second)
    page.get_by_label("Compare with").select_option("unsure")
    score(page)
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()  # what was there stays
    page.unroute("**/score")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".verdict")).to_be_visible()


@pytest.mark.parametrize("theme", THEMES)
def test_the_scale_of_two_files_can_be_told_apart_and_read_by_all(
    pair: Server, open_page: OpenPage, theme: str
) -> None:
    page = open_page(pair.url + "/#view=score&other=unsure", color_scheme=theme)
    score(page)
    expect(page.locator(".verdict")).to_be_visible()
    steps = page.locator("#score-legend li")
    found = steps.evaluate_all(
        "steps => steps.map(step => (s => [s.color, s.backgroundColor, s.textDecorationLine])(getComputedStyle(step)))"
    )
    assert [line for _, _, line in found] == ["none"] * 4 + ["underline"] * 3
    colours = [linear(rgb(page, colour)) for _, colour, _ in found]
    ink = linear(rgb(page, found[0][0]))
    assert min(contrast(ink, colour) for colour in colours) >= 4.5
    for vision, matrix in VISIONS.items():
        seen = [oklab(np.clip(np.array(matrix) @ colour, 0, 1)) for colour in colours]
        assert min(math.dist(a, b) for a, b in itertools.pairwise(seen)) > 0.03, vision
        if vision != "none":  # there the underlining tells the sides apart
            assert min(math.dist(seen[index], seen[6 - index]) for index in range(3)) > 0.04, vision


# ---- Links, refusals, lost connections -------------------------------------------------------------------------------


def test_a_link_to_a_text(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score&text=The+government&backend=torch")
    expect(page.get_by_label("Text to score")).to_have_value("The government")
    expect(page.locator("#score-form").get_by_role("radio", name="PyTorch")).to_be_checked()
    page.get_by_label("Text to score").press("Control+Enter")
    expect(page.locator("#score-result .own .word")).to_have_count(2)


def test_what_cannot_be_scored(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score", refusals=True)
    score(page)
    expect(page.locator("#score-result .word").first).to_be_visible()
    scored = texts(page.locator("#score-result .word"))
    for text, complaint in (
        ("", "Text to score must have a word to score."),
        ("1 2 3", "has no word"),
        ("The " * 12501, "Text to score must have at most 50,000 characters, got 50,004."),
    ):
        page.get_by_label("Text to score").fill(text)
        score(page)
        expect(page.get_by_role("alert")).to_contain_text(complaint)
        expect(page.locator("#score-result .word")).to_have_text(scored)  # what was on screen stays


def test_a_complaint_about_a_long_word_stays_on_the_page(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score", refusals=True, viewport={"width": 320, "height": 900})
    page.get_by_label("Text to score").fill("WORD" * 3000)
    score(page)
    expect(page.get_by_role("alert")).to_contain_text("WORDWORD…")
    assert page.get_by_role("alert").evaluate("alert => alert.scrollWidth <= alert.clientWidth")


def test_a_back_end_that_turns_out_to_be_missing(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score&backend=torch", refusals=True)
    problem = '{"detail": "torch is not installed here: use the C model", "code": "backend_missing"}'
    page.route("**/score", lambda route: route.fulfill(status=501, body=problem))
    score(page)
    expect(page.get_by_role("alert")).to_have_text("Torch is not installed here: use the C model.")
    page.unroute("**/score")
    expect(page.locator("#score-form").get_by_role("radio", name="C", exact=True)).to_be_checked()
    score(page)
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()


def test_a_lost_connection(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score", refusals=True)
    page.route("**/score", lambda route: route.abort())
    score(page)
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    page.unroute("**/score")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()
