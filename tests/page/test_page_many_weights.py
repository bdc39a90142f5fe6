"""The page's weights view with many files in a real browser: sorting, filtering, and curves that can be told apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from browsing import OpenPage, playwright, running, texts
from colours import THEMES, VISIONS, contrast, linear, oklab, rgb
from conftest import make_checkpoint
from serving import Server

from rnnlm import checkpoint

pytestmark = browsing.needs_browser
browser, open_page = browsing.browser, browsing.open_page  # fixtures

expect = playwright.expect
VIEW = "/#view=weights"
SERIES = 12


def save(folder: Path, name: str, loss: float, corpus: str, points: int = 3) -> None:
    history = [
        {"epoch": epoch, "validation_loss": loss + 1 / epoch, "validation_perplexity": math.exp(loss + 1 / epoch)}
        for epoch in range(1, points + 1)
    ]
    checkpoint.save(
        folder / f"{name}.safetensors",
        replace(make_checkpoint(vocab=40, embed=9, hidden=12), history=history, config={"corpus": corpus}),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of 30 weights files, a broken one among them, and one with the longest name."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(28):
        name = "w" * 64 if index == 27 else f"run-{index:02}"
        save(folder, name, 5 - index % 7 / 10, ("news", "novels")[index % 2], points=100 if index == 3 else 3)
    (folder / "broken.safetensors").write_bytes(b"not weights")
    checkpoint.save(folder / "untrained.safetensors", make_checkpoint(vocab=40, embed=9, hidden=12))
    with running(folder) as server:
        yield server


def names(page: Any) -> list[str]:
    return page.locator(".files tbody tr").evaluate_all("rows => rows.map(row => row.dataset.name)")


def test_the_list_can_be_sorted_and_filtered(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW)
    expect(page.locator(".files tbody tr")).to_have_count(30)
    page.get_by_label("Order").select_option("best perplexity first")
    assert names(page)[:5] == ["run-03", "run-06", "run-13", "run-20", "w" * 64]  # those of equal perplexity by name
    assert set(names(page)[-2:]) == {"broken", "untrained"}  # without one
    page.get_by_label("Filter").fill("NOVELS")
    expect(page.locator(".files tbody tr")).to_have_count(14)
    expect(page.locator("#listed")).to_have_text("14 of 30 files")
    page.get_by_label("Filter").fill("run-1")
    expect(page.locator(".files tbody tr")).to_have_count(10)
    expect(page.get_by_label("Filter")).to_be_focused()
    page.reload()  # the address has it
    expect(page.locator("#listed")).to_have_text("10 of 30 files")
    assert names(page)[0] == "run-13"
    page.get_by_label("Filter").fill("<b>nothing</b>")
    expect(page.locator("#weights-list")).to_have_text(
        "No file here has \N{LEFT DOUBLE QUOTATION MARK}<b>nothing</b>"
        "\N{RIGHT DOUBLE QUOTATION MARK} in its name or corpus."
    )
    page.get_by_label("Filter").fill("")
    expect(page.locator(".files tbody tr")).to_have_count(30)


def test_few_files_need_no_filter(tmp_path: Path, open_page: OpenPage) -> None:
    for index in range(7):
        save(tmp_path, f"run-{index}", 5, "news")
    with running(tmp_path) as server:
        page = open_page(server.url + VIEW)
        expect(page.locator(".files tbody tr")).to_have_count(7)
        expect(page.get_by_label("Filter")).to_be_hidden()
        save(tmp_path, "run-7", 5, "news")
        page.get_by_role("link", name="Generate").click()
        page.get_by_role("link", name="Weights").click()
        expect(page.get_by_label("Filter")).to_be_visible()


def test_twelve_curves_at_a_time(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW)
    keys = page.get_by_role("list", name="Curves").get_by_role("button")
    expect(keys).to_have_count(SERIES)
    expect(page.locator("#about-list")).to_contain_text("There are 12 at a time")
    other = page.get_by_label("Show the curve of run-20")
    expect(other).to_be_disabled()
    page.get_by_label("Show the curve of run-04").uncheck()
    expect(page.locator("#full")).to_be_hidden()
    other.check()
    assert "run-20" in texts(keys) and "run-04" not in texts(keys)
    expect(page.get_by_label("Show the curve of run-04")).to_be_disabled()
    series = page.locator("#chart svg[role=img] g").evaluate_all("groups => groups.map(group => group.dataset.series)")
    assert sorted(map(int, series)) == list(range(SERIES))
    page.get_by_role("button", name="Untick all").click()
    expect(page.locator("#chart")).to_contain_text("Tick files in the list")


def test_one_curve_can_be_looked_at(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW)
    faded = page.locator("#chart .faded")
    keys = page.get_by_role("list", name="Curves").get_by_role("button")
    expect(keys).to_have_count(SERIES)
    keys.nth(2).hover()
    expect(faded).to_have_count(SERIES - 1)
    page.get_by_role("heading", name="Learning").hover()
    expect(faded).to_have_count(0)
    keys.nth(2).focus()
    page.keyboard.press("Enter")
    expect(faded).to_have_count(SERIES - 1)
    expect(keys.nth(2)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    expect(faded).to_have_count(0)


@pytest.mark.parametrize("theme", THEMES)
def test_the_curves_can_be_told_apart_by_all(server: Server, open_page: OpenPage, theme: str) -> None:
    """By colour, or, where somebody sees two colours as one, by line and marker."""
    page = open_page(server.url + VIEW, color_scheme=theme)
    expect(page.locator("#chart g")).to_have_count(SERIES)
    found = page.locator("#chart svg[role=img] g").evaluate_all(
        """groups => groups.map(group => {
            const line = getComputedStyle(group.querySelector(".curve:not(.training)"));
            const marker = group.querySelector(".marker");
            return [line.stroke, line.strokeDasharray, marker.getAttribute("d"),
                getComputedStyle(marker).fill === line.stroke];
        })"""
    )
    sheet = linear(rgb(page, page.locator("#curves").evaluate("panel => getComputedStyle(panel).backgroundColor")))
    colours = [linear(rgb(page, colour)) for colour, *_ in found]
    assert all(contrast(colour, sheet) >= 3 for colour in colours)  # WCAG 1.4.11
    for (first, one), (second, other) in itertools.combinations(zip(colours, found, strict=True), 2):
        seen = [(np.clip(np.array(matrix) @ colour, 0, 1) for colour in (first, second)) for matrix in VISIONS.values()]
        cues = sum(a != b for a, b in zip(one[1:], other[1:], strict=True))  # dashes, shape, filled or hollow
        if min(math.dist(oklab(a), oklab(b)) for a, b in seen) < 0.06:
            assert cues >= 1
        if np.allclose(first, second):
            assert cues == 3
    assert len({tuple(marker) for _, _, *marker in found}) == SERIES
    markers = page.locator("#chart g").nth(4).locator(".marker")  # of a curve of 100 points: some only
    assert 3 <= markers.count() <= 20
