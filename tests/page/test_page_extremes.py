"""What is very large, very short, or gone: models of many words or units, long texts, a service that stops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import browsing
import pytest
from browsing import OpenPage, card, ended, generate, go_button, playwright, running, state, words
from conftest import make_checkpoint
from serving import Server

from rnnlm.checkpoint import save

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect
UNITS, WORDS = 1_000, 200_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model of many units, and of one of many words."""
    folder = tmp_path_factory.mktemp("large")
    save(folder / "units.safetensors", make_checkpoint(vocab=60, embed=8, hidden=UNITS))
    save(folder / "words.safetensors", make_checkpoint(vocab=WORDS, embed=4, hidden=8))
    with running(folder) as server:
        yield server


def test_inside_a_model_of_many_units(large: Server, open_page: OpenPage) -> None:
    page = open_page(f"{large.url}/#view=inside&weights=units&text=wab+wac+wad+wae")
    part = page.locator("#inside-state")
    expect(part).to_contain_text("One unit in 4 is drawn.")
    expect(part.locator("canvas")).to_have_attribute("height", "250")
    expect(page.locator("#inside-recurrence .dot")).to_have_count(300)
    expect(page.locator("#inside-recurrence")).to_contain_text("The 300 largest of 1,000 are drawn.")
    field = page.get_by_label("Unit, 0 to 999")
    field.fill("998")  # which is not drawn itself
    field.press("Enter")
    expect(part.get_by_role("heading", name="Units like 998, over 5 words")).to_be_visible()
    expect(part.locator(".marks .chosen")).to_have_attribute("y1", "249.5")
    expect(part.locator(".lists")).to_be_visible()


def test_a_model_of_many_words(large: Server, open_page: OpenPage) -> None:
    page = open_page(
        f"{large.url}/#view=generate&backend=c&weights=words&prompt=wab+wac&seed=1&max_tokens=6", refusals=True
    )
    generate(page, "c")
    words(page, "c").first.focus()
    expect(card(page).get_by_role("status")).to_contain_text("from 200,000 words")
    page.get_by_role("link", name="Inside").click()
    page.locator("#inside-weights").select_option("words")
    page.get_by_label("Text to look into").fill("wab wac wad")
    page.get_by_role("button", name="Look inside").click()
    expect(page.locator("#inside-why li")).to_have_count(8)
    expect(page.locator("#inside-neighbours li")).to_have_count(20)


def test_prompts_of_one_word_and_of_two_thousand(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/#view=generate&backend=c&max_tokens=4&ignore_eos=true")
    for prompt in ("government", "the " * 2000):
        page.get_by_label("Prompt").fill(prompt)
        generate(page, "c")
        expect(words(page, "c")).to_have_count(4)
        words(page, "c").nth(1).focus()
        expect(card(page).get_by_role("status")).to_contain_text("as drawn")
        page.keyboard.press("Escape")


def test_a_long_text_is_explained_by_its_last_words(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/#view=inside")
    page.get_by_label("Text to look into").fill("the government " * 60)
    page.get_by_role("button", name="Look inside").click()
    expect(page.locator("#inside-why")).to_contain_text("Of the 121 words before it, the last 24 are tried.")
    expect(page.locator("#inside-state")).to_contain_text("for texts of up to 120 words")


def test_what_is_on_screen_outlives_the_service(weights: Path, open_page: OpenPage) -> None:
    with running(weights, RNN_BACKENDS="c") as server:
        page = open_page(f"{server.url}/#view=generate&backend=c&seed=1&max_tokens=5&ignore_eos=true", refusals=True)
        generate(page, "c")
        page.get_by_role("link", name="Inside").click()
        expect(page.locator("#inside-neighbours li").first).to_be_visible()
        expect(page.locator("#inside-state .lists")).to_be_visible()
        port = server.port
    lost = "The connection to the service is lost"
    page.get_by_label("Unit, 0 to 23").fill("3")
    page.get_by_label("Unit, 0 to 23").press("Enter")
    expect(page.locator("#inside-state .unit .field-error")).to_contain_text(lost)
    expect(page.locator("#inside-state").get_by_role("heading", name=re.compile("Units like 3"))).to_be_visible()
    page.get_by_label("Word", exact=True).fill("government")
    page.get_by_label("Word", exact=True).press("Enter")
    expect(page.locator("#inside-neighbours .field-error")).to_contain_text(lost)
    page.locator("#inside-why").get_by_role("button", name="minister", exact=True).click()
    expect(page.locator("#inside-notice").get_by_role("alert")).to_contain_text(lost)
    expect(page.locator("#inside-why").get_by_role("button")).to_have_count(9)
    page.get_by_role("link", name="Generate").click()
    go_button(page).click()
    expect(page.locator('[data-backend="c"]').get_by_role("alert")).to_contain_text(lost)
    expect(words(page, "c")).to_have_count(5)
    expect(state(page, "c")).to_have_text("failed")
    with running(weights, "--port", str(port), RNN_BACKENDS="c"):
        page.locator('[data-backend="c"]').get_by_role("button", name="Try again").click()
        ended(page, "c")
        page.get_by_role("link", name="Inside").click()
        page.locator("#inside-notice").get_by_role("button", name="Try again").click()
        expect(page.locator("#inside-why b")).to_have_text("minister")
