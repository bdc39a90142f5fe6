"""How the page looks and who can use it: accessibility, the keyboard, narrow windows, colours; and the README's
screenshots."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from browsing import OpenPage, ended, playwright, running, words
from conftest import ROOT
from serving import Server

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect
THEMES = ("light", "dark")
PHONE = {"width": 360, "height": 740}
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
    scan(page, "generate, with words and a card")
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
    expect(page.get_by_role("tooltip")).to_be_visible()
    keyboard.press("End")
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('.word')].at(-1)")
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowLeft")
    assert page.evaluate("[...document.querySelectorAll('.word')].indexOf(document.activeElement)") == 1
    keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_be_hidden()
    page.set_viewport_size({"width": 400, "height": 400})
    keyboard.press("End")  # scrolls to it, and the card comes along
    page.wait_for_timeout(300)
    expect(page.get_by_role("tooltip")).to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 900})
    tab_to("Regenerate")
    keyboard.press("Enter")
    ended(page, "c")

    tab_to("Score", "Shift+Tab")
    keyboard.press("Enter")
    expect(page.get_by_label("Text to score")).to_be_visible()
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
    shutil.copy(weights / "demo.safetensors", weights / f"{longest}.safetensors")
    with running(weights) as server:
        page = open_page(server.url, viewport=PHONE, has_touch=True)

        def overflow() -> int:
            return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

        page.get_by_text("Settings").click()
        page.get_by_label("Prompt").fill("The minister of " + "Zanzibar" * 20)
        browsing.generate(page, "c")
        assert overflow() == 0
        expect(page.locator(".words")).to_be_in_viewport()  # from below the form, the page has moved to it
        words(page, "c").first.tap()
        page.wait_for_timeout(400)  # longer than a card stays that is no longer pointed at
        card = page.get_by_role("tooltip").bounding_box()
        assert card["x"] >= 0 and card["x"] + card["width"] <= PHONE["width"]
        page.get_by_role("heading", name="C", exact=True).tap()
        expect(page.get_by_role("tooltip")).to_be_hidden()
        page.get_by_role("link", name="Score").click()
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.get_by_text("perplexity", exact=True)).to_be_visible()
        assert overflow() == 0
        page.get_by_role("link", name="Inside").click()
        page.get_by_label("Text to look into").fill("The minister of " + "government " * 60)
        page.get_by_role("button", name="Look inside").click()
        expect(page.locator("#inside-state canvas")).to_have_attribute("aria-label", re.compile("by 64 words"))
        for width in (320, 390, 768, 1280, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            assert overflow() == 0, width
        page.set_viewport_size(PHONE)
        page.get_by_role("link", name="Weights").click()
        expect(page.get_by_label(f"Show the curve of {longest}")).to_be_visible()
        assert overflow() == 0
        page.get_by_text("The numbers").click()
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

# Severe colour-blindness in linear sRGB: Machado, Oliveira and Fernandes 2009, table 1.
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),  # grey
}


def linear(rgb: list[int]) -> np.ndarray:
    value = np.array(rgb) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(rgb: np.ndarray) -> float:
    return float(rgb @ [0.2126, 0.7152, 0.0722])


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Of linear sRGB: Ottosson 2020."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    mix = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    mix.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.array(mix) @ np.cbrt(np.clip(np.array(cones) @ rgb, 0, None))


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


# ---- The README's screenshots ----------------------------------------------------------------------------------------

DOCS = ROOT / "docs"
MAX_BYTES = 300_000
PROMPT = "The prime minister said the"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of fully trained demo weights, and of two others to compare them with."""
    folder = tmp_path_factory.mktemp("trained")
    for program, name, options in (
        ("main.py", "demo", ""),
        ("torch_rnn.py", "demo-torch", "--epochs 5 --hidden-size 50"),
        ("main.py", "demo-small", "--epochs 9 --hidden-size 20"),
    ):
        command = [sys.executable, program, "--preset", "demo", *options.split(), "--out", str(folder / name)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with running(folder, RNN_BACKENDS="c,torch") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, theme, size",
    [
        ("page-light", "light", {"width": 1280, "height": 1180}),
        ("page-dark", "dark", {"width": 1280, "height": 1040}),
        ("page-phone", "light", {"width": 390, "height": 1400}),
        ("page-inside", "light", {"width": 1280, "height": 1320}),
    ],
)
def test_screenshots_for_the_readme(
    trained: Server, open_page: OpenPage, name: str, theme: str, size: dict[str, int]
) -> None:
    view = {"page-dark": "weights", "page-inside": "inside"}.get(name, "generate")
    url = f"{trained.url}/#view={view}" + (f"&prompt={PROMPT.replace(' ', '+')}&seed=21" if view == "generate" else "")
    page = open_page(url, viewport=size, color_scheme=theme)
    if view == "generate":
        for _ in range(2):  # the first loads the models
            browsing.generate(page, "c", "torch")
        places = words(page, "c").evaluate_all("words => words.map(word => word.getBoundingClientRect().left)")
        words(page, "c").nth(places.index(min(places))).hover()
        expect(page.get_by_role("tooltip")).to_be_visible()
    elif view == "inside":
        page.locator("#inside-why").get_by_role("button", name="government", exact=True).hover()
        expect(page.locator("#inside-state .lists")).to_be_visible()
    else:
        expect(page.locator("#chart polyline").first).to_be_visible()
    page.evaluate("document.fonts.ready")
    path = DOCS / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    assert 20_000 < path.stat().st_size < MAX_BYTES
