"""How the page looks and who can use it: accessibility, the keyboard, narrow windows, colours."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from browsing import OpenPage, ended, playwright, running, words
from colours import THEMES, VISIONS, contrast, linear, oklab
from serving import Server

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect
PHONE = {"width": 360, "height": 740}
WIDTHS = (320, 360, 390, 480, 600, 700, 720, 768, 800, 900, 1000, 1024, 1030, 1100, 1280, 1920)
STEPS = 7


# ---- Accessibility ---------------------------------------------------------------------------------------------------


RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
Scan = Callable[[Any, str], None]


@pytest.fixture
def scan() -> Iterator[Scan]:
    """Scans a page in some state. In the end no scan may have found anything."""
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make test")
    axe = module.Axe()
    found: dict[str, list[str]] = {}

    def scan(page: Any, state: str) -> None:
        violations = axe.run(page, options=RULES).response["violations"]
        found[state] = [f"{v['id']}: {v['nodes'][0]['html']} {v['nodes'][0]['failureSummary']}" for v in violations]

    yield scan
    assert found == {state: [] for state in found}


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_violation(server: Server, open_page: OpenPage, scan: Scan, theme: str) -> None:
    page = open_page(server.url, color_scheme=theme, refusals=True)
    scan(page, "generate, empty")
    page.get_by_label("Prompt").fill("The minister of Zanzibar")
    browsing.generate(page, "c", "torch")
    words(page, "c").first.focus()
    expect(browsing.card(page).get_by_role("status")).not_to_be_empty()
    scan(page, "generate, with words and a card")
    browsing.card(page).locator("li:not([aria-current]) button:enabled").first.click()
    ended(page, "c")
    for index in (0, 1):
        page.locator("#runs-list input").nth(index).check()
    expect(page.get_by_role("treeitem")).to_have_count(2)
    scan(page, "generate, with a tree and a comparison")
    page.get_by_label("Length").fill("0")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("alert").first).to_be_visible()
    scan(page, "generate, with an error")
    page.get_by_label("Length").fill("9")
    page.route("**/generate/*", lambda route: None)  # no answer comes
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(browsing.state(page, "torch")).to_have_text("waiting for the first word")
    scan(page, "generate, waiting")
    page.locator("#generate-stop").click()
    page.get_by_role("link", name="Score").click()
    scan(page, "score, empty")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()
    scan(page, "score")
    page.get_by_label("Text to score").fill("Zanzibari 1999, and the minister.\nThe end")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".own .unread")).to_have_text("1999,")
    page.locator(".own .word").nth(1).focus()
    scan(page, "score, with every kind of piece and a card")
    page.get_by_label("Text to score").fill("The " * 12501)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()
    scan(page, "score, with a text that is too long")
    page.get_by_label("Text to score").fill("The minister")
    page.get_by_role("link", name="Inside").click()
    expect(page.locator("#inside-neighbours li").first).to_be_visible()
    page.locator("#inside-why .inside-word").nth(2).focus()
    expect(page.locator("#inside-state .lists")).to_be_visible()
    scan(page, "inside")
    page.get_by_role("link", name="Weights").click()
    page.get_by_text("The numbers").click()
    scan(page, "weights")
    page.set_viewport_size(PHONE)
    scan(page, "weights, on a phone")
    page.get_by_role("button", name="Delete demo").click()
    scan(page, "a question")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("dialog", name="Changing the weights")).to_be_visible()
    scan(page, "a token")


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_violation_in_comparisons(weights: Path, open_page: OpenPage, scan: Scan, theme: str) -> None:
    for index in range(14):
        shutil.copy(weights / "demo.safetensors", weights / f"copy-{index}.safetensors")
    with running(weights) as server:
        page = open_page(server.url + "/#view=score&other=copy-3&text=The+minister+of+Zanzibar", color_scheme=theme)
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator(".verdict")).to_be_visible()
        page.locator(".own .word").first.focus()
        scan(page, "score, two files")
        page.get_by_role("link", name="Weights").click()
        expect(page.get_by_label("Show the curve of copy-9")).to_be_disabled()
        page.get_by_role("list", name="Curves").get_by_role("button").first.click()
        scan(page, "weights, many files")
        page.get_by_label("Filter").fill("nothing")
        expect(page.locator("#listed")).to_have_text("0 of 15 files")
        scan(page, "weights, none that matches")


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_violation_where_things_go_wrong(
    weights: Path, open_page: OpenPage, scan: Scan, theme: str
) -> None:
    (weights / "broken.safetensors").write_bytes(b"not weights")
    with running(weights) as server:  # only C
        page = open_page(server.url + "/#view=weights", color_scheme=theme, refusals=True)
        refused = {"name": "refused.safetensors", "mimeType": "", "buffer": b"not weights"}
        page.get_by_label("Weights file", exact=True).set_input_files(refused)
        page.get_by_role("button", name="Upload").click()
        page.get_by_label("Token", exact=True).fill("wrong-token")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The service does not know this token.")
        scan(page, "a wrong token")
        page.get_by_label("Token", exact=True).fill("admin-secret")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("The service refused")
        scan(page, "weights, with a refused and a broken file")
        for path in weights.iterdir():
            path.unlink()
        page.reload()
        expect(page.locator("#weights-list")).to_contain_text("There are no weights yet.")
        scan(page, "weights, none")
        page.get_by_role("link", name="Generate").click()
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("There are no weights yet")
        scan(page, "generate, without weights and torch")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    scan(page, "generate, without a service")


def test_everything_works_by_keyboard(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&seed=7&ignore_eos=true&max_tokens=12")
    page.route("**/weights/*", lambda route: route.abort())  # nothing here is to be deleted
    keyboard = page.keyboard

    def focused() -> str:
        return page.evaluate(
            "(e => e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())(document.activeElement)"
        )

    def tab_to(name: str, key: str = "Tab") -> None:
        for _ in range(40):
            keyboard.press(key)
            if focused() == name:
                return
        raise AssertionError(f"Tab does not come to {name}")

    keyboard.press("Tab")
    assert focused() == "Skip to the content"
    keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to("Prompt")
    keyboard.press("ControlOrMeta+A")
    keyboard.type("The minister said")
    tab_to("Side by side")
    keyboard.press("ArrowRight")
    assert focused() == "C"
    tab_to("Generate")
    keyboard.press("Enter")
    ended(page, "c")
    tab_to("Continue after the sentence ends")
    keyboard.press("Tab")  # all words are one stop
    assert page.evaluate("document.activeElement === document.querySelector('.word')")
    expect(browsing.card(page)).to_be_visible()
    keyboard.press("End")
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('.word')].at(-1)")
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowLeft")
    assert page.evaluate("[...document.querySelectorAll('.word')].indexOf(document.activeElement)") == 1
    keyboard.press("Escape")
    expect(browsing.card(page)).to_be_hidden()
    page.set_viewport_size({"width": 400, "height": 400})
    keyboard.press("End")  # scrolls to it, and the card comes along
    page.wait_for_timeout(300)
    expect(browsing.card(page)).to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 900})
    tab_to("Regenerate")
    keyboard.press("Enter")
    ended(page, "c")

    tab_to("Score", "Shift+Tab")
    keyboard.press("Enter")
    expect(page.get_by_label("Text to score")).to_be_visible()
    expect(page.get_by_text("of 50,000 characters")).to_be_visible()  # the view's module has come
    tab_to("Text to score")
    keyboard.press("ControlOrMeta+Enter")
    expect(page.get_by_text("perplexity", exact=True)).to_be_visible()

    tab_to("Weights", "Shift+Tab")
    keyboard.press("Enter")
    tab_to("Show the curve of demo")
    keyboard.press("Space")
    expect(page.locator("#chart")).to_contain_text("Tick files in the list")
    keyboard.press("Space")
    tab_to("Delete demo")
    keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Delete demo?")).to_be_visible()
    assert focused() == "Keep it"
    keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert focused() == "Delete demo"  # back where it was
    tab_to("The numbers")
    keyboard.press("Enter")
    expect(page.locator("#chart table")).to_be_visible()
    tab_to("Upload")
    keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Weights file must be chosen first.")


# ---- Width and theme -------------------------------------------------------------------------------------------------


def test_a_phone_needs_no_scrolling_sideways(weights: Path, open_page: OpenPage) -> None:
    longest = "w" * 64
    for name in (longest, *(f"copy-{index}" for index in range(8))):
        shutil.copy(weights / "demo.safetensors", weights / f"{name}.safetensors")
    with running(weights) as server:
        page = open_page(server.url, viewport=PHONE, has_touch=True)

        def overflow() -> int:
            return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

        def assert_no_overflow(state: str) -> None:
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                assert overflow() == 0, (state, width)
            page.set_viewport_size(PHONE)

        page.get_by_text("Settings").click()
        page.get_by_label("Prompt").fill("The minister of " + "Zanzibar" * 20)
        browsing.generate(page, "c")
        assert overflow() == 0
        expect(page.locator(".words")).to_be_in_viewport()  # from below the form, the page has moved to it
        words(page, "c").first.tap()
        page.wait_for_timeout(400)  # longer than a card stays that is no longer pointed at
        card = browsing.card(page).bounding_box()
        assert card["x"] >= 0 and card["x"] + card["width"] <= PHONE["width"]
        page.get_by_role("heading", name="C", exact=True).tap()
        expect(browsing.card(page)).to_be_hidden()
        assert_no_overflow("generate")
        page.get_by_role("link", name="Score").click()
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.get_by_text("perplexity", exact=True)).to_be_visible()
        assert_no_overflow("score")
        page.get_by_label("Text to score").fill("The " + "longword" * 300 + " minister " + "!" * 500)
        page.get_by_label("Compare with").select_option(longest)
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.locator(".verdict")).to_be_visible()
        page.locator(".own .word").first.tap()
        assert_no_overflow("score, two files")
        page.get_by_role("link", name="Inside").click()
        page.get_by_label("Text to look into").fill("The minister of " + "government " * 60)
        page.get_by_role("button", name="Look inside").click()
        expect(page.locator("#inside-state canvas")).to_have_attribute("aria-label", re.compile("by 64 words"))
        assert_no_overflow("inside")
        page.get_by_role("link", name="Weights").click()
        expect(page.get_by_label(f"Show the curve of {longest}")).to_be_visible()
        page.get_by_text("The numbers").click()
        assert_no_overflow("weights")
        page.get_by_role("button", name=f"Delete {longest}").click()
        assert overflow() == 0


def test_the_theme_can_be_chosen_and_stays(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.get_by_role("button", name=re.compile("^Theme"))
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark
    button.click()
    expect(button).to_have_text("Theme: auto")
    assert page.evaluate(paper) == light


# ---- Colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
def test_the_scale_can_be_told_apart_and_read_by_all(server: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(server.url, color_scheme=theme)
    colours = page.evaluate(
        """() => {
            const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            const rgb = (colour) => {
                context.fillStyle = colour;
                context.fillRect(0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            };
            const steps = [...document.querySelectorAll("#generate-legend li")];
            const ink = getComputedStyle(steps[0]).color;
            const sheet = getComputedStyle(document.querySelector(".panel")).backgroundColor;
            return [rgb(ink), rgb(sheet), ...steps.map((step) => rgb(getComputedStyle(step).backgroundColor))];
        }"""
    )
    ink, sheet, *steps = (linear(colour) for colour in colours)
    assert len(steps) == STEPS
    assert min(contrast(ink, step) for step in steps) >= 4.5
    away = [abs(oklab(step)[0] - oklab(sheet)[0]) for step in steps]
    assert away == sorted(away) and len(set(away)) == STEPS
    for vision, matrix in VISIONS.items():
        seen = [oklab(np.clip(np.array(matrix) @ step, 0, 1)) for step in steps]
        apart = [math.dist(a, b) for a, b in itertools.pairwise(seen)]
        assert min(apart) > 0.03, (vision, apart)  # 0.02 is about what one notices side by side
        assert math.dist(seen[0], seen[-1]) > 0.2, vision
