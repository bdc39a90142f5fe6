"""The page's weights view in a real browser: the list, the curves, uploads, deletions, the admin token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
from browsing import OpenPage, playwright, running, texts
from serving import Server, save_tiny, until

from rnnlm import checkpoint
from rnnlm.checkpoint import Checkpoint
from rnnlm.ensemble import combine

pytestmark = browsing.needs_browser
demo, browser, open_page, weights = browsing.demo, browsing.browser, browsing.open_page, browsing.weights  # fixtures

expect = playwright.expect
VIEW = "/#view=weights"


@pytest.fixture
def server(weights: Path) -> Iterator[Server]:
    """A server of the test's own, with only the C model: each upload is tried on every back end."""
    with running(weights) as server:
        yield server


def row(page: Any, name: str) -> Any:
    return page.locator(f'.files tr[data-name="{name}"]')


def give_token(page: Any, token: str = "admin-secret") -> None:
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Continue").click()


def choose(page: Any, path: Path, name: str = "") -> None:
    page.get_by_label("Weights file", exact=True).set_input_files(path)
    page.get_by_label("Name here").fill(name)


def upload(page: Any) -> None:
    page.get_by_role("button", name="Upload").click()


def source(demo: Path, **changes: Any) -> Checkpoint:
    """The demo weights with another history, configuration, ..."""
    loaded = checkpoint.load(demo, copy=True)
    names = ("weights", "vocabulary", "tokenizer", "backend", "config", "history")
    return Checkpoint(**{name: getattr(loaded, name) for name in names} | changes)


# ---- The list and the curves -----------------------------------------------------------------------------------------


def test_the_list_tells_of_each_file(server: Server, weights: Path, demo: Path, open_page: OpenPage) -> None:
    save_tiny(weights, "tiny", vocab=40, hidden=12)
    (weights / "broken.safetensors").write_bytes(b"not weights")
    page = open_page(server.url + VIEW)
    kept = checkpoint.load(demo)
    best, unigram = min(entry["validation_perplexity"] for entry in kept.history), kept.config["unigram_perplexity"]
    cells = texts(row(page, "demo").get_by_role("cell"))
    assert cells[:4] == ["C", "demo", "1,000 words", "24"]
    assert cells[4].endswith("kB") and cells[6] == f"{best:.0f} uniform 1,000, unigram {unigram:.0f}"
    expect(row(page, "demo").get_by_role("rowheader")).to_contain_text("default")
    expect(row(page, "tiny").get_by_role("cell").nth(2)).to_have_text("40 words")
    expect(row(page, "tiny").get_by_role("cell").nth(6)).to_have_text("\N{EN DASH} uniform 40")  # it keeps no other
    expect(row(page, "broken")).to_contain_text("It cannot be used:")
    page.get_by_role("link", name="Generate").click()
    expect(page.locator("#generate-weights option")).to_have_text(["demo (the default)", "demo", "tiny"])


def test_the_list_says_that_a_file_is_an_ensemble(
    server: Server, weights: Path, demo: Path, open_page: OpenPage
) -> None:
    members = [checkpoint.load(demo)] * 3
    checkpoint.save(weights / "three.safetensors", combine(members, ["a", "b", "c"]))
    page = open_page(server.url + VIEW)
    assert texts(row(page, "three").get_by_role("cell"))[:4] == ["C ensemble of 3", "demo", "1,000 words", "72"]


def test_a_file_that_a_trainer_writes_is_seen(server: Server, weights: Path, open_page: OpenPage) -> None:
    page = open_page(server.url)
    expect(page.locator("#generate-weights option")).to_have_count(2)
    save_tiny(weights, "new")
    page.get_by_role("link", name="Weights").click()
    expect(row(page, "new")).to_be_visible()


def test_curves_of_several_files_in_one_chart(server: Server, weights: Path, demo: Path, open_page: OpenPage) -> None:
    longer = [
        {"epoch": epoch, "tokens": epoch * 1000, "seconds": epoch / 2, "train_loss": 7 / epoch, "validation_loss": 5.0}
        for epoch in range(1, 30)
    ]
    longer[-1]["train_loss_sampled"] = True
    checkpoint.save(weights / "longer.safetensors", source(demo, history=longer))
    page = open_page(server.url + VIEW)
    chart = page.locator("#chart")
    expect(chart.locator("polyline")).to_have_count(4)  # training and validation of two
    text = " ".join(texts(chart.locator("svg[role=img] text")))
    assert "loss, nats per token" in text and "perplexity" in text and "epochs" in text
    keys = chart.get_by_role("list", name="Curves")
    expect(keys).to_contain_text("demo")
    expect(keys).to_contain_text("longer")
    page.get_by_label("Against").select_option("seconds")
    expect(chart.locator("svg[role=img]")).to_contain_text("seconds of training")
    assert "against=seconds" in page.url
    frame = chart.locator("svg[role=img]").bounding_box()
    page.mouse.move(frame["x"] + frame["width"] - 70, frame["y"] + 100)
    key = keys.get_by_role("listitem").filter(has_text="longer")
    expect(key).to_contain_text("14.5 s: validation 5.000 (perplexity 148), training 0.241 (sampled)")
    page.get_by_label("Show the curve of longer").uncheck()
    expect(chart.locator("polyline")).to_have_count(2)
    page.get_by_text("The numbers").click()
    expect(chart.get_by_role("row")).to_have_count(1 + len(checkpoint.load(demo).history))
    page.get_by_label("Against").select_option("tokens")
    expect(chart.get_by_role("table")).to_be_visible()  # still
    page.get_by_label("Show the curve of demo").uncheck()
    expect(chart).to_contain_text("Tick files in the list")


def test_a_curve_is_where_its_losses_are(server: Server, weights: Path, demo: Path, open_page: OpenPage) -> None:
    history = [{"epoch": epoch, "validation_loss": loss} for epoch, loss in ((0, 6.0), (5, 4.0), (10, 5.0))]
    checkpoint.save(weights / "demo.safetensors", source(demo, history=history))
    page = open_page(server.url + VIEW)
    points = page.locator("polyline.curve:not(.training)").get_attribute("points")
    (x0, y0), (x5, y5), (x10, y10) = ([float(value) for value in point.split(",")] for point in points.split())
    assert abs(x5 - (x0 + x10) / 2) < 0.2 and abs(y10 - (y0 + y5) / 2) < 0.2 and y0 < y10 < y5
    assert x0 == 46 and x10 > 300  # from the left axis to the right one
    labels = page.locator("#chart svg[role=img] text").evaluate_all(
        "texts => texts.map(text => [text.textContent, Number(text.getAttribute('y')) - 4, text.getAttribute('x')])"
    )
    heights = {label: y for label, y, _ in labels}
    assert abs(heights["6.0"] - y0) < 0.2 and abs(heights["4.0"] - y5) < 0.2
    assert abs(heights["403"] - y0) < 0.2 and abs(heights["54.6"] - y5) < 0.2  # exp(6), exp(4)
    assert abs({label: float(x) for label, _, x in labels}["10"] - x10) < 0.2


def test_a_curve_that_hides_another_is_told(server: Server, weights: Path, demo: Path, open_page: OpenPage) -> None:
    shutil.copy(demo, weights / "twin.safetensors")
    other = [{**entry, "validation_loss": entry["validation_loss"] + 0.5} for entry in checkpoint.load(demo).history]
    checkpoint.save(weights / "other.safetensors", source(demo, history=other))
    page = open_page(server.url + VIEW)
    keys = page.get_by_role("list", name="Curves").get_by_role("listitem")
    expect(keys.filter(has_text="twin")).to_contain_text("twin (lies on demo)")
    expect(page.get_by_text("(lies on")).to_have_count(1)
    page.get_by_label("Show the curve of demo").uncheck()
    expect(page.get_by_text("(lies on")).to_have_count(0)


def test_a_history_of_any_length_is_in_the_table(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW)
    rows = page.evaluate(
        """async () => {
            const { chart } = await import("/web/js/chart.js");
            const history = Array.from({ length: 70000 }, (_, epoch) => ({ epoch, validation_loss: 5 }));
            const files = [0, 1].map((index) => ({ weights: { name: `long-${index}`, history }, index }));
            const drawn = chart(files, "epoch", { width: 800, isUnfolded: false });
            return drawn.querySelectorAll("tbody tr").length;
        }"""
    )
    assert rows == 140_000


def test_what_a_file_says_of_itself_stays_text(weights: Path, demo: Path, open_page: OpenPage) -> None:
    config = {"corpus": "<script>alert(1)</script>"}
    history: list[dict[str, Any]] = [
        {"epoch": "<img src=x onerror=alert(2)>", "validation_loss": []},
        {"epoch": 1, "validation_loss": None, "train_loss": "x", "validation_perplexity": {}},
        {"epoch": 2, "validation_loss": 5, "validation_perplexity": 1e300},
    ]
    checkpoint.save(weights / "odd.safetensors", source(demo, config=config, history=history))
    checkpoint.save(weights / "odder.safetensors", source(demo, config={"corpus": [1]}, history=[]))
    with running(weights) as server:
        page = open_page(server.url + VIEW)
        expect(row(page, "odd")).to_contain_text("<script>alert(1)</script>")
        expect(row(page, "odder").get_by_role("cell").nth(1)).to_have_text("\N{EN DASH}")
        page.get_by_label("Show the curve of demo").uncheck()
        expect(page.locator("#chart polyline").last).to_be_attached()
        assert page.locator("main script, main img").count() == 0


# ---- Uploads ---------------------------------------------------------------------------------------------------------


def test_an_upload_is_added_and_used(server: Server, tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW, refusals=True)
    choose(page, save_tiny(tmp_path, "tiny"), "mine")
    upload(page)
    dialog = page.get_by_role("dialog", name="Changing the weights requires the admin token")
    expect(dialog).to_be_visible()
    give_token(page, "not-the-token")
    expect(dialog.get_by_role("alert")).to_have_text("The service does not know this token.")
    held = page.locator("#held")
    expect(held).to_be_hidden()  # a wrong token is not kept
    give_token(page)
    expect(page.get_by_text("mine is added. It can be used at once.")).to_be_visible()
    expect(held).to_contain_text("The admin token is kept until this tab is closed.")
    expect(row(page, "mine")).to_be_visible()
    page.get_by_role("link", name="Generate").click()
    page.locator("#generate-weights").select_option("mine")
    page.get_by_label("Prompt").fill("waa wab")
    browsing.generate(page, "c")
    # The token is in no place that outlives the tab, and can be forgotten before.
    kept = page.evaluate("[document.cookie, {...localStorage}, {...sessionStorage}, location.href, document.title]")
    assert "admin-secret" not in json.dumps(kept) and "admin-secret" not in page.content()
    page.get_by_role("link", name="Weights").click()
    page.get_by_role("button", name="Forget it").click()
    page.get_by_role("button", name="Delete mine").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(dialog).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(row(page, "mine")).to_be_visible()


def test_a_name_that_is_taken(server: Server, tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW, refusals=True)
    choose(page, save_tiny(tmp_path, "demo"))
    upload(page)
    give_token(page)
    expect(page.get_by_role("alert")).to_contain_text("There are weights of this name already.")
    page.get_by_label("Replace weights of the same name").check()
    upload(page)
    expect(page.get_by_text("demo is replaced. It can be used at once.")).to_be_visible()
    expect(row(page, "demo")).to_contain_text("40 words")


def test_a_name_with_a_space_is_cleaned(server: Server, demo: Path, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW)
    choose(page, demo, "my copy")
    upload(page)
    give_token(page)
    expect(page.get_by_text("my copy is added, named my-copy here. It can be used at once.")).to_be_visible()
    expect(row(page, "my-copy")).to_be_visible()


def test_the_reasons_of_a_refusal(server: Server, tmp_path: Path, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW, refusals=True)
    upload(page)
    expect(page.get_by_role("alert")).to_have_text("Weights file must be chosen first.")
    evil = tmp_path / "<img src=x onerror=alert(1)>.safetensors"
    evil.write_bytes(b"\x80\x04not weights at all")
    choose(page, evil, "evil")
    upload(page)
    give_token(page)
    expect(page.get_by_role("alert")).to_contain_text(f"The service refused {evil.name}, and says:")
    told = page.get_by_role("alert").inner_text()
    assert len(told.split(":", 1)[1]) > 10
    choose(page, evil)  # under its own name, which no weights may have
    upload(page)
    expect(page.get_by_role("alert")).to_contain_text("A weights name has 1 to 64 letters")
    broken = save_tiny(tmp_path, "nan", vocab=13, hidden=6)
    content = bytearray(broken.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    broken.write_bytes(content)
    choose(page, broken)
    upload(page)
    expect(page.get_by_role("alert")).to_contain_text("The service refused nan.safetensors, and says:")
    expect(page.locator(".files tbody tr")).to_have_count(1)
    assert page.locator("main img, main script").count() == 0


def test_progress_is_shown_and_an_upload_can_be_cancelled(
    server: Server, weights: Path, tmp_path: Path, open_page: OpenPage
) -> None:
    page = open_page(server.url + VIEW, refusals=True)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1_000_000}
    network.send("Network.emulateNetworkConditions", slow)
    file = tmp_path / "big.safetensors"
    file.write_bytes(bytes(30_000_000))
    choose(page, file)
    upload(page)
    give_token(page)
    expect(page.locator("#upload-state")).to_contain_text("of 30 MB sent")
    until(lambda: page.locator("#upload-bar").evaluate("bar => bar.position") > 0)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("The upload was cancelled, and nothing of it is kept.")).to_be_visible()
    until(lambda: {path.name for path in weights.iterdir()} == {"demo.safetensors"})


def test_an_upload_can_be_cancelled_while_it_is_checked(weights: Path, tmp_path: Path, open_page: OpenPage) -> None:
    old = (weights / "demo.safetensors").read_bytes()
    with running(weights, app="long_trials:app") as server:
        page = open_page(server.url + VIEW, refusals=True)
        choose(page, save_tiny(tmp_path, "demo"))
        page.get_by_label("Replace weights of the same name").check()
        upload(page)
        give_token(page)
        expect(page.locator("#upload-state")).to_contain_text("All sent.")
        with page.expect_request(lambda request: request.method == "GET" and request.url.endswith("/weights")):
            page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("The upload was cancelled. If the service had just accepted the file")).to_be_visible()
        until(lambda: 'rnn_uploads_total{result="abandoned"} 1.0' in server.get("/metrics").text)
        assert {path.name: path.read_bytes() for path in weights.iterdir()} == {"demo.safetensors": old}


@pytest.mark.parametrize("what", ["added", "deleted"])
def test_what_was_done_is_said_even_if_the_list_cannot_be_read_again(
    server: Server, weights: Path, tmp_path: Path, open_page: OpenPage, what: str
) -> None:
    shutil.copy(weights / "demo.safetensors", weights / "copy.safetensors")
    page = open_page(server.url + VIEW, refusals=True)
    expect(row(page, "copy")).to_be_visible()
    page.route("**/weights", lambda route: route.abort() if route.request.method == "GET" else route.continue_())
    if what == "added":
        choose(page, save_tiny(tmp_path, "mine"))
        upload(page)
    else:
        page.get_by_role("button", name="Delete copy").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    give_token(page)
    done = page.get_by_text("mine is added." if what == "added" else "copy is deleted.")
    expect(done).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    page.unroute("**/weights")
    page.get_by_role("button", name="Try again").click()
    expect(row(page, "mine")).to_have_count(1 if what == "added" else 0)
    expect(row(page, "copy")).to_have_count(1 if what == "added" else 0)
    expect(done).to_be_visible()


def test_a_file_can_be_dropped(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url + VIEW)
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File(["x"], "dropped.safetensors"));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }"""
    )
    assert page.locator("#file").evaluate("field => field.files[0].name") == "dropped.safetensors"


# ---- Deletions and lost connections ----------------------------------------------------------------------------------


def test_deleting_asks_first(server: Server, weights: Path, open_page: OpenPage) -> None:
    shutil.copy(weights / "demo.safetensors", weights / "copy.safetensors")
    page = open_page(server.url + VIEW)
    page.get_by_role("button", name="Delete copy").click()
    dialog = page.get_by_role("dialog", name="Delete copy?")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert (weights / "copy.safetensors").exists()
    page.get_by_role("button", name="Delete copy").click()
    dialog.get_by_role("button", name="Delete").click()
    give_token(page)
    expect(page.get_by_text("copy is deleted.")).to_be_visible()
    expect(row(page, "copy")).to_have_count(0)
    expect(page.locator("main")).to_be_focused()
    assert not (weights / "copy.safetensors").exists()


def test_a_lost_connection_at_the_start(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url, refusals=True)
    page.route("**/weights", lambda route: route.abort())
    page.goto(server.url + VIEW)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost")
    page.unroute("**/weights")
    page.get_by_role("button", name="Try again").click()
    expect(row(page, "demo")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
