"""The page's inside view in a real browser: what is on screen is what the service says."""

from __future__ import annotations

import re
from typing import Any

import browsing
import numpy as np
from browsing import OpenPage, playwright
from serving import Server

pytestmark = browsing.needs_browser
demo, server, browser, open_page = browsing.demo, browsing.server, browsing.browser, browsing.open_page  # fixtures

expect = playwright.expect
EXAMPLE = "The prime minister said the government would"


def word(page: Any, name: str) -> Any:
    return page.locator("#inside-why").get_by_role("button", name=name, exact=True)


def look(page: Any) -> None:
    page.get_by_role("button", name="Look inside").click()


def test_a_first_visit_shows_an_example(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_role("link", name="Inside").click()
    told = server.post("/inspect", json={"text": EXAMPLE, "state": True}).json()
    why = page.locator("#inside-why")
    expect(why.get_by_role("button")).to_have_count(len(told["words"]) + 1)
    expect(why.locator("b")).to_have_text(told["word"])
    best = told["distribution"][0]
    expect(why.locator("li").first).to_contain_text(best["word"])
    strongest = max(told["influences"], key=lambda influence: influence["bits"])
    name = told["words"][strongest["position"]].replace("<EOS>", "¶")
    expect(why).to_contain_text(f"It leans most on {name}, ")
    expect(page.locator("#inside-memory tbody tr")).to_have_count(len(told["influences"]))
    expect(page.locator("#inside-state canvas")).to_have_attribute(
        "aria-label", f"The hidden state: 24 units by {len(told['words'])} words"
    )
    expect(page.locator("#inside-recurrence .dot")).to_have_count(24)
    arcs = sum(influence["bits"] > 0.002 * strongest["bits"] for influence in told["influences"])
    expect(why.locator(".arcs path")).to_have_count(arcs)
    values = np.array(told["state"])[:, 0]
    place = np.corrcoef(values, np.arange(len(values)))[0, 1]
    about = page.locator("#inside-state .unit")
    expect(about).to_contain_text("the place in the text")
    shown = re.search(r"the place in the text (\N{MINUS SIGN}?)([\d.]+)", about.inner_text())
    assert shown and abs(float(f"{shown[1] and '-'}{shown[2]}") - place) <= 0.0051


def test_without_a_word(server: Server, open_page: OpenPage) -> None:
    """Pointing at a word, or walking to it, shows the prediction without it."""
    page = open_page(server.url + "/#view=inside")
    told = server.post("/inspect", json={"text": EXAMPLE}).json()
    why = page.locator("#inside-why")
    influence = told["influences"][3]
    button = word(page, told["words"][influence["position"]])
    button.hover()
    expect(why).to_contain_text(f"Without “{told['words'][influence['position']]}”")
    expect(why.locator("li").first.locator(".bar")).to_have_count(2)
    shown = why.locator("li .value").first.inner_text().split(" → ")
    for text, entry in zip(shown, (told["distribution"][0], influence["distribution"][0]), strict=True):
        assert abs(float(text.rstrip("%")) - 100 * entry["probability"]) <= 0.06 * 100 * entry["probability"]
    page.keyboard.press("Tab")
    word(page, told["words"][2]).focus()
    expect(why).to_contain_text(f"Without “{told['words'][2]}”")


def test_another_word_is_explained(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside")
    word(page, "minister").click()
    why = page.locator("#inside-why")
    expect(why.locator("b")).to_have_text("minister")
    expect(word(page, "minister")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#inside-memory tbody tr")).to_have_count(3)
    expect(page).to_have_url(re.compile("target=3"))
    page.reload()
    expect(why.locator("b")).to_have_text("minister")
    word(page, "next?").click()
    expect(page.locator("#inside-memory tbody tr")).to_have_count(8)


def test_a_second_sentence_converges(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside")
    field = page.get_by_label("The same sentence, with a word changed")
    other = "The prime minister was the government would"
    field.fill(other)
    field.press("Enter")
    told = server.post("/inspect", json={"text": EXAMPLE, "other": other}).json()["memory"]
    after = told["forgotten_after"]
    left = "less than 1% of the difference is left" if after else "of the difference that “was” made is left"
    expect(page.locator("#inside-memory [role=status]")).to_contain_text(left)
    field.fill(EXAMPLE)
    field.press("Enter")
    expect(page.locator("#inside-memory [role=status]")).to_have_text("The two sentences read the same: change a word.")


def test_a_unit_and_the_spectrum_and_neighbours(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside")
    page.get_by_label("Unit, 0 to 23").fill("7")
    page.get_by_label("Unit, 0 to 23").press("Enter")
    told = server.get("/weights/demo/units/7").json()
    first = page.locator("#inside-state .lists p").first
    expect(first).to_have_text(", ".join(entry["word"].replace("<EOS>", "¶") for entry in told["raised_by"]))
    page.locator("#inside-state canvas").click(position={"x": 20, "y": 2})
    expect(page.get_by_label("Unit, 0 to 23")).to_have_value("0")
    sizes = server.get("/weights/demo/spectrum", params={"text": EXAMPLE}).json()
    recurrence = page.locator("#inside-recurrence")
    for name in ("recurrent", "effective"):
        if name == "effective":
            page.get_by_label("As tanh weakens it on this text").check()
        largest = max((x * x + y * y) ** 0.5 for x, y in sizes[name])
        found = re.search(r"magnitude ([\d.]+):", recurrence.inner_text())
        assert found and abs(float(found[1]) - largest) < 0.006
    page.get_by_label("Word", exact=True).fill("government")
    page.get_by_label("Word", exact=True).press("Enter")
    near = server.get("/weights/demo/neighbours", params={"word": "government"}).json()
    expect(page.locator("#inside-neighbours li").first).to_contain_text(near["by_input"][0]["word"])


def test_what_cannot_be_inspected(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside", refusals=True)
    expect(page.locator("#inside-why")).to_be_visible()
    field = page.get_by_label("Text to look into")
    for text, complaint in (
        ("", "Text to look into must have a word to look at."),
        ("1 2 3", "has no word"),
        ("Zqx", "vocabulary"),
    ):
        field.fill(text)
        look(page)
        expect(page.get_by_role("alert")).to_contain_text(complaint)
        expect(page.locator("#inside-why")).to_be_visible()  # what was on screen stays
    field.fill("The " * 1900)
    look(page)
    expect(page.locator("#inside-state")).to_contain_text("for texts of up to 120 words")
    field.fill("government")
    look(page)
    expect(page.locator("#inside-memory tbody tr")).to_have_count(2)
    page.get_by_label("Word", exact=True).fill("Zqx")
    page.get_by_label("Word", exact=True).press("Enter")
    expect(page.locator("#inside-neighbours")).to_contain_text("is not among the")


def test_a_lost_connection(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside", refusals=True)
    expect(page.locator("#inside-why")).to_be_visible()
    page.route("**/inspect", lambda route: route.abort())
    look(page)
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    page.unroute("**/inspect")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_have_count(0)
