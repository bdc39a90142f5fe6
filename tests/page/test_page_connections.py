"""The generate view when a run is stopped or refused, or its connection is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import browsing
from browsing import OpenPage, answering, ended, generate, go_button, playwright, running, state, texts, words
from serving import Server, until

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect


def test_stop_works_at_once(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_label("Length").fill("100000")
    page.get_by_label("Continue after the sentence ends").check()
    go_button(page).click()
    stop = page.locator("#generate-stop")
    expect(stop).to_be_focused()  # where Generate was
    for backend in ("c", "torch"):
        expect(words(page, backend).nth(3)).to_be_attached()
        figures = page.locator(f'.output[data-backend="{backend}"] .figures')
        expect(figures).to_contain_text("first token")  # while it writes
        expect(state(page, backend)).to_have_text("writing")
    counts = page.evaluate(
        """() => {
            document.getElementById("generate-stop").click();
            const states = [...document.querySelectorAll(".output .state")].map(state => state.textContent);
            return [states, document.querySelectorAll(".word").length];
        }"""
    )
    assert counts[0] == ["stopped", "stopped"]
    until(lambda: server.metric("rnn_sequences_running") == 0)
    page.wait_for_timeout(100)
    assert page.locator(".word").count() == counts[1]
    expect(go_button(page)).to_be_focused()
    expect(page.locator('[data-backend="c"] .figures')).to_contain_text("tokens/s")  # as measured here


def test_one_card_can_be_stopped(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&backend=c&max_tokens=100000&ignore_eos=true")
    go_button(page).click()
    expect(words(page, "c").nth(2)).to_be_attached()
    page.locator('.output[data-backend="c"] .tools').get_by_role("button", name="Stop").click()
    expect(state(page, "c")).to_have_text("stopped")
    expect(go_button(page)).to_be_visible()


COMPLAINTS = [
    ("Prompt", "  ", "Prompt must have a word to go on from."),
    ("Prompt", "12 34", "has no word"),
    ("Prompt", "Qwxyz", "no word of the prompt is in the vocabulary"),
    ("Prompt", "long " * 3000, "Prompt must have at most 10,000 characters, got 15,000."),
    ("Length", "0", "Length must be 1 or more, got 0."),
    ("Length", "1.5", "Length must be an integer, got 1.5."),
    ("Length", "100001", "Length must be 100,000 or less, got 100,001."),
    ("Temperature", "-1", "Temperature must be 0 or more, got -1."),
    ("Temperature", "1e", "Temperature must be a number."),
    ("Seed", "99999999999999999999", "Seed must be at most 9007199254740991 here."),
    ("Stop before", "a,b,c,d,e,f,g,h,i", "Stop before must have at most 8 items, got 9."),
]


def test_what_cannot_be_is_said_beside_its_field(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url, refusals=True)
    for label, value, complaint in COMPLAINTS:
        field = page.get_by_label(label)
        before = field.input_value()
        field.fill("")
        if len(value) > 100:
            field.fill(value)
        else:
            field.press_sequentially(value)  # "1e" cannot be filled in, but typed
        go_button(page).click()
        alert = page.get_by_role("alert").filter(has_text=re.compile(re.escape(complaint), re.IGNORECASE))
        expect(alert.first).to_be_visible()
        expect(words(page, "c")).to_have_count(0)
        if page.locator("#generate-form .field-error").count() > 0:
            expect(page.locator('.output[data-backend="c"] .tools')).to_be_hidden()  # nothing was run
        expect(page.locator("#generate-form .field-error")).to_have_count(page.locator("[aria-invalid]").count())
        field.fill(before)
    generate(page, "c", "torch")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_second_refusal_leaves_the_focus_where_it_is(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url, refusals=True)
    held: list[browsing.playwright.Route] = []
    page.route("**/generate/torch", lambda route: held.append(route))
    page.get_by_label("Length").fill("0")
    go_button(page).click()
    expect(page.get_by_role("alert")).to_have_text("Length must be 1 or more, got 0.")
    expect(page.get_by_label("Length")).to_be_focused()
    page.get_by_label("Temperature").fill("")
    page.get_by_label("Temperature").press_sequentially("-")
    held[0].continue_()
    expect(page.get_by_role("status").filter(has_text="PyTorch: 0 words, failed")).to_have_count(1)
    expect(page.get_by_label("Temperature")).to_be_focused()
    page.keyboard.type("1")
    expect(page.get_by_label("Temperature")).to_have_value("-1")


def test_weights_that_are_gone(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&backend=c&weights=gone", refusals=True)
    expect(page.locator("#generate-weights")).to_have_value("gone")
    go_button(page).click()
    expect(page.get_by_role("alert")).to_contain_text("There are no weights named gone")


def test_a_busy_service_says_when_to_come_again(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&backend=c", refusals=True)
    problem = json.dumps({"detail": "full", "code": "busy"})
    headers = {"retry-after": "7", "content-type": "application/problem+json"}
    page.route("**/generate/c", answering(status=429, headers=headers, body=problem))
    go_button(page).click()
    expect(page.get_by_role("alert")).to_contain_text("The service is busy. Try again in 7 seconds.")
    page.unroute("**/generate/c")
    page.get_by_role("button", name="Try again").click()
    ended(page, "c")


HALF = 'data: {"index":0,"text":"half","token":{"id":1,"word":"half","logprob":-1.0}}\n\n'
LATE = '{"status":504,"code":"time_limit","detail":"the request took more than 120 seconds"}'


def test_answers_that_no_working_service_gives(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&backend=c", refusals=True)
    stream = "text/event-stream"
    for answer, told, written in (
        ({"status": 502, "body": "<html>Bad gateway"}, "The service answered with the error 502 and no reason.", []),
        ({"content_type": stream, "body": HALF}, "The connection broke off before the answer was complete.", ["half"]),
        (
            {"content_type": stream, "body": f": awake\n\n{HALF}event: error\ndata: {LATE}\n\n"},
            "The request took more than 120 seconds.",
            ["half"],
        ),
    ):
        page.route("**/generate/c", answering(**answer))
        go_button(page).click()
        expect(page.get_by_role("alert")).to_contain_text(told)
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        expect(words(page, "c")).to_have_text(written)
        page.unroute("**/generate/c")


def test_a_lost_connection_is_reported_and_tried_again(weights: Path, open_page: OpenPage) -> None:
    settings = {"RNN_MAX_TOKENS": "100000", "RNN_MAX_REQUEST_TOKENS": "200000"}
    with running(weights, **settings) as first:
        address = f"{first.url}/#view=generate&backend=c&max_tokens=100000&ignore_eos=true"
        page = open_page(address, refusals=True)
        go_button(page).click()
        expect(words(page, "c").nth(3)).to_be_attached()
        port = first.port
    expect(page.get_by_role("alert")).to_contain_text("The connection broke off")
    page.get_by_label("Length").fill("5")
    go_button(page).click()
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    with running(weights, "--port", str(port), **settings):
        page.get_by_role("button", name="Try again").click()
        ended(page, "c")
        expect(page.get_by_role("alert")).to_have_count(0)


def test_another_attempt_writes_its_words_once(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/#view=generate&backend=c&max_tokens=6&seed=5&ignore_eos=true")
    # The first stream breaks off after three words.
    page.evaluate(
        """() => {
            const real = window.fetch;
            let isFirst = true;
            window.fetch = async (url, options) => {
                const response = await real(url, options);
                if (!isFirst || !String(url).includes("generate")) return response;
                isFirst = false;
                const words = (await response.text()).split("\\n\\n").slice(0, 3).join("\\n\\n") + "\\n\\n";
                return new Response(words);
            };
        }"""
    )
    go_button(page).click()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke off")
    expect(state(page, "c")).to_have_text("failed")
    begun = texts(words(page, "c"))
    assert len(begun) == 3
    page.get_by_role("button", name="Try again").click()
    ended(page, "c")
    written = texts(words(page, "c"))
    assert len(written) == 6 and written[:3] == begun
    expect(page.locator('[data-backend="c"] .figures')).to_contain_text("tokens6")
    expect(page.locator("#runs-list li")).to_have_count(1)
