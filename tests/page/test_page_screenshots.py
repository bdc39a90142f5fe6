"""The pictures of docs/page.md and of the README, taken from the page as it is: make screenshots."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import browsing
import pytest
from browsing import OpenPage, playwright, running, words
from conftest import ROOT
from PIL import Image
from serving import Server

pytestmark = [*browsing.needs_browser, pytest.mark.slow]
browser, open_page = browsing.browser, browsing.open_page  # fixtures

expect = playwright.expect
DOCS = ROOT / "docs"
MAX_BYTES = 300_000
MAX_ANIMATION_BYTES = 1_500_000
PROMPT = "The+prime+minister+said+the"
SCORED = "The prime minister said on 12 March that the government would not change its policy.\nHe left Kabul."


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
    with running(folder, RNN_BACKENDS="c,torch", RNN_PRELOAD="c,torch") as server:
        yield server


def generated(page: Any) -> None:
    browsing.generate(page, "c", "torch")
    places = words(page, "c").evaluate_all("words => words.map(word => word.getBoundingClientRect().left)")
    words(page, "c").nth(places.index(min(places))).hover()
    expect(browsing.card(page)).to_be_visible()


def compared(page: Any) -> None:
    page.get_by_label("Text to score").fill(SCORED)
    page.get_by_label("Compare with").select_option("demo-small")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".verdict")).to_be_visible()


def looked_into(page: Any) -> None:
    page.locator("#inside-why").get_by_role("button", name="government", exact=True).hover()
    expect(page.locator("#inside-state .lists")).to_be_visible()


def listed(page: Any) -> None:
    expect(page.locator("#chart polyline").first).to_be_visible()


@pytest.mark.parametrize(
    "name, theme, size, view, prepare",
    [
        ("page-light", "light", (1280, 1340), f"generate&prompt={PROMPT}&seed=21", generated),
        ("page-score", "light", (1280, 980), "score", compared),
        ("page-inside", "light", (1280, 1320), "inside", looked_into),
        ("page-dark", "dark", (1280, 1080), "weights", listed),
        ("page-phone", "light", (390, 1400), f"generate&prompt={PROMPT}&seed=21", generated),
        ("page-phone-dark", "dark", (390, 1400), "inside", looked_into),
    ],
)
def test_screenshots(
    trained: Server, open_page: OpenPage, name: str, theme: str, size: tuple[int, int], view: str, prepare: Any
) -> None:
    viewport = dict(zip(("width", "height"), size, strict=True))
    page = open_page(f"{trained.url}/#view={view}", viewport=viewport, color_scheme=theme)
    prepare(page)
    page.evaluate("document.fonts.ready")
    path = DOCS / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    assert 20_000 < path.stat().st_size < MAX_BYTES


class Film:
    """Frames of a page, each with the time that it is shown."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._frames: list[tuple[Image.Image, int]] = []

    def take(self, milliseconds: int) -> None:
        self._page.wait_for_timeout(150)  # for what fades in
        picture = self._page.screenshot(animations="disabled")
        self._frames.append((Image.open(io.BytesIO(picture)).convert("RGB"), milliseconds))

    def save(self, path: Any) -> None:
        (first, _), *_ = self._frames
        pictures, times = zip(*self._frames, strict=True)
        first.save(path, append_images=pictures[1:], save_all=True, duration=times, loop=0, quality=82, method=6)

    def __len__(self) -> int:
        return len(self._frames)


def test_the_animated_picture(trained: Server, open_page: OpenPage) -> None:
    """Inside: the words before a prediction, how far the model remembers, its state, its recurrence."""
    page = open_page(f"{trained.url}/#view=inside", viewport={"width": 960, "height": 600}, color_scheme="light")
    looked_into(page)
    page.evaluate("document.fonts.ready")
    film = Film(page)
    page.mouse.move(0, 0)
    film.take(1500)

    def turn_to(part: str, below: int = 0) -> None:
        page.evaluate("scrollTo(0, 0)")
        page.locator(f'#inside-map [data-part="{part}"]').first.click()
        page.mouse.wheel(0, below)
        page.wait_for_timeout(300)

    turn_to("inside-why")
    shown = page.locator("#inside-why .inside-word")
    for index in range(1, shown.count() - 1):
        shown.nth(index).hover()
        film.take(1400 if index == shown.count() - 2 else 800)
    shown.nth(4).click()  # another word is explained
    expect(page.locator("#inside-why")).to_contain_text("Explained: said")
    film.take(1600)
    turn_to("inside-memory")
    film.take(2500)
    turn_to("inside-state", below=180)
    box = page.locator("#inside-state canvas").bounding_box()
    for part in (0.75, 0.8, 0.85, 0.95):
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * part)
        expect(page.locator("#inside-state .lists")).to_be_visible()
        film.take(1000)
    turn_to("inside-recurrence")
    film.take(1500)
    page.locator("#inside-recurrence").get_by_role("checkbox").check()
    film.take(2000)
    path = DOCS / "inside.webp"
    film.save(path)
    assert len(film) >= 12 and path.stat().st_size < MAX_ANIMATION_BYTES
    with Image.open(path) as saved:
        assert saved.n_frames >= 10
