"""What the page loads before it can be seen and used: few bytes in few requests, since each costs time."""

from __future__ import annotations

from typing import Any

import browsing
import pytest
from browsing import OpenPage, playwright
from serving import Server, until

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures

expect = playwright.expect
VIEWS = ("generate", "score", "inside", "weights")

# Of the first paint: at 50 kB/s and 400 ms latency these arrive in some 1.2 s.
MAX_BLOCKING_REQUESTS = 6  # a browser's connections to one host, so that none waits for another
MAX_BLOCKING_BYTES = 20_000
# Of all that a view needs until it works, fonts included.
MAX_REQUESTS = 45
MAX_BYTES = 150_000


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_needs_few_bytes_and_requests(server: Server, open_page: OpenPage, view: str) -> None:
    page = open_page(f"{server.url}/#view={view}")
    expect(page.locator(f"#{view}-weights option, #weights-list tbody tr").first).to_be_attached()
    page.wait_for_load_state("networkidle")
    files = page.evaluate(
        """[...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].map(
            ({ name, transferSize, renderBlockingStatus }) => [name, transferSize, renderBlockingStatus])"""
    )
    first = [file for file in files if file[2] == "blocking" or file[0].startswith(f"{server.url}/#")]
    assert 3 <= len(first) <= MAX_BLOCKING_REQUESTS, first
    assert sum(size for _, size, _ in first) <= MAX_BLOCKING_BYTES, first
    assert len(files) <= MAX_REQUESTS, files
    assert sum(size for _, size, _ in files) <= MAX_BYTES, files


def test_a_view_is_painted_before_its_modules_have_come(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme: light").click()
    page.route("**/web/js/app.js", lambda route: None)  # no answer comes
    page.goto(f"{server.url}/?again#view=score", wait_until="commit")
    expect(page.get_by_label("Text to score")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_be_hidden()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_form_that_is_sent_early_is_sent_once_it_can_be(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    expect(page.locator("#generate-weights option")).to_have_count(2)
    held: list[Any] = []
    page.route("**/web/js/score.js", lambda route: held.append(route))
    page.get_by_role("link", name="Score").click()
    page.get_by_label("Text to score").fill("The minister")
    page.get_by_role("button", name="Score", exact=True).click()
    until(lambda: page.wait_for_timeout(50) or held)
    held.pop().continue_()
    expect(page.locator(".own .word")).to_have_count(2)
    page.get_by_role("link", name="Weights").click()
    expect(page.locator("#weights-list tbody tr")).to_have_count(1)
    page.evaluate("document.getElementById('chart-form').requestSubmit()")  # as Enter in the filter does


def test_a_view_that_cannot_be_loaded(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url, refusals=True)
    expect(page.locator("#generate-weights option")).to_have_count(2)
    page.route("**/web/js/score.js", lambda route: route.abort())
    page.get_by_role("link", name="Score").click()
    expect(page.get_by_role("alert")).to_contain_text("could not be loaded: the connection to the service is lost.")
    page.get_by_role("link", name="Generate").click()
    expect(page.get_by_label("Prompt")).to_be_visible()
    page.get_by_role("link", name="Score").click()
    page.unroute("**/web/js/score.js")
    page.get_by_role("button", name="Reload the page").click()
    expect(page.locator("#score-legend li").first).to_be_visible()
