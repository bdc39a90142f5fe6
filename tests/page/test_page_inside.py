"""The page's inside view in a real browser: what is on screen is what the service says."""

from __future__ import annotations

import re
from typing import Any

import browsing
import numpy as np
from browsing import OpenPage, playwright, texts
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
    left = (
        "after “was”, less than 1% of the difference is left" if after else "of the difference that “was” made is left"
    )
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


def companions(page: Any) -> list[str]:
    """The units that are listed as alike, and as opposite, with their r."""
    return [text.replace("\N{MINUS SIGN}", "-") for text in texts(page.locator("#inside-state .companion"))]


def test_no_text_is_in_the_address_of_a_request(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.get_by_role("link", name="Inside").click()
    expect(page.locator("#inside-neighbours li").first).to_be_visible()
    assert any("/neighbours?" in address for address in addresses)
    assert not [address for address in addresses if "minister" in address]


def test_units_that_behave_alike_over_a_brushed_range(server: Server, open_page: OpenPage) -> None:
    """By mouse, by keyboard and by touch; the correlations are those of the service's states."""
    page = open_page(server.url + "/#view=inside", has_touch=True)
    told = server.post("/inspect", json={"text": EXAMPLE, "state": True}).json()
    state = np.array(told["state"])

    def expected(unit: int, first: int, last: int) -> list[str]:
        r = np.corrcoef(state[first : last + 1].T)[unit]
        others = sorted((i for i in range(24) if i != unit), key=lambda i: -r[i])
        with_it, against = [i for i in others if r[i] > 0][:6], [i for i in others if r[i] < 0][-6:][::-1]
        return [f"unit {i} {r[i]:.2f}" for i in (*with_it, *against)]

    part = page.locator("#inside-state")
    expect(part.get_by_role("heading", name="Units like 0, over 8 words")).to_be_visible()
    assert companions(page) == expected(0, 0, 7)

    canvas = part.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()

    def place(column: float, row: float) -> tuple[float, float]:
        return box["x"] + box["width"] * (column + 0.5) / 8, box["y"] + box["height"] * (row + 0.5) / 24

    page.mouse.click(*place(4, 5))  # chooses the unit of that row
    page.mouse.move(*place(6, 3))
    page.mouse.down()
    page.mouse.move(*place(2, 9), steps=3)
    page.mouse.up()
    expect(part.get_by_role("heading", name="Units like 5, over 5 words")).to_be_visible()
    assert companions(page) == expected(5, 2, 6)
    expect(part.locator(".brushed")).to_have_attribute("width", "5")
    expect(part.locator(".marks .alike")).to_have_count(len(expected(5, 2, 6)))

    page.get_by_label("To word").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(part.get_by_role("heading", name="Units like 5, over 3 words")).to_be_visible()
    assert companions(page) == expected(5, 2, 4)
    expect(part).to_contain_text("Over so few words, many units go together by chance.")
    page.keyboard.press("ArrowUp")
    expect(part).to_contain_text("Take three words or more")

    touch = page.context.new_cdp_session(page)
    for kind, column in (("touchStart", 1), ("touchMove", 3), ("touchMove", 7), ("touchEnd", None)):
        points = [] if column is None else [dict(zip("xy", place(column, 12), strict=True))]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(part.get_by_role("heading", name="Units like 5, over 7 words")).to_be_visible()
    assert companions(page) == expected(5, 1, 7)

    part.locator(".companion").first.press("Enter")  # a unit that is alike can be chosen in its turn
    first = int(expected(5, 1, 7)[0].split()[1])
    expect(page.get_by_label("Unit, 0 to 23")).to_have_value(str(first))
    assert companions(page) == expected(first, 1, 7)


def test_each_part_explains_itself_and_the_equations_lead_to_it(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside")
    parts = page.locator(".inside-part")
    expect(parts).to_have_count(5)
    for part in parts.all():
        expect(part.locator("> .hint").nth(1)).to_have_text(re.compile(r"^Try: "))
        explanation = part.locator("> .hint").first.inner_text()
        assert len(re.findall(r"[.](?: |$)", explanation)) == 2, explanation
    for symbol in page.locator("#inside-map button").all():
        part = page.locator(f"#{symbol.get_attribute('data-part')}")
        symbol.focus()
        expect(part).to_have_class(re.compile("pointed"))
        page.keyboard.press("Enter")
        expect(part.locator("h3")).to_be_focused()
        expect(part.locator("h3")).to_be_in_viewport()
        expect(part).not_to_have_class(re.compile("pointed"))


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


def test_a_complaint_about_what_is_no_field_on_the_page(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside&target=0", refusals=True)
    expect(page.get_by_role("alert")).to_have_text("Target must be 1 or more, got 0.")
    page = open_page(server.url + "/#view=inside", refusals=True)
    other = page.get_by_label("The same sentence, with a word changed")
    other.fill("The " * 2600)
    other.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Other must have at most 10,000 characters")


def test_a_lost_connection(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + "/#view=inside", refusals=True)
    expect(page.locator("#inside-why")).to_be_visible()
    page.route("**/inspect", lambda route: route.abort())
    look(page)
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    page.unroute("**/inspect")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_have_count(0)
