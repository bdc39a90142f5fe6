"""What the page's tests share: a browser (Chromium, driven by Playwright), a real server, and real demo weights."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, made_once
from serving import GUARD_SECONDS, Server, needs_library

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test installs it")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
END = re.compile("^(ended its sentence|reached its length|came to a stop word)$")
WAIT_MS = 1000 * GUARD_SECONDS  # no test waits longer for anything on a page
REFUSAL = "Failed to load resource:"  # Chromium's console logs this for each answer from 400 on

playwright.expect.set_options(timeout=WAIT_MS)

needs_browser = [
    pytest.mark.page,
    needs_library,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="session")
def demo(common_folder: Path) -> Path:
    """Demo weights, trained for a few seconds: enough for a history, and for words of the corpus."""

    def train(path: Path) -> None:
        options = "--preset demo --epochs 3 --max-tokens 8000 --vocab-size 1000 --embedding-size 16 --hidden-size 24"
        done = subprocess.run(
            [sys.executable, "main.py", *options.split(), "--threads", "1", "--out", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10 * GUARD_SECONDS,
        )
        assert done.returncode == 0, done.stderr

    return made_once(common_folder / "demo.safetensors", train)


@pytest.fixture
def weights(demo: Path, tmp_path: Path) -> Path:
    """A weights folder of the test's own, with the demo weights in it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(demo, folder)
    return folder


@pytest.fixture(scope="module")
def server(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both back ends, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(demo, folder)
    limits = {"RNN_MAX_TOKENS": "100000", "RNN_MAX_REQUEST_TOKENS": "200000"}
    with running(folder, RNN_BACKENDS="c,torch", **limits) as server:
        yield server


@contextlib.contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    server = Server(folder, folder.parent / f"{folder.name}.log", *options, **environment)
    try:
        yield server
    finally:
        for origin, context in _HEALTHY:
            if origin == server.url:
                context.close()  # or what it still asks for would fail
        server.close()


# Playwright's loop runs in this thread for as long as its browser is open, and then no other test could run one of its
# own. So the browser is a module's, not the session's.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


OpenPage = Callable[..., Any]
_HEALTHY: list[tuple[str, Any]] = []  # the contexts of this test in which nothing may fail, each with its server's URL
_STARTED = "html:not([data-view]), form[data-started]"  # another page than ours, or a view whose modules have come


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens pages: open_page(url, refusals=False, **options of the browser's context).

    In the end nothing may have failed in any of them, and nothing may have come from elsewhere. refusals: the service
    is going to refuse something, which Chromium reports in the console.
    """
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(url: str, *, refusals: bool = False, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        if not refusals:
            _HEALTHY.append(("/".join(url.split("/")[:3]), context))
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        origin = "/".join(url.split("/")[:3]) + "/"

        def on_console(message: Any) -> None:
            if message.type in ("error", "warning") and not (refusals and message.text.startswith(REFUSAL)):
                complaints.append(f"console: {message.text}")

        def on_dialog(dialog: Any) -> None:
            complaints.append(f"a script ran: {dialog.message}")
            dialog.dismiss()

        def on_request(request: Any) -> None:
            if not request.url.startswith((origin, "data:", "blob:")):
                complaints.append(f"asked elsewhere: {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", on_dialog)
        page.on("request", on_request)
        page.goto(url)
        page.locator(_STARTED).first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    _HEALTHY.clear()
    assert complaints == [], complaints


def texts(found: Any) -> list[str]:
    """The texts of all that a locator finds, once there is something: all_text_contents() itself never waits."""
    playwright.expect(found.first).to_be_attached()
    return found.all_text_contents()


def words(page: Any, backend: str) -> Any:
    """The words that a back end has written."""
    return page.locator(f'.output[data-backend="{backend}"] .word')


def state(page: Any, backend: str) -> Any:
    """How a back end's run ended."""
    return page.locator(f'.output[data-backend="{backend}"] .state')


def card(page: Any) -> Any:
    """The card beside a word."""
    return page.locator("#inspector")


def go_button(page: Any) -> Any:
    return page.get_by_role("button", name="Generate", exact=True)


def answering(**answer: Any) -> Callable[[Any], None]:
    """Return a handler that answers a request instead of the service."""
    return lambda route: route.fulfill(**answer)


def generate(page: Any, *backends: str) -> None:
    """Press Generate, and wait for the ends."""
    go_button(page).click()
    for backend in backends:
        ended(page, backend)


def ended(page: Any, backend: str) -> None:
    """Wait until a back end has ended well."""
    playwright.expect(state(page, backend)).to_have_text(END)
