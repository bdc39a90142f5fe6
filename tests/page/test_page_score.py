"""The page's score view in a real browser."""

from __future__ import annotations

import re
from typing import Any

import browsing
from browsing import OpenPage, playwright, texts
from serving import Server

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures

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
        tokens = [token for token in told["tokens"] if token["id"] is not None]
        unread = [TEXT[token["start"] : token["end"]] for token in told["tokens"] if token["id"] is None]
        assert unread and texts(result.locator(".unread")) == unread
        shown = texts(result.locator(".word"))
        assert [text.replace("¶", "<EOS>") for text in shown] == [token["word"] for token in tokens]
        expect(result.locator(".figures div").first).to_contain_text(re.compile(r"perplexity\s*[\d,.]+"))
        perplexity = float(result.locator(".figures dd").first.inner_text().replace(",", ""))
        assert abs(perplexity - told["perplexity"]) <= 0.005 * told["perplexity"]
        expect(result.locator(".unknown-note")).to_contain_text("Zanzibari")
        worst = min(tokens, key=lambda token: token["logprob"])
        expect(result.locator(".surprises li").first).to_contain_text(worst["word"])
        deepest = result.locator(".word").evaluate_all("words => Math.max(...words.map(word => word.dataset.step))")
        assert deepest == min(6, int(-worst["logprob"] / 0.6931471805599453 // 2))
        result.locator(".word").nth(1).hover()
        expect(page.get_by_role("tooltip").get_by_role("listitem").first).to_contain_text(tokens[1]["top"][0]["word"])


def test_what_is_not_read_is_shown_in_its_place(server: Server, open_page: OpenPage) -> None:
    """Places are counted in code points, and JavaScript counts in halves of some."""
    page = open_page(server.url + "/#view=score")
    page.get_by_label("Text to score").fill("\U0001f600 The (government) 1999")
    score(page)
    expect(page.locator("#score-result .words")).to_have_text("\U0001f600 The ( government ) 1999")
    expect(page.locator("#score-result .unread").first).to_have_attribute("title", "not read by the model")


def test_a_link_to_a_text(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score&text=The+government&backend=torch")
    expect(page.get_by_label("Text to score")).to_have_value("The government")
    expect(page.locator("#score-form").get_by_role("radio", name="PyTorch")).to_be_checked()
    page.get_by_label("Text to score").press("Control+Enter")
    expect(page.locator("#score-result .word")).to_have_count(2)


def test_what_cannot_be_scored(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=score", refusals=True)
    score(page)
    expect(page.locator("#score-result .word").first).to_be_visible()
    scored = texts(page.locator("#score-result .word"))
    for text, complaint in (
        ("", "Text to score must have a word to score."),
        ("1 2 3", "has no word"),
        ("The " * 5000, "Text to score must have at most 10,000 characters."),
    ):
        page.get_by_label("Text to score").fill(text)
        score(page)
        expect(page.get_by_role("alert")).to_contain_text(complaint)
        expect(page.locator("#score-result .word")).to_have_text(scored)  # what was on screen stays


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
