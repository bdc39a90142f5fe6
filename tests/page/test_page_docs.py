"""The browser of the OpenAPI document at /docs, on a service that requires its token."""

from __future__ import annotations

from pathlib import Path

import browsing
from browsing import OpenPage, playwright, running

pytestmark = browsing.needs_browser
demo, weights, browser, open_page = browsing.demo, browsing.weights, browsing.browser, browsing.open_page  # fixtures

expect = playwright.expect


def test_a_request_can_be_tried_out_with_a_token(weights: Path, open_page: OpenPage) -> None:
    with running(weights, RNN_API_TOKEN="open-sesame") as server:
        page = open_page(server.url + "/docs", refusals=True)
        expect(page).to_have_title("RNN word model: API")
        page.get_by_role("button", name="Authorize").first.click()
        dialog = page.locator(".auth-container")
        dialog.locator("input").fill("open-sesame")
        dialog.get_by_role("button", name="Apply").or_(dialog.locator("button.authorize")).first.click()
        page.locator(".btn-done").click()
        operation = page.locator(".opblock", has_text="Score a text")
        operation.click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table .response .response-col_status").first).to_contain_text("200")
