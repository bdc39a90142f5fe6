"""What the generate view sends, and how it reads a stream that arrives in pieces."""

from __future__ import annotations

import browsing
from browsing import OpenPage, generate, playwright, texts, words
from serving import Server

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures

expect = playwright.expect
FORM = "#view=generate&prompt=The+minister+said&backend=c&seed=5&max_tokens=12&ignore_eos=true"

# A proxy may cut a stream anywhere. Here every piece has 7 bytes, so each event spans several.
CUT_STREAMS = """() => {
    const fetchWhole = window.fetch;
    window.fetch = async (...request) => {
        const reply = await fetchWhole(...request);
        if (!reply.headers.get("content-type").startsWith("text/event-stream")) return reply;
        const cut = new TransformStream({
            transform(bytes, controller) {
                for (let i = 0; i < bytes.length; i += 7) controller.enqueue(bytes.slice(i, i + 7));
            },
        });
        return new Response(reply.body.pipeThrough(cut), { status: reply.status, headers: reply.headers });
    };
}"""


def test_a_stream_may_arrive_in_pieces_of_any_size(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{FORM}")
    page.evaluate(CUT_STREAMS)
    generate(page, "c")
    body = {"prompt": "The minister said", "seed": 5, "max_tokens": 12, "ignore_eos": True}
    tokens = server.post("/generate/c", json=body).json()["choices"][0]["tokens"]
    expect(words(page, "c")).to_have_count(12)
    shown = [text.replace("¶", "<EOS>") for text in texts(words(page, "c"))]
    assert shown == [token["word"] for token in tokens]


def test_regenerate_draws_a_fresh_seed_even_if_the_form_has_one(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{FORM}")
    seeds = []
    for button in ("Generate", "Regenerate", "Regenerate"):
        with page.expect_request("**/generate/c") as request:
            page.get_by_role("button", name=button, exact=True).first.click()
        seeds.append(request.value.post_data_json["seed"])
        browsing.ended(page, "c")
    assert seeds[0] == 5 and len(set(seeds)) == 3
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("5")


KEEP_SIGNALS = """() => {
    const plain = window.fetch;
    window.signals = [];
    window.fetch = (url, options) => {
        if (String(url).includes("generate/")) window.signals.push(options.signal);
        return plain(url, options);
    };
}"""


def test_stop_aborts_the_requests(server: Server, open_page: OpenPage) -> None:
    """Otherwise the service would write to the end, or until the browser drops the stream."""
    page = open_page(server.url + "/#view=generate&prompt=The+minister+said&max_tokens=100000&ignore_eos=true")
    page.evaluate(KEEP_SIGNALS)
    browsing.go_button(page).click()
    for backend in ("c", "torch"):
        expect(words(page, backend).nth(3)).to_be_attached()
    assert page.evaluate("() => window.signals.map((signal) => signal.aborted)") == [False, False]
    page.locator("#generate-stop").click()
    assert page.evaluate("() => window.signals.map((signal) => signal.aborted)") == [True, True]
