"""The generate view's choices: candidates of a word, texts that branch off, sliders, earlier texts, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import browsing
import pytest
from browsing import OpenPage, card, ended, generate, go_button, playwright, running, state, texts, words
from serving import Server, until

from rnnlm.checkpoint import load, save

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures
weights = browsing.weights

expect = playwright.expect
SAID = "#view=generate&prompt=The+minister+said&backend=c&seed=5&max_tokens=8&ignore_eos=true"


def written(page: Any, backend: str = "c") -> list[str]:
    return [text.replace("¶", "<EOS>") for text in texts(words(page, backend))]


def open_card(page: Any, index: int) -> Any:
    words(page, "c").nth(index).focus()
    expect(card(page).get_by_role("status")).not_to_be_empty()
    return card(page)


def shares(page: Any) -> list[tuple[str, float, float]]:
    """(word, the model's percentage, that of the rule) of each candidate with both."""
    rows = []
    for row in texts(card(page).locator("li")):
        found = re.match(r"(.*?)(?: \(.*\))?([\d.]+|under [\d.]+)% → ([\d.]+|under [\d.]+)%$", row)
        if found:
            rows.append((found[1], *(float(value.removeprefix("under ")) for value in found.groups()[1:])))
    return rows


def close_to(shown: float, value: float) -> bool:
    return abs(shown - 100 * value) <= 0.06 * 100 * value + 1e-4


def agrees(page: Any, server: Server, text: str, **rule: Any) -> bool:
    """Whether the card has the service's numbers for a rule."""
    told = server.post("/candidates", json={"text": text, "k": 8, **rule}).json()["candidates"]
    shown = shares(page)[:8]
    return len(shown) == 8 and all(
        name.replace("¶ end of sentence", "<EOS>") == word["word"]
        and close_to(own, word["probability"])
        and close_to(drawn, word["drawn"])
        for (name, own, drawn), word in zip(shown, told, strict=True)
    )


# ---- Candidates ------------------------------------------------------------------------------------------------------


def test_the_text_goes_on_from_a_candidate(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{SAID}")
    generate(page, "c")
    first = written(page)
    open_card(page, 2)
    chosen = card(page).locator("li:not([aria-current]) button:enabled").first
    word = chosen.locator(".name").inner_text().replace("¶ end of sentence", "<EOS>")
    with page.expect_request("**/generate/c") as request:
        chosen.click()
    ended(page, "c")
    prompt = request.value.post_data_json["prompt"]
    assert prompt.replace("\n", " <EOS> ").split() == ["The", "minister", "said", *first[:2], word] or word == "<EOS>"
    body = {"prompt": prompt, "seed": 5, "max_tokens": 8, "ignore_eos": True, "temperature": 1}
    rest = [token["word"] for token in server.post("/generate/c", json=body).json()["choices"][0]["tokens"]]
    assert written(page) == [*first[:2], word, *rest]
    expect(words(page, "c").nth(2)).to_be_focused()
    expect(card(page)).to_be_hidden()


def test_branches_are_a_tree_that_the_keyboard_walks(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{SAID}")
    generate(page, "c")
    keyboard = page.keyboard
    seen = [written(page)]
    for index in (2, 4):  # from the first text, and from the branch
        before = words(page, "c").nth(index).text_content() or ""
        open_card(page, index)
        keyboard.press("Enter")
        expect(card(page).locator("[aria-current] button")).to_be_focused()
        keyboard.press("Home")
        for key in ("ArrowDown", "ArrowUp"):
            keyboard.press(key)
        card(page).locator("li:not([aria-current]) button:enabled").first.focus()
        keyboard.press("Enter")
        expect(words(page, "c").nth(index)).not_to_have_text(before)  # the old text stays until a new word comes
        ended(page, "c")
        seen.append(written(page))
    assert seen[1][:2] == seen[0][:2] and seen[1][2] != seen[0][2]
    assert seen[2][:4] == seen[1][:4] and seen[2][4] != seen[1][4]
    items = page.get_by_role("treeitem")
    expect(items).to_have_count(3)
    expect(items.nth(2)).to_have_attribute("aria-selected", "true")
    expect(items.nth(1).locator("> .label")).to_have_text(
        re.compile(rf"after “{seen[0][1]}”: .+ [\d.]+%, not {re.escape(seen[0][2].replace('<EOS>', '¶'))} [\d.]+%")
    )
    items.nth(2).focus()
    for key, shown in (("ArrowLeft", 1), ("ArrowUp", 0), ("ArrowRight", 1), ("ArrowDown", 2), ("Home", 0), ("End", 2)):
        keyboard.press(key)
        expect(items.nth(shown)).to_be_focused()
        expect(items.nth(shown)).to_have_attribute("aria-selected", "true")
        assert written(page) == seen[shown], key
    items.nth(1).locator("> .label").click()
    assert written(page) == seen[1]


def test_the_card_is_left_as_it_was_entered(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{SAID}")
    generate(page, "c")
    open_card(page, 1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(card(page)).to_be_hidden()
    expect(words(page, "c").nth(1)).to_be_focused()
    words(page, "c").nth(0).focus()
    open_card(page, 1)
    page.keyboard.press("ArrowDown")
    card(page).get_by_role("slider").last.focus()
    page.keyboard.press("Tab")
    expect(card(page)).to_be_hidden()
    expect(page.get_by_role("button", name="keep the seed 5")).to_be_focused()  # what comes after the words


# ---- Sliders ---------------------------------------------------------------------------------------------------------


def test_sliders_redraw_the_bars(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{SAID}")
    generate(page, "c")
    text = " ".join(["The", "minister", "said", *written(page)[:2]]).replace(" <EOS>", "\n")
    open_card(page, 2)
    until(lambda: agrees(page, server, text, temperature=1))
    unknown = card(page).locator("li", has_text="<UNK>")
    expect(unknown).to_contain_text("(is never drawn)")
    expect(unknown).to_contain_text("→ 0%")
    expect(unknown.locator("button")).to_be_disabled()
    assert unknown.locator("span").first.evaluate("e => getComputedStyle(e).textDecorationLine") == "line-through"

    def move(name: str, *keys: str) -> None:
        card(page).get_by_role("slider", name=name).focus()
        for key in keys:
            page.keyboard.press(key)

    move("Temperature", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft")
    until(lambda: agrees(page, server, text, temperature=0.7))
    expect(page.locator("#temperature")).to_have_value("0.7")
    assert "temperature=0.7" in page.url
    move("Top-k", "Home", "ArrowRight", "ArrowRight")
    until(lambda: agrees(page, server, text, temperature=0.7, top_k=3))
    expect(card(page).get_by_role("status")).to_contain_text("from 3 words")
    move(
        "Top-p", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft"
    )
    until(lambda: agrees(page, server, text, temperature=0.7, top_k=3, top_p=0.6))
    expect(card(page)).to_contain_text("(left out)")
    move("Temperature", "Home")
    expect(card(page).get_by_role("status")).to_have_text("This rule always takes the same word.")
    with page.expect_request("**/generate/c") as request:
        card(page).locator("li button:enabled").first.click()
    sent = request.value.post_data_json
    assert (sent["temperature"], sent["top_k"], sent["top_p"]) == (0, 3, 0.6) and "seed" not in sent
    ended(page, "c")
    figures = page.locator('[data-backend="c"] .figures')
    expect(figures).to_contain_text("tokens/s")
    expect(figures).not_to_contain_text("seed")  # greedy: none matters


def test_the_card_without_the_service(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{SAID}", refusals=True)
    generate(page, "c")
    before = written(page)
    page.route("**/candidates", lambda route: route.abort())
    page.route("**/generate/c", lambda route: route.abort())
    open_card(page, 2)
    expect(card(page).get_by_role("status")).to_contain_text("The connection to the service is lost")
    card(page).locator("li:not([aria-current]) button:enabled").first.click()
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    assert written(page) == before  # what was on screen stays
    page.unroute("**/generate/c")
    page.get_by_role("button", name="Try again").click()
    ended(page, "c")
    expect(page.get_by_role("treeitem")).to_have_count(2)
    assert written(page)[:2] == before[:2] and written(page)[2] != before[2]


# ---- Rules -----------------------------------------------------------------------------------------------------------


def test_side_by_side_starts_with_the_same_rule(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_label("Length").fill("12")
    generate(page, "c", "torch")
    assert written(page, "c") == written(page, "torch")
    rules = page.locator("#generate-rules")
    expect(rules).to_be_empty()
    page.get_by_label("Temperature").fill("")
    page.get_by_label("Temperature").press("Tab")
    expect(rules).to_have_text(
        "The rules differ: C is drawn at temperature 1; PyTorch takes always the most probable word. "
        "Set a temperature to give both the same."
    )
    generate(page, "c", "torch")
    expect(page.locator('[data-backend="c"] .figures')).to_contain_text("seed")
    expect(page.locator('[data-backend="torch"] .figures')).not_to_contain_text("seed")
    page.get_by_role("radio", name="C", exact=True).first.check()
    expect(rules).to_be_empty()


@pytest.mark.parametrize(
    ("label", "typo"), [("Length", "0"), ("Temperature", "1e"), ("Top-p", "2"), ("Stop before", "zqx")]
)
def test_a_typo_in_a_setting_wipes_nothing(server: Server, open_page: OpenPage, label: str, typo: str) -> None:
    page = open_page(f"{server.url}/{SAID}", refusals=True)
    generate(page, "c")
    before, figures = written(page), page.locator('[data-backend="c"] .figures').inner_text()
    field = page.get_by_label(label)
    field.fill("")
    field.press_sequentially(typo)
    go_button(page).click()
    expect(page.get_by_role("alert").first).to_contain_text(label)
    expect(go_button(page)).to_be_visible()
    assert written(page) == before
    expect(page.locator('[data-backend="c"] .figures')).to_have_text(figures, use_inner_text=True)
    expect(state(page, "c")).to_have_text("reached its length")


# ---- Earlier texts ---------------------------------------------------------------------------------------------------


def test_earlier_texts_can_be_seen_again_and_compared(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/{SAID}")
    runs = page.locator("#runs")
    generate(page, "c")
    expect(runs).to_be_hidden()  # there is nothing to compare yet
    first = written(page)
    page.get_by_label("Temperature").fill("0.5")
    page.locator("#seed").fill("6")
    generate(page, "c")
    second = written(page)
    expect(runs.locator("li")).to_have_count(2)
    runs.get_by_role("checkbox").nth(0).check()
    runs.get_by_role("checkbox").nth(1).check()
    expect(runs.get_by_role("status")).to_contain_text(
        "They differ in rule (drawn at temperature 0.5; drawn at temperature 1), seed (seed 6; seed 5)."
    )
    same = next((i for i, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]), None)
    expect(runs.get_by_role("status")).to_contain_text(f"They part a{f'fter {same} word' if same else 't the first'}")
    kept = [texts(text.locator(".word")) for text in runs.locator("article").all()]
    assert [[word.replace("¶", "<EOS>") for word in text] for text in kept] == [second, first]
    runs.locator("li").nth(1).get_by_role("button").click()
    assert written(page) == first
    expect(page.locator('[data-backend="c"] .figures')).to_contain_text("5 keep")
    for _ in range(9):
        generate(page, "c")
    expect(runs.locator("li")).to_have_count(8)  # a short list


# ---- Links -----------------------------------------------------------------------------------------------------------


def copied_link(page: Any, backend: str = "c") -> str:
    page.locator(f'.output[data-backend="{backend}"]').get_by_role("button", name="Copy link").click()
    until(lambda: page.evaluate("navigator.clipboard.readText()").startswith("http"))
    return page.evaluate("navigator.clipboard.readText()")


def test_a_link_writes_the_text_again(weights: Path, open_page: OpenPage) -> None:
    with running(weights, RNN_BACKENDS="c,torch") as server:
        page = open_page(f"{server.url}/#view=generate", permissions=["clipboard-read", "clipboard-write"])
        page.get_by_label("Length").fill("12")
        page.get_by_label("Top-p").fill("0.9")
        page.get_by_label("Continue after the sentence ends").check()
        generate(page, "c", "torch")
        link = copied_link(page)
        sha256 = server.get("/weights").json()["weights"][0]["sha256"]
        assert f"file={sha256[:16]}" in link and re.search(r"seed=\d+", link) and "weights=demo" in link
        other = open_page(link)
        ended(other, "c")
        assert written(other) == written(page)
        expect(other.get_by_role("radio", name="C", exact=True).first).to_be_checked()
        expect(other.locator("#generate-notice")).to_be_empty()

        open_card(page, 3)  # a branch has a link of its own
        card(page).locator("li:not([aria-current]) button:enabled").first.click()
        ended(page, "c")
        expect(page.get_by_role("treeitem")).to_have_count(2)
        branch = open_page(copied_link(page))
        ended(branch, "c")
        assert written(branch) == written(page)[4:]

        source = load(weights / "demo.safetensors", copy=True)
        source.weights.by[0] += 0.5
        save(weights / "demo.safetensors", source)
        changed = open_page(link)
        ended(changed, "c")
        expect(changed.locator("#generate-notice")).to_contain_text(
            "The weights file “demo” is not the one that the link was made with"
        )
        changed.get_by_label("Length").fill("3")  # what is asked for now is not the link's text
        generate(changed, "c")
        expect(changed.locator("#generate-notice")).to_be_empty()
        assert "file=" not in changed.url
