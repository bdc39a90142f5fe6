"""The page's generate view in a real browser: prompts, settings, words, stopping, links, lost connections."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import browsing
from browsing import OpenPage, answering, ended, generate, go_button, playwright, running, state, texts, words
from serving import Server, until

from rnnlm.checkpoint import Checkpoint, Weights, load, save

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect
SAID = "#view=generate&prompt=The+minister+said"


# ---- What is written -------------------------------------------------------------------------------------------------


def test_both_back_ends_continue_a_typed_prompt(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_label("Prompt").fill("The minister of Zanzibar")
    page.get_by_label("Length").fill("12")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Continue after the sentence ends").check()
    generate(page, "c", "torch")
    for backend in ("c", "torch"):
        expect(words(page, backend)).to_have_count(12)
        body = {"prompt": "The minister of Zanzibar", "max_tokens": 12, "temperature": 1, "seed": 7, "ignore_eos": True}
        tokens = server.post(f"/generate/{backend}", json=body).json()["choices"][0]["tokens"]
        shown = [text.replace("¶", "<EOS>") for text in texts(words(page, backend))]
        assert shown == [token["word"] for token in tokens]
        card = page.locator(f'.output[data-backend="{backend}"]')
        expect(card.locator("mark")).to_have_text("Zanzibar")
        expect(card.locator(".figures")).to_contain_text("tokens/s")
        expect(card.locator(".figures")).to_contain_text("first token")
        expect(card.locator("header")).to_contain_text("drawn at temperature 1")
    expect(page.get_by_text("Not in the vocabulary: Zanzibar.")).to_be_visible()


def test_words_are_tinted_by_their_probability(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/" + SAID + "&backend=c&seed=3&max_tokens=30&ignore_eos=true")
    generate(page, "c")
    body = {"prompt": "The minister said", "seed": 3, "max_tokens": 30, "ignore_eos": True}
    tokens = server.post("/generate/c", json=body).json()["choices"][0]["tokens"]
    steps = [int(step) for step in words(page, "c").evaluate_all("words => words.map(word => word.dataset.step)")]
    assert steps == [min(6, int(-token["logprob"] / 0.6931471805599453 // 2)) for token in tokens]
    assert len(set(steps)) > 2
    colours = words(page, "c").evaluate_all("words => words.map(word => getComputedStyle(word).backgroundColor)")
    assert len(set(zip(steps, colours, strict=True))) == len(set(steps)) == len(set(colours))


def test_a_word_shows_the_most_probable_words(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/" + SAID + "&backend=c&seed=5&max_tokens=8&ignore_eos=true")
    generate(page, "c")
    body = {"prompt": "The minister said", "seed": 5, "max_tokens": 8, "ignore_eos": True, "top_logprobs": 8}
    token = server.post("/generate/c", json=body).json()["choices"][0]["tokens"][2]
    word = words(page, "c").nth(2)
    card = browsing.card(page)
    word.focus()
    expect(card).to_be_visible()
    go_button(page).focus()
    expect(card).to_be_hidden()
    word.hover()
    expect(card).to_be_visible()
    card.hover()  # it stays while it is pointed at
    page.wait_for_timeout(300)
    expect(card).to_be_visible()
    expect(card.get_by_role("status")).to_contain_text("as drawn")
    rows = texts(card.locator("li button > span:first-child"))
    shown = [row.replace("¶ end of sentence", "<EOS>") for row in rows]
    assert shown[:8] == [top["word"] for top in token["top"]]
    assert set(shown[8:]) == {token["word"], "<UNK>"} - set(shown[:8])
    widths = card.locator(".bar.own").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert widths[:8] == sorted(widths[:8], reverse=True) and widths[0] > widths[7] > 0
    assert word.get_attribute("aria-describedby") == card.get_attribute("id")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_one_back_end_only(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_role("radio", name="PyTorch").first.check()
    generate(page, "torch")
    expect(page.locator('.output[data-backend="c"]')).to_be_hidden()
    expect(words(page, "c")).to_have_count(0)


def test_same_settings_same_words_on_both(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_label("Temperature").fill("0.9")
    page.get_by_label("Top-k").fill("40")
    page.get_by_label("Length").fill("20")
    generate(page, "c", "torch")
    assert texts(words(page, "c")) == texts(words(page, "torch"))
    expect(page.locator('[data-backend="torch"]')).to_contain_text("drawn at temperature 0.9 from the 40 most probable")


def test_stop_words_and_top_k(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/" + SAID + "&backend=c&top_k=1&ignore_eos=true&max_tokens=10", refusals=True)
    generate(page, "c")
    greedy = [text for text in texts(words(page, "c")) if text != "¶"]
    page.get_by_label("Stop before").fill(f"neverwritten, {greedy[1]}")
    go_button(page).click()
    expect(page.get_by_role("alert")).to_contain_text("Stop before can never match 'neverwritten'")
    page.get_by_label("Stop before").fill(f"7 {greedy[1]}., {greedy[1]}")
    generate(page, "c")
    expect(state(page, "c")).to_have_text("came to a stop word")
    expect(words(page, "c").get_by_text(greedy[1], exact=True)).to_have_count(0)


def test_regenerate_writes_anew_and_a_seed_can_be_kept(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/" + SAID + "&backend=c&ignore_eos=true&max_tokens=25")
    generate(page, "c")
    first = texts(words(page, "c"))
    page.get_by_role("button", name="Regenerate").first.click()
    ended(page, "c")
    second = texts(words(page, "c"))
    assert first != second
    page.get_by_role("button", name=re.compile("keep the seed")).first.click()
    assert re.search(r"seed=\d+", page.url)
    page.reload()
    generate(page, "c")
    assert texts(words(page, "c")) == second


def test_an_example_is_tried_with_one_click(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&backend=c")
    page.get_by_role("button", name="Two people were killed in").click()
    ended(page, "c")
    expect(page.get_by_label("Prompt")).to_have_value("Two people were killed in")
    expect(page.locator('[data-backend="c"] .given')).to_have_text("Two people were killed in")


# ---- Copies ----------------------------------------------------------------------------------------------------------


def copied(page: Any, start: str) -> str:
    """What is in the clipboard, once it starts so."""
    until(lambda: page.evaluate("navigator.clipboard.readText()").startswith(start))
    return page.evaluate("navigator.clipboard.readText()")


def test_text_and_command_can_be_copied(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Prompt").fill("The minister's office said")
    page.get_by_label("Length").fill("5")
    page.get_by_label("Continue after the sentence ends").check()
    generate(page, "c", "torch")
    card = page.locator('.output[data-backend="c"]')
    card.get_by_role("button", name="Copy text").click()
    expect(card.get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    shown = texts(words(page, "c"))
    assert text.split() == ["The", "minister's", "office", "said", *(word for word in shown if word != "¶")]
    card.get_by_role("button", name="Copy curl").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    command = copied(page, "curl")
    arguments = shlex.split(command)
    assert arguments[0] == "curl" and f"{server.url}/generate/c" in arguments
    body = json.loads(arguments[arguments.index("-d") + 1])
    tokens = server.post("/generate/c", json={**body, "stream": False}).json()["choices"][0]["tokens"]
    assert [token["word"].replace("<EOS>", "¶") for token in tokens] == shown
    if shutil.which("curl"):
        said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
        assert said.count('"token":') == 5 and said.endswith("data: [DONE]\n\n")


def test_copying_works_where_there_is_no_clipboard_interface(server: Server, open_page: OpenPage) -> None:
    """As over http from another machine."""
    page = open_page(server.url + "/" + SAID + "&backend=c&max_tokens=4", permissions=["clipboard-read"])
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    generate(page, "c")
    page.get_by_role("button", name="Copy text").first.click()
    expect(page.get_by_role("button", name="Copied").first).to_be_visible()


# ---- The address -----------------------------------------------------------------------------------------------------


def test_prompt_and_settings_are_in_the_address(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_label("Prompt").fill("Käse & <b>#1</b> said\nso")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Stop before").fill("of the")
    page.get_by_label("Continue after the sentence ends").check()
    page.get_by_role("radio", name="C", exact=True).first.check()
    page.locator("#generate-weights").select_option("demo")
    other = open_page(page.url)
    expect(other.get_by_label("Prompt")).to_have_value("Käse & <b>#1</b> said\nso")
    expect(other.get_by_label("Temperature")).to_have_value("0.5")
    expect(other.get_by_label("Top-k")).to_have_value("")
    expect(other.get_by_label("Seed")).to_have_value("3")
    expect(other.get_by_label("Stop before")).to_have_value("of the")
    expect(other.get_by_label("Continue after the sentence ends")).to_be_checked()
    expect(other.locator("input[name=backend][value=c]").first).to_be_checked()
    expect(other.locator("#generate-weights")).to_have_value("demo")
    assert not any("prompt" in line["httpRequest"]["requestUrl"] for line in server.lines() if "httpRequest" in line)


def test_back_goes_to_the_view_before_as_it_was(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_label("Prompt").fill("The king")
    page.get_by_role("link", name="Score").click()
    expect(page).to_have_title(re.compile("^Score"))
    page.get_by_role("link", name="Generate").click()
    expect(page.get_by_label("Prompt")).to_have_value("The king")
    page.go_back()
    expect(page.get_by_label("Text to score")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Prompt")).to_have_value("The king")


# ---- What people and files write stays text --------------------------------------------------------------------------


def test_markup_in_prompt_and_vocabulary_stays_text(demo: Path, tmp_path: Path, open_page: OpenPage) -> None:
    evil = ("<script>alert(1)</script>", '<img/src="x"onerror="alert(2)">', "<EOS/><svg/onload=alert(3)>")
    source = load(demo, copy=True)
    biases = source.weights.by.copy()
    ids = [source.vocabulary.index(word) for word in ("said", "minister", "government")]
    biases[ids] += 20.0
    vocabulary = list(source.vocabulary)
    for i, word in zip(ids, evil, strict=True):
        vocabulary[i] = word
    arrays = {name: getattr(source.weights, name) for name in ("embeddings", "Wxh", "Whh", "bh", "Why")}
    folder = tmp_path / "weights"
    folder.mkdir()
    changed = Checkpoint(
        Weights(**arrays, by=biases), tuple(vocabulary), source.tokenizer, source.backend, source.config, source.history
    )
    save(folder / "evil.safetensors", changed)
    with running(folder) as server:
        page = open_page(server.url + "/#view=generate&backend=c&max_tokens=30&seed=1")
        page.get_by_label("Prompt").fill("The <script>alert(4)</script> <img src=x onerror=alert(5)> is")
        generate(page, "c")
        written = texts(words(page, "c"))
        assert set(written) & set(evil)
        expect(page.locator('[data-backend="c"] .given')).to_contain_text("<script>alert(4)</script>")
        words(page, "c").nth(0).hover()
        expect(browsing.card(page)).to_contain_text(written[0])
        expect(browsing.card(page).get_by_role("status")).to_contain_text("as drawn")
        assert page.locator("main script, main img, .inspector svg, .inspector img").count() == 0


# ---- A service without torch, without weights, with a token ----------------------------------------------------------


def test_the_page_runs_under_a_strict_policy(server: Server, browser: Any) -> None:
    policy = server.get("/").headers["content-security-policy"]
    directives = dict(directive.split(None, 1) for directive in policy.split("; "))
    assert directives["default-src"] == "'none'"
    allowed = {source for sources in directives.values() for source in sources.split()}
    assert allowed == {"'none'", "'self'", "data:"} and "data:" not in directives["script-src"]
    page = browser.new_page()
    page.goto(server.url)
    ran = page.evaluate(
        """() => new Promise(resolve => {
            document.addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        })"""
    )
    assert ran == "script-src-elem" and page.evaluate("window.ran") is None
    page.close()


def test_a_service_without_torch_offers_only_c(weights: Path, open_page: OpenPage) -> None:
    with running(weights) as server:
        page = open_page(server.url)
        expect(page.locator('.output[data-backend="torch"]')).to_be_hidden()
        expect(page.locator("#generate-form input[value=torch]")).to_be_disabled()
        expect(page.get_by_text("PyTorch is not offered by this service.").first).to_be_visible()
        generate(page, "c")


MISSING = {
    "status": 501,
    "body": '{"detail": "torch is not installed here: use the C model", "code": "backend_missing"}',
}


def test_a_back_end_that_turns_out_to_be_missing(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=generate&backend=torch", refusals=True)
    page.route("**/generate/torch", answering(**MISSING))
    go_button(page).click()
    expect(page.get_by_text("Torch is not installed here: use the C model.")).to_be_visible()
    expect(page.locator('.output[data-backend="torch"]')).to_be_hidden()
    expect(page.locator("#generate-form input[value=torch]")).to_be_disabled()
    page.get_by_role("button", name="Generate with C").click()
    ended(page, "c")
    page.get_by_role("link", name="Weights").click()
    page.get_by_role("link", name="Generate").click()
    expect(page.locator("#generate-form input[value=torch]")).to_be_disabled()  # until the page is reloaded


def test_side_by_side_goes_on_with_the_one_that_is_there(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/" + SAID, refusals=True)
    page.route("**/generate/torch", answering(**MISSING))
    go_button(page).click()
    expect(page.get_by_text("Torch is not installed here: use the C model.")).to_be_visible()
    ended(page, "c")
    expect(page.locator(".output:visible")).to_have_count(1)
    expect(page.get_by_role("radio", name="C", exact=True).first).to_be_checked()


def test_a_service_without_weights_says_what_to_do(tmp_path: Path, open_page: OpenPage) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with running(folder) as server:
        page = open_page(server.url, refusals=True)
        expect(page.get_by_text("There are no weights yet. Train some with make train, or add a file.")).to_be_visible()
        go_button(page).click()
        expect(page.get_by_role("alert").first).to_contain_text("There are no weights yet")
        page.get_by_role("link", name="add a file").click()
        expect(page.get_by_role("heading", name="Add a file")).to_be_visible()


def test_two_questions_for_tokens_come_one_after_the_other(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    need = """async (kind) => {
        const { authorised } = await import("/web/js/access.js");
        window.answers ??= {};
        authorised(kind, async ({ authorization }) => {
            if (!authorization) throw Object.assign(new Error("refused"), { status: 401 });
            window.answers[kind] = authorization;
        });
    }"""
    for kind in ("user", "admin"):
        page.evaluate(need, kind)
        expect(page.get_by_role("dialog", name="This service requires its token")).to_be_visible()
    page.get_by_label("Token", exact=True).fill("first")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Changing the weights requires the admin token")).to_be_visible()
    page.get_by_label("Token", exact=True).fill("second")
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("window.answers") == {"user": "Bearer first", "admin": "Bearer second"})


def test_a_late_refusal_does_not_repeat_a_question_that_was_closed(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.evaluate("""async () => {
        const { authorised } = await import("/web/js/access.js");
        const refusal = Object.assign(new Error("refused"), { status: 401 });
        const late = new Promise((resolve) => (window.refuse = resolve));
        window.refused = [];
        const attempts = [async () => { throw refusal; }, async () => { await late; throw refusal; }];
        attempts.forEach((attempt, index) => authorised("user", attempt).catch(() => window.refused.push(index)));
    }""")
    dialog = page.get_by_role("dialog", name="This service requires its token")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    page.wait_for_function("window.refused.length === 1")
    page.evaluate("window.refuse()")
    page.wait_for_function("window.refused.length === 2")
    expect(dialog).to_be_hidden()


def test_a_service_that_asks_for_a_token(weights: Path, open_page: OpenPage) -> None:
    with running(weights, RNN_API_TOKEN="open-sesame") as server:
        page = open_page(server.url, refusals=True, permissions=["clipboard-read", "clipboard-write"])
        dialog = page.get_by_role("dialog", name="This service requires its token")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("alert")).to_contain_text("The service requires its token, and none was given.")
        footer = page.locator("footer.colophon")
        expect(footer).to_contain_text("API (trying it out needs the token)")
        expect(footer).to_contain_text("Metrics (needs the token in a header)")
        go_button(page).click()
        dialog.get_by_label("Token", exact=True).fill("wrong-token")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("The service does not know this token.")
        dialog.get_by_label("Token", exact=True).fill("open-sesame")
        dialog.get_by_role("button", name="Continue").click()
        ended(page, "c")
        page.locator('[data-backend="c"]').get_by_role("button", name="Copy curl").click()
        command = copied(page, "curl")
        assert "$RNN_API_TOKEN" in command and "open-sesame" not in command
        kept = page.evaluate("[document.cookie, {...localStorage}, {...sessionStorage}, location.href]")
        assert "open-sesame" not in json.dumps(kept)
